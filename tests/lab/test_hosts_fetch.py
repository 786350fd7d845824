"""curl on the lab's machines, and the servers that a K3s release comes from."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hosts_lab import LabHosts, lab_hosts

from hybridlab.drivers.ssh import SshHosts
from hybridlab.errors import BadInput
from hybridlab.lab.hosts.k3s_release import write_release
from hybridlab.models import CommandResult, HostAddress
from hybridlab.sites import channel_version

TAG = "v1.34.2%2Bk3s1"
GITHUB = "https://github.com/k3s-io/k3s/releases/download"
RAW = "https://raw.githubusercontent.com/k3s-io/k3s"
HOST = "arm-1"


class Curl:
    """A lab with one machine, and its curl."""

    def __init__(self, lab: LabHosts, driver: SshHosts, host: HostAddress) -> None:
        self.lab, self.driver, self.host = lab, driver, host

    def __call__(self, *words: str) -> CommandResult:
        return self.driver.run(self.host, ["curl", *words], check=False)

    @property
    def mirror(self) -> str:
        return str(self.lab.world.endpoints["k3s"]["mirror"])

    def cat(self, path: str) -> bytes:
        return self.driver.get(self.host, path)


@pytest.fixture
def curl(tmp_path: Path) -> Iterator[Curl]:
    with lab_hosts(tmp_path / "lab") as lab:
        host = lab.power_on(lab.machine())
        with lab.driver() as driver:
            driver.wait_for_ssh(host, 20)
            yield Curl(lab, driver, host)


def release(curl: Curl, file: str) -> bytes:
    return (curl.lab.directory / "k3s-release" / "v1.34.2+k3s1" / file).read_bytes()


def test_a_release_as_github_and_as_a_mirror_give_it_out(curl: Curl) -> None:
    for number, base in enumerate((f"{GITHUB}/{TAG}", f"{curl.mirror}/{TAG}")):
        path = f"/tmp/new-{number}/k3s"
        assert curl("-fsSL", "--create-dirs", "-o", path, f"{base}/k3s-arm64") == CommandResult(0, "", "")
        assert curl.cat(path) == release(curl, "k3s-arm64")
        sums = curl("-fsSL", f"{base}/sha256sum-arm64.txt").stdout
        assert f"{hashlib.sha256(curl.cat(path)).hexdigest()}  k3s-arm64\n" in sums
        images = f"/tmp/images-{number}"
        curl("-fsSL", "-o", images, f"{base}/k3s-airgap-images-arm64.tar.zst")
        assert f"{hashlib.sha256(curl.cat(images)).hexdigest()}  k3s-airgap-images-arm64.tar.zst\n" in sums
    assert curl("-fsSL", f"{RAW}/{TAG}/install.sh").stdout.encode() == release(curl, "install.sh")
    assert curl("-fsSL", f"{curl.mirror}/{TAG}/install.sh").stdout.encode() == release(curl, "install.sh")


def test_github_redirects_and_its_releases_hold_no_installer(curl: Curl) -> None:
    assert curl("-fsS", f"{GITHUB}/{TAG}/k3s") == CommandResult(0, "", ""), "without -L there is nothing to see"
    assert curl("-fsSL", f"{GITHUB}/{TAG}/install.sh").exit_status == 22


@pytest.mark.parametrize(
    ("url", "status", "said"),
    [
        (f"{GITHUB}/v9.9.9%2Bk3s1/k3s", 22, "curl: (22) The requested URL returned error: 404"),
        (f"{GITHUB}/{TAG}/k3s-mips", 22, "curl: (22) The requested URL returned error: 404"),
        (f"{RAW}/..%2F..%2F/install.sh", 22, "404"),
        ("https://example.org/k3s", 6, "curl: (6) Could not resolve host: example.org"),
        ("http://127.0.0.1:9/k3s", 7, "curl: (7) Failed to connect to 127.0.0.1 port 9"),
        ("ftp://github.com/k3s", 1, 'curl: (1) Protocol "ftp" not supported'),
    ],
)
def test_what_cannot_be_had(curl: Curl, url: str, status: int, said: str) -> None:
    result = curl("-fsSL", "-o", "/tmp/file", url)
    assert result.exit_status == status
    assert said in result.stderr
    assert curl.driver.run(curl.host, ["test", "-e", "/tmp/file"], check=False).exit_status == 1


def test_without_fail_an_error_page_is_content_and_silent_is_silent(curl: Curl) -> None:
    assert curl("-sL", f"{curl.mirror}/{TAG}/nothing") == CommandResult(0, "Not Found", "")
    assert curl("-fsL", f"{curl.mirror}/{TAG}/nothing") == CommandResult(22, "", "")
    assert curl("--fancy", "http://127.0.0.1/").exit_status == 2


def test_faults_of_the_release_server(curl: Curl) -> None:
    faults, url = curl.lab.world.faults, f"{curl.mirror}/{TAG}/k3s-arm64"
    faults.ask("release-damaged", 1, "k3s-arm64")
    curl("-fsSL", "-o", "/tmp/damaged", url)
    good, bad = release(curl, "k3s-arm64"), curl.cat("/tmp/damaged")
    assert len(bad) == len(good)
    assert bad != good
    faults.ask("release-missing", 1, "v1.34.2+k3s1/k3s-arm64")
    assert "404" in curl("-fsSL", url).stderr
    faults.ask("release-busy", 2)
    assert curl("-fsSL", "--retry", "2", "-o", "/tmp/late", url).exit_status == 0, "a 503 is asked again"
    assert curl.cat("/tmp/late") == good
    faults.ask("release-busy", 2)
    assert "503" in curl("-fsSL", "--retry", "1", url).stderr
    assert faults.active == []


def test_a_full_disk_and_a_folder_that_is_not_there(curl: Curl) -> None:
    url = f"{curl.mirror}/{TAG}/k3s-airgap-images-arm64.tar.zst"
    assert curl("-fsSL", "-o", "/tmp/no/such/folder", url).exit_status == 23
    curl.lab.world.faults.ask("disk-full", 1, f"{HOST} 9000")
    full = curl("-fsSL", "-o", "/tmp/images", url)
    assert (full.exit_status, full.stderr) == (23, "curl: (23) Failure writing output to destination\n")


def test_any_server_on_loopback_can_be_a_mirror(curl: Curl, tmp_path: Path) -> None:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "file").write_bytes(b"mine")
    handler = lambda *args: Quiet(*args, directory=str(tmp_path / "own"))  # noqa: E731
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert curl("-fsSL", f"http://127.0.0.1:{server.server_port}/file").stdout == "mine"
        server.shutdown()


def test_channels_lead_to_the_newest_release(curl: Curl) -> None:
    channels = str(curl.lab.world.endpoints["k3s"]["channels"])
    assert channel_version("stable", channels) == "v1.34.2+k3s1"
    write_release(curl.lab.directory / "k3s-release" / "v1.34.10+k3s1", "v1.34.10+k3s1")
    write_release(curl.lab.directory / "k3s-release" / "v1.33.9+k3s1", "v1.33.9+k3s1")
    assert channel_version("stable", channels) == "v1.34.10+k3s1"
    assert channel_version("v1.34", channels) == "v1.34.10+k3s1"
    assert channel_version("v1.33", channels) == "v1.33.9+k3s1"
    with pytest.raises(BadInput, match=r"no channel v1\.3"):
        channel_version("v1.3", channels)


def test_the_mirror_keeps_its_address_over_a_restart(tmp_path: Path) -> None:
    with lab_hosts(tmp_path / "lab") as lab:
        before = lab.world.endpoints["k3s"]["mirror"]
    with lab_hosts(tmp_path / "lab") as lab:
        assert lab.world.endpoints["k3s"]["mirror"] == before
