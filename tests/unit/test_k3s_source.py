"""Where K3s comes from: channels, and the archive of images for hosts without a registry."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeContext, FakeHosts, make_params

from hybridlab.errors import BadInput, CommandFailed, HybridlabError, NotFound, Refused, Unreachable
from hybridlab.models import CommandResult, HostAddress
from hybridlab.sites import channel_version, is_version
from hybridlab.stages.bootstrap import k3s
from hybridlab.stages.bootstrap.download import download
from hybridlab.stages.nodes import NodeHost

VERSION = "v1.34.2+k3s1"
ARCHIVE = "k3s-airgap-images-arm64.tar.zst"


class Channels(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/stable":
            self.send_response(302)
            self.send_header("Location", "https://github.com/k3s-io/k3s/releases/tag/v1.34.2%2Bk3s1")
        else:
            self.send_response(404 if self.path == "/none" else 200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def channels() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Channels) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_channel_leads_to_a_version(channels: str) -> None:
    assert channel_version("stable", channels) == VERSION
    with pytest.raises(BadInput, match="no channel none"):
        channel_version("none", channels)
    with pytest.raises(Unreachable, match="names no version"):
        channel_version("odd", channels)
    with pytest.raises(Unreachable, match="could not be asked"):
        channel_version("stable", "http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("text", "is_one"), [(VERSION, True), ("v1.34.0-rc1+k3s1", True), ("v1.34", False), ("stable", False)]
)
def test_what_is_a_version(text: str, is_one: bool) -> None:
    assert is_version(text) is is_one


class Release:
    """A folder with a release, and a host that computes checksums of what it was given."""

    def __init__(self, tmp_path: Path, *, images: bytes | None = b"images", listed: bytes = b"images") -> None:
        folder = tmp_path / "release"
        folder.mkdir()
        (folder / "k3s-arm64").write_bytes(b"binary")
        (folder / "install.sh").write_text("#!/bin/sh\n")
        lines = [(b"binary", "k3s-arm64"), (listed, ARCHIVE)]
        sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for data, name in lines)
        (folder / "sha256sum-arm64.txt").write_text(sums)
        if images is not None:
            (folder / ARCHIVE).write_bytes(images)
        self.folder = folder
        self.hosts = FakeHosts(self.answer)

    def answer(self, name: str, argv: tuple[str, ...]) -> tuple[int, str]:
        if argv[0] == "sha256sum":
            return 0, f"{hashlib.sha256(self.hosts.files[name, argv[1]]).hexdigest()}  {argv[1]}\n"
        return 0, ""

    def put(self, tmp_path: Path, **settings: Any) -> Any:
        ctx = FakeContext(tmp_path, make_params(settings), hosts=self.hosts)
        ctx.site.k3s_source = lambda: (str(self.folder), VERSION)
        host = HostAddress("arm-1", "198.51.100.1")
        return k3s.put_release(ctx, NodeHost(ctx.params.server, host, "10.0.0.11", host.address))

    def ran(self, program: str) -> list[tuple[str, ...]]:
        return [argv for _, argv in self.hosts.ran if argv[0] == program]


def test_a_folder_with_images_brings_them(tmp_path: Path) -> None:
    release = Release(tmp_path)
    assert k3s.images_in(str(release.folder)) == ("arm64",)
    assert release.put(tmp_path)["images"] == ARCHIVE
    assert release.ran("mv") == [("mv", "-f", f"/opt/hybridlab/{ARCHIVE}", f"{k3s.IMAGES_FOLDER}/{ARCHIVE}")]


def test_a_folder_without_images(tmp_path: Path) -> None:
    release = Release(tmp_path, images=None)
    assert "images" not in release.put(tmp_path)
    assert release.ran("mv") == []
    with pytest.raises(BadInput, match="images of the K3s release are missing"):
        release.put(tmp_path, **{"bootstrap.airgap_images": True})


def test_spoiled_images_install_nothing(tmp_path: Path) -> None:
    release = Release(tmp_path, listed=b"other")
    with pytest.raises(Refused, match="images do not have the release's checksum"):
        release.put(tmp_path)
    assert release.ran("install") == []
    assert release.ran("rm") == [("rm", "-f", f"/opt/hybridlab/{ARCHIVE}")], "K3s would load it"


def test_a_mirror_serves_images_when_asked_for(tmp_path: Path) -> None:
    assert k3s.images_in("https://mirror.example/k3s") == ()


# -- a host that fetches it itself -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("status", "said", "kind", "what", "move"),
    [
        (22, "curl: (22) The requested URL returned error: 404", NotFound, "has no such file", "bootstrap.k3s_version"),
        (22, "curl: (22) The requested URL returned error: 503", CommandFailed, "refused a file", "run it again later"),
        (6, "curl: (6) Could not resolve host: mirror", CommandFailed, "by name", "check DNS on the host"),
        (7, "curl: (7) Failed to connect", CommandFailed, "reaches nobody", "a folder as bootstrap.k3s_source"),
        (23, "curl: (23) Failure writing output", CommandFailed, "disk is full", "free space on the host"),
        (28, "curl: (28) Operation timed out", CommandFailed, "took too long", "run it again"),
        (60, "curl: (60) SSL certificate problem", CommandFailed, "does not trust", "ca-certificates"),
        (127, "sudo: curl: command not found", CommandFailed, "no curl", "apt-get install curl"),
        (99, "curl: (99) something new", CommandFailed, "curl failed", "a folder as bootstrap.k3s_source"),
    ],
)
def test_what_curl_says_is_told_with_a_next_move(
    tmp_path: Path, status: int, said: str, kind: type[HybridlabError], what: str, move: str
) -> None:
    hosts = FakeHosts()
    hosts.run = lambda *_, **options: CommandResult(status, "", said)  # type: ignore[method-assign]
    url = "https://mirror.example/k3s/v1.34.2%2Bk3s1/k3s-arm64"
    with pytest.raises(kind) as caught:
        download(FakeContext(tmp_path, hosts=hosts), HostAddress("arm-1", "198.51.100.1"), url, "/opt/x")
    assert what in caught.value.what
    assert move in caught.value.next_move
    assert said in caught.value.why
    assert caught.value.where == f"arm-1: {url}"
