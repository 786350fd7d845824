"""What goes wrong on real machines: each with its own message and next move, and nothing half done."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from byo import Home, Machine
from k3s_release import release
from machines import BOOT_DEADLINE_S, LiveMachine, LiveMachines
from mirror import mirror

from hybridlab.drivers.ssh import SshHosts
from hybridlab.errors import AuthFailed, BadInput, HybridlabError, StepFailed, Unreachable

PASSWORD = "correct horse battery"


@pytest.fixture(scope="module")
def solo(rig: LiveMachines, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine of its own for what goes wrong; ``admin`` may use sudo with a password, ``guest`` may not."""
    machine = rig.add(["solo"])[0]
    with SshHosts(lambda h, p: (h, p), tmp_path_factory.mktemp("solo") / "known_hosts", rig.key) as driver:
        driver.wait_for_ssh(machine.host, BOOT_DEADLINE_S)
        made = Machine(machine, driver)
        for user in ("admin", "guest"):
            driver.run(machine.host, ["useradd", "-m", "-s", "/bin/bash", user], sudo=True)
            driver.run(machine.host, ["chpasswd"], sudo=True, stdin=f"{user}:{PASSWORD}\n".encode())
            driver.run(machine.host, ["cp", "-r", "/home/ubuntu/.ssh", f"/home/{user}/"], sudo=True)
            driver.run(machine.host, ["chown", "-R", user, f"/home/{user}/.ssh"], sudo=True)
        driver.run(machine.host, ["usermod", "-aG", "sudo", "admin"], sudo=True)
        yield made


@pytest.fixture
def home(solo: Machine, rig: LiveMachines, tmp_path: Path) -> Iterator[Home]:
    """A cluster of that one machine; what a test left on it is undone."""
    source, version = release(tmp_path / "k3s")
    made = Home(tmp_path, "solo", [solo.machine], rig.key, source, version)
    yield made
    if solo.is_there("/etc/hybridlab"):
        Home(tmp_path, "solo", [solo.machine], rig.key, source, version).run("teardown")


def refused(home: Home, kind: type[HybridlabError], **settings: Any) -> str:
    with pytest.raises(kind) as caught:
        home.run("bootstrap", **settings)
    assert caught.value.next_move, f"no next move in: {caught.value}"
    return str(caught.value)


def untouched(solo: Machine) -> bool:
    paths = ("/etc/hybridlab", "/usr/local/bin/k3s", "/etc/rancher", "/opt/hybridlab")
    return not any(solo.is_there(path) for path in paths)


def test_wrong_key(home: Home, solo: Machine, tmp_path: Path) -> None:
    key = asyncssh.generate_private_key("ssh-ed25519")
    key.write_private_key(tmp_path / "other")
    said = refused(home, AuthFailed, **{"bootstrap.ssh_key_file": str(tmp_path / "other")})
    assert "the host refused our key" in said
    assert key.get_fingerprint() in said
    assert "authorized_keys" in said
    assert untouched(solo)


def test_a_key_with_a_passphrase(home: Home, solo: Machine, tmp_path: Path) -> None:
    solo.out("ssh-keygen", "-q", "-t", "ed25519", "-N", "a secret", "-f", "/var/tmp/locked")
    (tmp_path / "locked").write_text(solo.out("cat", "/var/tmp/locked"))
    solo.out("rm", "-f", "/var/tmp/locked", "/var/tmp/locked.pub")
    said = refused(home, BadInput, **{"bootstrap.ssh_key_file": str(tmp_path / "locked")})
    assert "the SSH key has a passphrase" in said
    assert "ssh-agent" in said


def test_no_such_key(home: Home, tmp_path: Path) -> None:
    said = refused(home, BadInput, **{"bootstrap.ssh_key_file": str(tmp_path / "missing")})
    assert "the SSH key is not there" in said
    assert str(tmp_path / "missing") in said


def test_wrong_user(home: Home) -> None:
    said = refused(home, AuthFailed, **{"bootstrap.ssh_user": "opc"})
    assert "opc is the right user" in said


def test_host_down(home: Home, rig: LiveMachines) -> None:
    said = refused(home, Unreachable, **{"nodes.solo.address": rig.address(250)})
    assert "no SSH connection" in said
    assert rig.address(250) in said
    assert "the machine is on" in said


def test_host_key_changed(home: Home, solo: Machine) -> None:
    known = home.folder / "state/solo/known_hosts"
    known.parent.mkdir(parents=True)
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode().strip()
    known.write_text(f"{solo.machine.address} {other}\n")
    said = refused(home, AuthFailed)
    assert "the host's key is not the one we know" in said
    assert str(known) in said
    assert untouched(solo)


def test_sudo_wants_a_password(home: Home, solo: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HYBRIDLAB_SUDO_PASSWORD", raising=False)
    admin = {"bootstrap.ssh_user": "admin"}
    said = refused(home, AuthFailed, **admin)
    assert "sudo wants a password" in said
    assert "HYBRIDLAB_SUDO_PASSWORD" in said
    monkeypatch.setenv("HYBRIDLAB_SUDO_PASSWORD", "wrong")
    assert "sudo wants a password, or another one" in refused(home, AuthFailed, **admin)
    assert untouched(solo)
    monkeypatch.delenv("HYBRIDLAB_SUDO_PASSWORD")
    (tmp_path / "password").write_text(PASSWORD + "\n")
    home.run("bootstrap", **admin, **{"bootstrap.sudo_password_file": str(tmp_path / "password")})
    assert solo.out("systemctl", "is-active", "k3s") == "active\n"
    everything = "".join(path.read_text() for path in (home.folder / "state").rglob("*") if path.is_file())
    assert PASSWORD not in everything + solo.out("journalctl", "--no-pager")


def test_a_user_who_may_not_be_root(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRIDLAB_SUDO_PASSWORD", PASSWORD)
    said = refused(home, AuthFailed, **{"bootstrap.ssh_user": "guest"})
    assert "sudo does not let this user be root" in said
    assert "group sudo" in said


def test_wrong_architecture(home: Home, solo: Machine) -> None:
    said = refused(home, BadInput, **{"nodes.solo.arch": "arm64"})
    assert "the host is amd64, the params say arm64" in said
    assert untouched(solo)


def test_checksum_mismatch(home: Home, solo: Machine, tmp_path: Path) -> None:
    spoiled = shutil.copytree(home.source, tmp_path / "spoiled")
    with (spoiled / "k3s").open("ab") as file:
        file.write(b"\n")
    with pytest.raises(StepFailed) as caught:
        home.run("bootstrap", **{"bootstrap.k3s_source": str(spoiled)})
    said = str(caught.value)
    assert "does not have the release's checksum" in said
    assert "bootstrap.k3s_source" in said
    assert not solo.is_there("/usr/local/bin/k3s")
    assert [r["event"] for r in home.ledger() if r["step"] == "install:solo"] == ["started", "failed"]


def test_a_file_of_the_release_is_missing(home: Home, tmp_path: Path) -> None:
    part = shutil.copytree(home.source, tmp_path / "part")
    (part / "install.sh").unlink()
    with pytest.raises(StepFailed) as caught:
        home.run("bootstrap", **{"bootstrap.k3s_source": str(part)})
    assert "install.sh" in str(caught.value)


@pytest.fixture
def web(home: Home, rig: LiveMachines) -> Iterator[tuple[str, Path]]:
    """The release on a web server that the machine reaches: the source's URL, and the folder of the version."""
    root = home.folder / "mirror"
    made = shutil.copytree(home.source, root / home.version)
    with mirror(root, rig.address(1)) as url:
        yield url, made


def test_k3s_from_a_web_server(home: Home, solo: Machine, web: tuple[str, Path]) -> None:
    source = {"bootstrap.k3s_source": web[0]}
    home.run("bootstrap", **source)
    assert solo.out("systemctl", "is-active", "k3s") == "active\n"
    assert home.plan("bootstrap", **source).steps == ()


def _install_fails(home: Home, solo: Machine, source: str) -> str:
    with pytest.raises(StepFailed) as caught:
        home.run("bootstrap", **{"bootstrap.k3s_source": source})
    assert caught.value.next_move
    assert not solo.is_there("/usr/local/bin/k3s")
    assert [r["event"] for r in home.ledger() if r["step"] == "install:solo"][-2:] == ["started", "failed"]
    return str(caught.value)


def test_a_web_server_that_gives_out_something_else_or_nothing(
    home: Home, solo: Machine, web: tuple[str, Path], rig: LiveMachines
) -> None:
    url, folder = web
    with (folder / "k3s").open("ab") as file:
        file.write(b"\n")
    assert "does not have the release's checksum" in _install_fails(home, solo, url)
    (folder / "k3s").unlink()
    said = _install_fails(home, solo, url)
    assert "the K3s source has no such file" in said
    assert "bootstrap.k3s_version" in said
    assert "reaches nobody at the K3s source" in _install_fails(home, solo, f"http://{rig.address(1)}:9/k3s")
    said = _install_fails(home, solo, "http://mirror.invalid/k3s")
    assert "does not know the K3s source by name" in said
    assert "a folder as bootstrap.k3s_source" in said


def test_a_download_that_fills_the_disk(home: Home, solo: Machine, web: tuple[str, Path]) -> None:
    url, folder = web
    with (folder / "k3s").open("ab") as file:
        file.truncate(32 << 20)
    free = int(solo.out("df", "--output=avail", "-B1", "/").split()[1])
    solo.out("fallocate", "-l", str(free - (4 << 20)), "/filler")
    try:
        said = _install_fails(home, solo, url)
        assert "the host could not write the download: its disk is full" in said
        assert "free space on the host" in said
    finally:
        solo.out("rm", "-f", "/filler")


def test_a_name_that_nobody_knows(home: Home, solo: Machine) -> None:
    said = refused(home, BadInput, **{"nodes.solo.address": "solo.invalid"})
    assert "the host's name is not known here" in said
    assert "solo.invalid" in said
    assert "nodes[].address" in said
    assert untouched(solo)


def test_k3s_with_other_settings_is_told_before_it_is_changed(home: Home, solo: Machine) -> None:
    home.run("bootstrap")
    plan = home.plan("bootstrap", **{"bootstrap.traefik": True})
    assert [(s.id, s.why) for s in plan.steps] == [("configure:solo", "settings differ: disable")]


def test_disk_full_then_room_again(home: Home, solo: Machine) -> None:
    free = int(solo.out("df", "--output=avail", "-B1", "/").split()[1])
    solo.out("fallocate", "-l", str(free - (8 << 10)), "/filler")
    try:
        with pytest.raises(StepFailed) as caught:
            home.run("bootstrap")
        assert "disk is full" in str(caught.value)
        assert "free space on the host" in str(caught.value)
    finally:
        solo.out("rm", "-f", "/filler")
    home.run("bootstrap")
    assert home.plan("bootstrap").steps == ()


def test_k3s_of_someone_else(home: Home, solo: Machine) -> None:
    binary = home.source / "k3s"
    solo.driver.put(solo.machine.host, binary, "/usr/local/bin/k3s", mode=0o755, sudo=True)
    try:
        said = refused(home, BadInput)
        assert "K3s is there already, put there by someone else" in said
        assert "k3s-uninstall.sh" in said
        assert not solo.is_there("/etc/hybridlab")
    finally:
        solo.out("rm", "-f", "/usr/local/bin/k3s")


def test_a_host_of_another_cluster(home: Home, solo: Machine) -> None:
    solo.driver.put(solo.machine.host, b"theirs\n", "/etc/hybridlab/cluster", sudo=True)
    try:
        assert "the host belongs to cluster theirs" in refused(home, BadInput)
        home.run("teardown")
        assert solo.out("cat", "/etc/hybridlab/cluster") == "theirs\n", "what is not ours is left alone"
    finally:
        solo.out("rm", "-rf", "/etc/hybridlab")


def test_the_token_of_another_cluster_is_noticed(home: Home, solo: Machine) -> None:
    home.run("bootstrap")
    machine: LiveMachine = solo.machine
    config = solo.out("cat", "/etc/rancher/k3s/config.yaml")
    assert "token: " in config
    (home.folder / "state/solo/kubeconfig").write_text("nonsense: [")
    with pytest.raises(BadInput, match="kubeconfig can't be used"):
        home.plan("bootstrap")
    (home.folder / "state/solo/kubeconfig").unlink()
    assert [s.id for s in home.plan("bootstrap").steps] == ["save-kubeconfig"]
    home.run("bootstrap")
    assert machine.address in (home.folder / "state/solo/kubeconfig").read_text()
