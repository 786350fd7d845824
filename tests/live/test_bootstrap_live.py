"""030 and 900 on three real machines: what bootstrap changes, what it leaves, what a reboot keeps, what undo undoes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from byo import Home, Machine
from k3s_release import NEWER, real_source, release, write_standin
from machines import BOOT_DEADLINE_S, LiveMachines, until

from hybridlab.drivers.ssh import SshHosts
from hybridlab.errors import BadInput, HybridlabError, StepFailed

RULES = "/etc/iptables/rules.v4"
REJECTS = [
    "-A INPUT -j REJECT --reject-with icmp-host-prohibited",
    "-A FORWARD -j REJECT --reject-with icmp-host-prohibited",
]


@dataclass
class Before:
    live: list[str]
    saved: str


@dataclass
class Lab:
    home: Home
    hosts: list[Machine]
    before: list[Before]

    @property
    def server(self) -> Machine:
        return self.hosts[0]

    @property
    def small(self) -> Machine:
        return self.hosts[-1]


@pytest.fixture(scope="module")
def lab(machines: LiveMachines, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Three machines as the image made them, and a cluster on them that is not there yet."""
    folder = tmp_path_factory.mktemp("byo")
    source, version = release(folder / "k3s")
    found = [machines[name] for name in ("amd-1", "amd-2", "amd-3")]
    home = Home(folder, "live", found, machines.key, source, version)
    with SshHosts(lambda host, port: (host, port), folder / "known_hosts", machines.key) as driver:
        for machine in found:
            driver.wait_for_ssh(machine.host, BOOT_DEADLINE_S)
        hosts = [Machine(machine, driver) for machine in found]
        before = [Before(h.rules(), h.out("cat", RULES)) for h in hosts]
        yield Lab(home, hosts, before)


@pytest.fixture
def built(lab: Lab) -> Lab:
    """The cluster, up; made by the first test that wants it."""
    if lab.home.plan("bootstrap").changes:
        lab.home.run("bootstrap")
    return lab


def test_exactly_two_rules_go_live_and_in_the_file(built: Lab) -> None:
    for host, before in zip(built.hosts, built.before, strict=True):
        assert [line for line in before.live if line not in host.rules()] == REJECTS
        assert [line for line in host.rules() if line not in before.live] == []
        saved = host.out("cat", RULES)
        assert saved == "".join(line for line in before.saved.splitlines(True) if line.strip() not in REJECTS)
        assert "KUBE" not in saved, "K3s' own chains must not be frozen into the file"
        assert sum("InstanceServices" in line for line in host.rules()) == 17
        assert host.out("stat", "-c", "%a %U", RULES) == "640 root\n"


def test_originals_and_marker_are_kept(built: Lab) -> None:
    for host, before in zip(built.hosts, built.before, strict=True):
        assert host.out("cat", "/etc/hybridlab/cluster") == "live\n"
        assert host.out("cat", "/etc/hybridlab/original/rules.v4") == before.saved


def test_settings_and_secrets_are_for_root_alone(built: Lab) -> None:
    for host in built.hosts:
        assert host.out("stat", "-c", "%a %U", "/etc/rancher/k3s/config.yaml") == "600 root\n"
    agent = built.hosts[1].out("cat", "/etc/rancher/k3s/config.yaml")
    token = next(line for line in agent.splitlines() if line.startswith("token:")).split()[1]
    assert token.startswith("K10")
    password = token.rpartition(":")[2]
    for host in built.hosts:
        seen = host.out("ps", "-eo", "args") + host.out("journalctl", "--no-pager", "-o", "cat")
        seen += host.out("cat", "/etc/systemd/system/k3s.service.env", "/etc/systemd/system/k3s-agent.service.env")
        assert password not in seen
    ledger = built.home.folder / "state/live/ledger.jsonl"
    assert password not in ledger.read_text()
    assert (built.home.folder / "state/live/kubeconfig").stat().st_mode & 0o777 == 0o600


def test_the_small_machine_has_swap(built: Lab) -> None:
    assert "/swapfile-hybridlab" in built.small.out("swapon", "--show=NAME", "--noheadings")
    assert built.small.out("stat", "-c", "%a", "/swapfile-hybridlab") == "600\n"
    assert built.small.lines("cat", "/etc/fstab").count("/swapfile-hybridlab none swap sw 0 0") == 1
    assert not built.server.is_there("/swapfile-hybridlab")


def test_nodes_are_ready_with_labels_and_taint(built: Lab) -> None:
    nodes = {node.name: node for node in built.home.open().kube.nodes()}
    assert {name: node.ready for name, node in nodes.items()} == {"amd-1": True, "amd-2": True, "amd-3": True}
    assert nodes["amd-2"].labels["hybridlab.io/role"] == "agent"
    assert nodes["amd-3"].taints == (("hybridlab.io/small", "true", "NoSchedule"),)


def test_a_second_run_changes_nothing(built: Lab) -> None:
    state = ("find", "/etc", "/usr/local", "/opt", "-newermt", "1970-01-02", "-printf", "%p %T@ %m\n")
    before = [h.lines(*state) for h in built.hosts]
    main_pids = [h.out("systemctl", "show", "-p", "MainPID", "k3s", "k3s-agent") for h in built.hosts]
    run = built.home.run("bootstrap")
    assert run.plan().steps == ()
    assert [h.lines(*state) for h in built.hosts] == before
    assert [h.out("systemctl", "show", "-p", "MainPID", "k3s", "k3s-agent") for h in built.hosts] == main_pids


def test_first_contact_is_recorded(built: Lab) -> None:
    rows = [row for row in built.home.ledger() if row["step"] == "first-contact"]
    assert {row["target"] for row in rows} == {h.machine.address for h in built.hosts}
    assert all(row["detail"]["fingerprint"].startswith("SHA256:") for row in rows)
    assert (built.home.folder / "state/live/known_hosts").stat().st_mode & 0o777 == 0o600


def test_a_reboot_keeps_everything(built: Lab) -> None:
    boots = [h.boot_id() for h in built.hosts]
    for host in built.hosts:
        host.out("systemctl", "reboot")
    for host, boot in zip(built.hosts, boots, strict=True):
        until(lambda host=host, boot=boot: _boot_id(host) not in ("", boot), f"{host.machine.name} rebooted")  # type: ignore[misc]
        assert not [line for line in host.rules() if line in REJECTS]
        assert sum("InstanceServices" in line for line in host.rules()) == 17
    assert "/swapfile-hybridlab" in built.small.out("swapon", "--show=NAME", "--noheadings")

    def ready() -> bool:
        kube = built.home.open().kube_or_none
        return kube is not None and [n.ready for n in kube.nodes()] == [True] * 3

    until(ready, "three nodes Ready after the reboot")
    assert built.home.run("bootstrap").plan().steps == ()


REBOOT = {"bootstrap.prove_reboot": True}


def test_a_reboot_on_request_is_done_once_and_proved(built: Lab) -> None:
    boots = [h.boot_id() for h in built.hosts]
    plan = built.home.plan("bootstrap", **REBOOT)
    assert [s.id for s in plan.steps if s.action == "reboot"] == ["reboot:amd-2", "reboot:amd-3", "reboot:amd-1"]
    run = built.home.run("bootstrap", **REBOOT)
    after = [h.boot_id() for h in built.hosts]
    assert not set(after) & set(boots)
    checks = {c.name: c for c in run.verify()}
    assert all(checks[f"reboot {h.machine.name}"].ok for h in built.hosts)
    rows = [r for r in built.home.ledger() if r["step"].startswith("reboot:") and r["event"] == "done"]
    assert [(r["detail"]["before"], r["detail"]["boot"]) for r in rows] == [
        (boots[n].strip(), after[n].strip()) for n in (1, 2, 0)
    ]
    assert built.home.run("bootstrap", **REBOOT).plan().steps == ()
    assert [h.boot_id() for h in built.hosts] == after


def test_a_request_that_broke_off_after_the_reboot_is_only_proved(built: Lab) -> None:
    """As a run leaves it that was killed while the machine was away: asked for in the boot before this one."""
    cluster = built.home.open(**REBOOT)
    if cluster.evidence.load("reboots") is None:
        built.home.run("bootstrap", **REBOOT)
    kept = cluster.evidence.load("reboots")
    assert kept is not None
    nodes = {name: dict(request) for name, request in kept.data["nodes"].items()}
    nodes["amd-2"] |= {"proved_boot": "", "proved": ""}
    cluster.evidence.save("reboots", {"nodes": nodes}, inputs={})
    boot = built.hosts[1].boot_id()
    plan = built.home.plan("bootstrap", **REBOOT)
    assert [s.target for s in plan.steps if s.action == "reboot"] == ["amd-2"]
    assert "what came back is not proved yet" in plan.steps[1].why
    built.home.run("bootstrap", **REBOOT)
    assert built.home.plan("bootstrap", **REBOOT).steps == ()
    row = next(r for r in reversed(built.home.ledger()) if r["step"] == "reboot:amd-2" and r["event"] == "done")
    assert row["detail"]["rebooted_before"] is True
    assert built.hosts[1].boot_id() == boot


def test_a_rule_that_comes_back_with_the_reboot_is_named(built: Lab) -> None:
    host = built.hosts[2]
    saved = host.out("cat", RULES)
    cluster = built.home.open(**REBOOT)
    cluster.evidence.drop("reboots")
    run = cluster.stage("bootstrap")
    run.plan()
    spoiled = saved.replace("COMMIT", REJECTS[0] + "\nCOMMIT", 1)
    host.driver.put(host.machine.host, spoiled.encode(), RULES, mode=0o640, sudo=True)
    with pytest.raises(StepFailed) as caught:
        run.apply()
    assert "not everything survived the reboot of amd-3" in str(caught.value)
    assert f"live: {REJECTS[0]}" in str(caught.value)
    assert "run 030 again" in caught.value.next_move
    built.home.run("bootstrap", **REBOOT)
    assert host.out("cat", RULES) == saved
    assert [n.schedulable for n in built.home.open().kube.nodes()] == [True] * 3


def _boot_id(host: Machine) -> str:
    try:
        return host.boot_id()
    except HybridlabError:
        return ""


def test_paths_were_closed_before_and_are_open_now(built: Lab) -> None:
    cluster = built.home.open()
    before = cluster.evidence.load("connectivity-before")
    assert before is not None
    assert len(before.data["paths"]) == 6
    assert set(before.data["paths"].values()) == {"6443/tcp rejected", "10250/tcp rejected"}
    now = {check.name: check.evidence for check in cluster.stage("bootstrap").verify()}
    assert now["connectivity"] == "6 paths between nodes open"


def test_a_rule_in_the_way_is_named_by_its_path(built: Lab) -> None:
    rule = ("INPUT", "-p", "udp", "--dport", "8472", "-j", "REJECT", "--reject-with", "icmp-host-prohibited")
    built.hosts[1].out("iptables", "-I", *rule)
    try:
        checks = {c.name: c for c in built.home.open().stage("bootstrap").verify()}
        assert not checks["connectivity"].ok
        assert "amd-1 → amd-2: 8472/udp rejected" in checks["connectivity"].evidence
        assert "amd-1 → amd-3" not in checks["connectivity"].evidence
    finally:
        built.hosts[1].out("iptables", "-D", *rule)


@pytest.mark.parametrize("name", ["firewalld", "ufw", "nftables"])
def test_another_firewall_is_found_and_left_alone(built: Lab, name: str) -> None:
    host = built.hosts[1]
    unit = b"[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n"
    host.driver.put(host.machine.host, unit, f"/run/systemd/system/{name}.service", sudo=True)
    try:
        host.out("systemctl", "daemon-reload")
        host.out("systemctl", "start", name)
        plan = built.home.plan("bootstrap")
        assert plan.steps == ()
        warned = [f for f in plan.findings if f.level == "warning"]
        assert [f.subject for f in warned] == ["amd-2"]
        assert f"{name} is active" in warned[0].text
    finally:
        host.out("systemctl", "stop", name)
        host.out("rm", f"/run/systemd/system/{name}.service")
        host.out("systemctl", "daemon-reload")


@pytest.mark.skipif(real_source() is not None, reason="drains what the stand-in does not run")
def test_a_worker_out_and_back(built: Lab) -> None:
    built.home.run("maintain", **{"maintain.node": "amd-2"})
    host = built.hosts[1]
    assert not host.is_there("/usr/local/bin/k3s")
    assert [n.name for n in built.home.open().kube.nodes()] == ["amd-1", "amd-3"]
    assert [step.id for step in built.home.plan("bootstrap").steps] == ["install:amd-2"]
    built.home.run("bootstrap")
    assert [n.name for n in built.home.open().kube.nodes()] == ["amd-1", "amd-2", "amd-3"]


def test_the_datastore_is_put_back_as_it_was(built: Lab) -> None:
    def label(value: str | None) -> None:
        built.home.open().kube.patch("v1", "Node", "amd-2", None, {"metadata": {"labels": {"test/of": value}}})

    def labelled() -> str | None:
        return {n.name: n for n in built.home.open().kube.nodes()}["amd-2"].labels.get("test/of")

    label("before")
    built.home.run("maintain", **{"maintain.action": "snapshot"})
    label("after")
    restored = built.home.run("maintain", **{"maintain.action": "restore"})
    assert [step.id for step in restored.plan().steps] == ["restore"]
    assert labelled() == "before"
    assert built.home.plan("maintain", **{"maintain.action": "restore"}).steps == ()
    label(None)
    assert built.home.plan("bootstrap").steps == ()


def test_a_changed_setting_is_mended_and_only_that(built: Lab) -> None:
    agent = built.hosts[1]
    wanted = agent.out("cat", "/etc/rancher/k3s/config.yaml")
    agent.out("sed", "-i", "s/^node-ip:.*/node-ip: 10.9.9.9/", "/etc/rancher/k3s/config.yaml")
    plan = built.home.plan("bootstrap")
    assert [step.id for step in plan.steps] == ["configure:amd-2"]
    assert "node-ip" in plan.steps[0].why
    built.home.run("bootstrap")
    assert agent.out("cat", "/etc/rancher/k3s/config.yaml") == wanted


def test_rules_that_came_back_go_again(built: Lab) -> None:
    host = built.hosts[1]
    host.out("iptables", "-A", "INPUT", "-j", "REJECT", "--reject-with", "icmp-host-prohibited")
    plan = built.home.plan("bootstrap")
    assert [(step.id, step.why) for step in plan.steps] == [("open-firewall:amd-2", "REJECT rules live")]
    built.home.run("bootstrap")
    assert not [line for line in host.rules() if line in REJECTS]


def test_a_machine_that_was_off_is_said_so_and_joins_again(built: Lab) -> None:
    host = built.hosts[1]
    host.machine.stop()
    with pytest.raises(HybridlabError) as caught:
        built.home.plan("bootstrap")
    assert host.machine.address in str(caught.value)
    assert "check that the machine is on" in str(caught.value)
    host.machine.start()
    host.driver.wait_for_ssh(host.machine.host, BOOT_DEADLINE_S)
    built.home.run("bootstrap")


@pytest.mark.skipif(real_source() is not None, reason="a newer release is known of the stand-in only")
def test_an_upgrade_takes_the_server_first(built: Lab, tmp_path: Path) -> None:
    newer = {"bootstrap.k3s_source": str(write_standin(tmp_path / "newer", NEWER)), "bootstrap.k3s_version": NEWER}
    steps = [step.id for step in built.home.plan("bootstrap", **newer).steps]
    order = [step for step in steps if step.startswith(("upgrade", "install"))]
    assert [step.partition(":")[2] for step in order] == ["amd-1", "amd-2", "amd-3"]
    assert steps[:5] == ["snapshot:amd-1", "upgrade:amd-1", "drain:amd-2", "upgrade:amd-2", "uncordon:amd-2"]
    built.home.run("bootstrap", **newer)
    nodes = built.home.open().kube.nodes()
    assert {node.version for node in nodes} == {NEWER}
    assert all(node.schedulable for node in nodes)
    assert built.home.plan("bootstrap", **newer).steps == ()
    with pytest.raises(BadInput, match="going back to"):
        built.home.run("bootstrap")
    kept = built.server.lines("find", "/var/lib/hybridlab/snapshots", "-path", "*before-upgrade/*", "-name", "state.db")
    assert len(kept) == 1
    assert built.server.out("stat", "-c", "%a", "/var/lib/hybridlab/snapshots") == "700\n"
    built.home.run("teardown")


def test_teardown_undoes_it(built: Lab) -> None:
    built.home.run("teardown")
    for host, before in zip(built.hosts, built.before, strict=True):
        assert host.out("cat", RULES) == before.saved
        assert sorted(host.rules()) == sorted(before.live)
        for path in ("/etc/hybridlab", "/swapfile-hybridlab", "/usr/local/bin/k3s", "/etc/rancher", "/opt/hybridlab"):
            assert not host.is_there(path), f"{host.machine.name} still has {path}"
        assert "swapfile" not in host.out("cat", "/etc/fstab")
        assert "k3s" not in host.out("systemctl", "list-unit-files", "--no-legend")
        assert host.out("ps", "-eo", "args").count("/usr/local/bin/k3s") == 0
    assert not (built.home.folder / "state/live/kubeconfig").exists()
    assert built.home.plan("teardown").steps == ()
