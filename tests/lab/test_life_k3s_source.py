"""K3s from a URL, and disks that are full: both kinds of source, what goes wrong told, and the next run finishes."""

from __future__ import annotations

from pathlib import Path

import pytest
from life import NODES, Life, ready

from hybridlab.errors import BadInput, CommandFailed, NotFound, Refused, StepFailed
from hybridlab.lab.hosts.k3s_release import write_release
from hybridlab.stages.nodes import need_host

GITHUB = "bootstrap.k3s_source=https://github.com/k3s-io/k3s/releases/download"


@pytest.fixture(scope="module")
def provisioned(life: Life) -> Life:
    life.make("provision")
    return life


def events(life: Life, step: str, since: int = 0) -> list[str]:
    return [row.event for row in life.ledger()[since:] if row.step == step]


def failed(life: Life, *sets: str) -> StepFailed:
    with pytest.raises(StepFailed) as caught:
        life.make("bootstrap", sets=sets)
    assert caught.value.next_move
    return caught.value


def out(life: Life, name: str, *argv: str) -> str:
    cluster = life.cluster()
    return cluster.hosts.run(need_host(cluster, name).host, argv, sudo=True, check=False).stdout


def test_a_full_disk_is_told_and_the_next_run_finishes(provisioned: Life) -> None:
    """Not a byte left on one host, and too few for a swap file on another; the others' steps are finished."""
    life = provisioned
    life.fault("disk-full", match="arm-2")
    error = failed(life)
    assert "mark:arm-2 failed" in error.what
    assert "the host's disk is full" in error.why
    assert "free space on the host (df -h;" in error.next_move
    assert events(life, "mark:arm-2") == ["started", "failed"]
    assert events(life, "mark:arm-1") == ["started", "done"]
    assert out(life, "arm-2", "ls", "-A", "/tmp") == "", "nothing half written stays"
    assert out(life, "arm-2", "ls", "/etc/hybridlab") == ""
    out(life, "arm-2", "rm", "/var/log/filler")
    life.fault("disk-full", match="amd-1 5000000")
    again = failed(life)
    assert "swap:amd-1 failed" in again.what
    assert "the host's disk is full" in again.why
    assert again.next_move == error.next_move
    assert events(life, "mark:arm-2")[2:] == ["started", "done"]
    assert events(life, "swap:amd-1") == ["started", "failed"]
    out(life, "amd-1", "rm", "/var/log/filler")


def test_a_file_that_the_source_does_not_have(provisioned: Life) -> None:
    error = failed(provisioned, GITHUB, "bootstrap.k3s_version=v1.34.9+k3s1")
    assert isinstance(error.__cause__, NotFound)
    assert "the K3s source has no such file" in error.why
    assert "v1.34.9%2Bk3s1/k3s-arm64" in error.why
    assert "bootstrap.k3s_version" in error.next_move
    assert out(provisioned, "arm-1", "ls", "/usr/local/bin") == ""


def test_a_damaged_download_installs_nothing(provisioned: Life) -> None:
    since = len(provisioned.ledger())
    provisioned.fault("release-damaged", match="k3s-arm64")
    error = failed(provisioned, GITHUB)
    assert isinstance(error.__cause__, Refused)
    assert "does not have the release's checksum" in error.why
    assert "nothing was installed" in error.next_move
    assert events(provisioned, "install:arm-1", since) == ["started", "failed"]
    assert out(provisioned, "arm-1", "ls", "/usr/local/bin") == ""
    assert provisioned.faults_left() == []


def test_a_source_that_hosts_cannot_reach(provisioned: Life) -> None:
    error = failed(provisioned, "bootstrap.k3s_source=http://127.0.0.1:9/k3s")
    assert isinstance(error.__cause__, CommandFailed)
    assert "the host reaches nobody at the K3s source" in error.why
    assert "a folder as bootstrap.k3s_source" in error.next_move
    error = failed(provisioned, "bootstrap.k3s_source=https://mirror.example/k3s")
    assert "the host does not know the K3s source by name" in error.why


def test_a_download_that_fills_the_disk(provisioned: Life) -> None:
    """Room for the binary, not for the images."""
    provisioned.fault("disk-full", match="arm-1 30000")
    error = failed(provisioned, GITHUB, "bootstrap.airgap_images=true")
    assert "the host could not write the download: its disk is full" in error.why
    assert "free space on the host" in error.next_move
    out(provisioned, "arm-1", "rm", "/var/log/filler")


def test_from_github_with_images_then_a_newer_one_from_a_mirror_by_channel(provisioned: Life) -> None:
    life = provisioned
    life.fault("release-busy", count=2, match="k3s-arm64")
    life.make("bootstrap", sets=(GITHUB, "bootstrap.airgap_images=true"))
    assert life.faults_left() == [], "a server that is busy is asked again"
    assert {name: ready(node) for name, node in life.nodes().items()} == dict.fromkeys(NODES, True)
    for name, archive in (("arm-1", "arm64"), ("amd-1", "amd64")):
        found = out(life, name, "ls", "/var/lib/rancher/k3s/agent/images")
        assert found == f"k3s-airgap-images-{archive}.tar.zst\n"
    row = next(r for r in life.ledger() if r.step == "install:arm-1" and r.event == "done")
    assert row.detail["images"] == "k3s-airgap-images-arm64.tar.zst"
    write_release(life.lab_dir / "k3s-release" / "v1.34.3+k3s1", "v1.34.3+k3s1")
    mirror = f"bootstrap.k3s_source={life.lab.endpoints['k3s']['mirror']}"
    done = life.make("bootstrap", sets=(mirror, "bootstrap.k3s_version=stable"))
    assert {n.version for n in done.cluster.kube.nodes()} == {"v1.34.3+k3s1"}
    assert not done.cluster.stage("bootstrap").plan().steps


def test_a_channel_that_nobody_has(provisioned: Life) -> None:
    with pytest.raises(BadInput, match=r"K3s has no channel v1\.99") as caught:
        provisioned.cluster("bootstrap.k3s_version=v1.99").stage("bootstrap").plan()
    assert "bootstrap.k3s_version" in caught.value.next_move


def test_a_folder_that_lacks_a_file(provisioned: Life, tmp_path: Path) -> None:
    write_release(tmp_path, "v1.34.4+k3s1")
    (tmp_path / "install.sh").unlink()
    sets = (f"bootstrap.k3s_source={tmp_path}", "bootstrap.k3s_version=v1.34.4+k3s1")
    error = failed(provisioned, *sets)
    assert "a file of the K3s release is missing" in error.why
    assert "docs/k3s.md" in error.next_move
