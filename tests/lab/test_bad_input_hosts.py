"""What is wrong with hosts, keys and accounts: each its own message and next move, and nothing done on the host."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from hosts_lab import LabHosts, lab_hosts
from life import Life

from hybridlab.cluster import Cluster
from hybridlab.drivers._oracle_calls import read_config
from hybridlab.drivers.ssh.connections import checked_sudo
from hybridlab.errors import AuthFailed, BadInput, HybridlabError, NotFound, Refused, StepFailed, Unreachable
from hybridlab.lab.hosts.k3s_release import write_release
from hybridlab.models import HostAddress
from hybridlab.params import read_params
from hybridlab.stages.bootstrap import k3s

VERSION = "v1.34.2+k3s1"
ADDRESS = "203.0.113.11"


@dataclass
class Own:
    """A machine of the lab as a host of one's own, and the params of a cluster on it."""

    lab: LabHosts
    folder: Path
    host: HostAddress

    def cluster(self, **settings: Any) -> Cluster:
        node = {"name": "arm-1", "role": "server", "arch": "arm64", "address": ADDRESS, "memory_gb": 6}
        bootstrap = {"ssh_key_file": str(self.lab.key), "k3s_source": str(self.folder / "k3s"), "k3s_version": VERSION}
        params = {"schema": 1, "cluster": "own", "site": "byo", "nodes": [node], "bootstrap": bootstrap}
        path = self.folder / "params" / "own.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(params), encoding="utf-8")
        found = read_params(path, settings)
        made = Cluster(found, root=self.folder, params_file=path, approvals=["all"], say=lambda line: None)
        made.site.dial = self.lab.dial  # type: ignore[method-assign]
        return made

    def run(self, **settings: Any) -> None:
        stage = self.cluster(**settings).stage("bootstrap")
        stage.gate()
        stage.apply()

    @property
    def known_hosts(self) -> Path:
        return self.folder / "state" / "own" / "known_hosts"

    def events(self, step: str) -> list[str]:
        return [row.event for row in self.cluster().ledger.rows() if row.step == step]

    def out(self, *argv: str) -> str:
        with self.lab.driver() as driver:
            return driver.run(self.host, list(argv), sudo=True, check=False).stdout

    def put(self, data: bytes | Path, path: str, mode: int = 0o644) -> None:
        with self.lab.driver() as driver:
            driver.put(self.host, data, path, mode=mode, sudo=True)


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Own]:
    with lab_hosts(tmp_path / "lab") as lab:
        made = Own(lab, tmp_path, lab.power_on(lab.machine()))
        write_release(tmp_path / "k3s", VERSION)
        with lab.driver() as driver:
            driver.wait_for_ssh(made.host, 20)
        yield made


def wrong_key(own: Own) -> dict[str, Any]:
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(own.folder / "other")
    return {"bootstrap.ssh_key_file": str(own.folder / "other")}


def locked_key(own: Own) -> dict[str, Any]:
    key = asyncssh.generate_private_key("ssh-ed25519")
    (own.folder / "locked").write_bytes(key.export_private_key("pkcs8-pem", passphrase="a secret"))
    return {"bootstrap.ssh_key_file": str(own.folder / "locked")}


def changed_host_key(own: Own) -> dict[str, Any]:
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode().strip()
    own.known_hosts.parent.mkdir(parents=True)
    own.known_hosts.write_text(f"{ADDRESS} {other}\n")
    return {}


def someone_elses_k3s(own: Own) -> dict[str, Any]:
    own.put(own.folder / "k3s" / "k3s-arm64", "/usr/local/bin/k3s", 0o755)
    return {}


def another_clusters(own: Own) -> dict[str, Any]:
    own.put(b"theirs\n", "/etc/hybridlab/cluster")
    return {}


Row = tuple[Callable[[Own], dict[str, Any]], type[HybridlabError], str, str]
BEFORE: dict[str, Row] = {
    "wrong key": (wrong_key, AuthFailed, "the host refused our key", "our public key is in its authorized_keys"),
    "key with a passphrase": (locked_key, BadInput, "the SSH key has a passphrase", "load it into ssh-agent"),
    "key that isn't there": (
        lambda own: {"bootstrap.ssh_key_file": "no-such-key"},
        BadInput,
        "the SSH key is not there",
        "name the key's file",
    ),
    "host down": (
        lambda own: {"nodes.arm-1.address": "203.0.113.99"},
        Unreachable,
        "no SSH connection",
        "check that the machine is on",
    ),
    "wrong user": (
        lambda own: {"bootstrap.ssh_user": "opc"},
        AuthFailed,
        "opc@203.0.113.11:22",
        "check that opc is the right user",
    ),
    "host key changed": (
        changed_host_key,
        AuthFailed,
        "the host's key is not the one we know",
        "if the machine was reinstalled on purpose, remove its line",
    ),
    "wrong architecture": (
        lambda own: {"nodes.arm-1.arch": "amd64"},
        BadInput,
        "the host is arm64, the params say amd64",
        "correct nodes[].arch, or leave it out",
    ),
    "K3s of someone else": (
        someone_elses_k3s,
        BadInput,
        "K3s is there already, put there by someone else",
        "uninstall it (k3s-uninstall.sh)",
    ),
    "host of another cluster": (
        another_clusters,
        BadInput,
        "the host belongs to cluster theirs",
        "take it out of that one first",
    ),
    "name that nobody knows": (
        lambda own: {"nodes.arm-1.address": "pi-1.invalid"},
        BadInput,
        "the host's name is not known here",
        "give the host's IP address",
    ),
}


@pytest.mark.parametrize("case", BEFORE)
def test_said_before_anything_is_done(own: Own, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = socket.getaddrinfo

    def getaddrinfo(host: Any, *rest: Any, **options: Any) -> Any:
        if str(host).endswith(".invalid"):  # without a question to anybody's name server
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return ask(host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    spoil, kind, what, move = BEFORE[case]
    settings = spoil(own)
    before = own.out("ls", "-A", "/etc", "/opt", "/usr/local/bin")
    with pytest.raises(kind) as caught:
        own.run(**settings)
    assert what in str(caught.value)
    assert move in caught.value.next_move
    assert own.out("ls", "-A", "/etc", "/opt", "/usr/local/bin") == before
    steps = [r for r in own.cluster().ledger.rows() if r.step and r.step != "first-contact"]
    assert steps == [], "no step began"


def test_a_checksum_that_does_not_match_installs_nothing(own: Own) -> None:
    with (own.folder / "k3s" / "k3s-arm64").open("ab") as file:
        file.write(b"\n")
    with pytest.raises(StepFailed) as caught:
        own.run()
    assert isinstance(caught.value.__cause__, Refused)
    assert "does not have the release's checksum" in caught.value.why
    assert "check bootstrap.k3s_source; nothing was installed" in caught.value.next_move
    assert own.out("ls", "/usr/local/bin") == ""
    assert own.events("install:arm-1") == ["started", "failed"]


def test_a_full_disk(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    own.lab.world.faults.ask("disk-full", 1, "arm-1")
    with pytest.raises(StepFailed) as caught:
        own.run()
    assert "the host's disk is full" in caught.value.why
    assert "free space on the host" in caught.value.next_move
    assert own.events("mark:arm-1") == ["started", "failed"]
    assert own.out("ls", "-A", "/tmp") == ""
    own.out("rm", "/var/log/filler")
    monkeypatch.setattr(k3s, "SERVER_DEADLINE_S", 1.0)
    with pytest.raises(StepFailed, match=r"save-kubeconfig|install:arm-1"):
        own.run()  # this lab has no Kubernetes: K3s comes as far as it can
    assert own.events("mark:arm-1")[2:] == ["started", "done"]


def test_k3s_of_ours_with_other_settings_is_said_in_the_plan(own: Own) -> None:
    """Not refused: it is ours, and the plan names each setting that it would change."""
    own.put(b"own\n", "/etc/hybridlab/cluster")
    own.put(own.folder / "k3s" / "k3s-arm64", "/usr/local/bin/k3s", 0o755)
    own.put(b"[Service]\n", "/etc/systemd/system/k3s.service")
    cluster = own.cluster()
    other = k3s.wanted_config(cluster.params, cluster.params.server, ADDRESS, ADDRESS, ADDRESS)
    own.put(k3s.dump_config({**other, "flannel-backend": "wireguard-native"}, "token"), k3s.CONFIG, 0o600)
    step = next(s for s in cluster.stage("bootstrap").plan().steps if s.action == "configure")
    assert step.why == "settings differ: flannel-backend"


@pytest.mark.parametrize(
    ("status", "stderr", "what", "move"),
    [
        (1, b"sudo: a password is required", "sudo wants a password, or another one", "HYBRIDLAB_SUDO_PASSWORD"),
        (1, b"sudo: 1 incorrect password attempt", "sudo wants a password, or another one", "allow NOPASSWD"),
        (1, b"guest is not in the sudoers file.", "sudo does not let this user be root", "to the group sudo"),
        (127, b"bash: line 1: sudo: command not found", "there is no sudo on the host", "apt-get install sudo"),
    ],
)
def test_what_sudo_says(status: int, stderr: bytes, what: str, move: str) -> None:
    with pytest.raises(AuthFailed) as caught:
        checked_sudo(HostAddress("arm-1", ADDRESS, "guest"), True, (status, b"", stderr))
    assert caught.value.what == what
    assert move in caught.value.next_move
    assert f"guest@{ADDRESS}" in caught.value.where


def test_a_commands_own_failure_is_not_taken_for_sudos() -> None:
    found = (1, b"", b"grep: password: No such file")
    assert checked_sudo(HostAddress("arm-1", ADDRESS), True, found) == found
    assert checked_sudo(HostAddress("arm-1", ADDRESS), False, (1, b"", b"sudo: a password is required"))[0] == 1


def test_an_oracle_config_file_without_the_profile(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("[DEFAULT]\nuser=ocid1.user.oc1..a\n")
    with pytest.raises(BadInput, match=r"no profile \[WORK\]") as caught:
        read_config(str(tmp_path / "config"), "WORK")
    assert str(tmp_path / "config") in str(caught.value)
    assert caught.value.next_move


def test_a_compartment_that_does_not_exist(life: Life) -> None:
    wrong = "ocid1.compartment.oc1..nowhere"
    with pytest.raises(NotFound) as caught:
        life.cluster(f"oracle.compartment={wrong}").stage("provision").plan()
    assert "NotAuthorizedOrNotFound" in str(caught.value)
    assert wrong in str(caught.value)
    assert "the id is wrong" in caught.value.next_move
    assert not [r for r in life.ledger() if r.step]
