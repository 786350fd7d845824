"""A real host reached by name, on another port, as another user, with a key of its own; its architecture found."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from byo import Home, Machine
from k3s_release import release
from machines import BOOT_DEADLINE_S, LiveMachines, until

from hybridlab.drivers.ssh import SshHosts
from hybridlab.stages.bootstrap.k3s import read_config

NAME = "named.home.arpa"
PORT = 2222


@pytest.fixture
def named(rig: LiveMachines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Home, Machine]]:
    """A machine that only its own key opens as ``pi`` on port 2222, and a cluster on it by name."""
    machine = rig.add(["named"])[0]
    key = asyncssh.generate_private_key("ssh-ed25519")
    key.write_private_key(tmp_path / "own-key")
    ask = socket.getaddrinfo

    def getaddrinfo(host: Any, *rest: Any, **options: Any) -> Any:
        return ask(machine.address if host == NAME else host, *rest, **options)

    with SshHosts(lambda h, p: (h, p), tmp_path / "known_hosts", rig.key) as driver:
        driver.wait_for_ssh(machine.host, BOOT_DEADLINE_S)
        made = Machine(machine, driver)
        made.out("useradd", "-m", "-s", "/bin/bash", "pi")
        made.out("mkdir", "-p", "/home/pi/.ssh")
        public = key.export_public_key()
        driver.put(machine.host, public, "/home/pi/.ssh/authorized_keys", mode=0o600, sudo=True)
        made.out("chown", "-R", "pi", "/home/pi/.ssh")
        driver.put(machine.host, b"pi ALL=(ALL) NOPASSWD:ALL\n", "/etc/sudoers.d/91-pi", mode=0o440, sudo=True)
        made.out("/usr/sbin/sshd", "-p", str(PORT))
        made.out("iptables", "-I", "INPUT", "-p", "tcp", "--dport", str(PORT), "-j", "ACCEPT")
        until(lambda: f":{PORT}" in made.out("ss", "-ltnH"), "the other sshd listens")
        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        source, version = release(tmp_path / "k3s")
        own = {"address": NAME, "port": PORT, "user": "pi", "key_file": str(tmp_path / "own-key"), "arch": None}
        yield Home(tmp_path, "named", [machine], rig.key, source, version, nodes={"named": own}), made


def test_a_host_by_name_with_a_port_user_and_key_of_its_own(named: tuple[Home, Machine]) -> None:
    home, host = named
    plan = home.plan("bootstrap")
    said = {f.text for f in plan.findings if f.subject == "named"}
    address = host.machine.address
    assert f"{NAME} is {address} as seen from here, and the nodes reach it there" in said
    assert "the host is amd64, found by looking (uname says x86_64)" in said
    home.run("bootstrap")
    config = read_config(host.out("cat", "/etc/rancher/k3s/config.yaml"))
    assert config["node-ip"] == address
    assert config["tls-san"] == [address, NAME]
    assert f"server: https://{NAME}:6443" in (home.folder / "state/named/kubeconfig").read_text()
    assert home.open().kube.nodes()[0].ready, "the API is reached by its name, which its certificate has"
    assert (home.folder / "state/named/known_hosts").read_text().startswith(f"[{NAME}]:{PORT} ssh-ed25519 ")
    assert home.plan("bootstrap").steps == ()
    home.run("teardown")
    assert not host.is_there("/etc/hybridlab")
