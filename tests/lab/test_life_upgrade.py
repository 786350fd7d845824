"""K3s to another version, and its datastore as it was: server first, agents drained, a snapshot that is put back."""

from __future__ import annotations

from pathlib import Path

import pytest
from life import NODES, Life

from hybridlab.errors import BadInput
from hybridlab.lab.hosts.k3s_release import write_release
from hybridlab.stages.nodes import need_host

NEWER = "v1.34.3+k3s1"


@pytest.fixture(scope="module")
def built(life: Life) -> Life:
    life.make("provision", "bootstrap")
    return life


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder: Path = tmp_path_factory.mktemp("release")
    write_release(folder, NEWER)
    return f"bootstrap.k3s_source={folder}", f"bootstrap.k3s_version={NEWER}"


def config_map(life: Life, name: str) -> bool:
    return life.cluster().kube.get("v1", "ConfigMap", name, "default") is not None


def make_config_map(life: Life, name: str) -> None:
    meta = {"name": name, "namespace": "default"}
    life.cluster().kube.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"a": "b"}})


def run(life: Life, stage: str, *sets: str) -> list[str]:
    """The steps that were applied and proved."""
    made = life.cluster(*sets).stage(stage)
    steps = [step.id for step in made.plan().steps]
    made.gate()
    made.apply()
    made.verify()
    made.hand_over()
    return steps


def test_a_snapshot_is_put_back_as_it_was(built: Life) -> None:
    make_config_map(built, "before")
    assert run(built, "maintain", "maintain.action=snapshot") == ["snapshot"]
    assert run(built, "maintain", "maintain.action=snapshot") == [], "young enough"
    make_config_map(built, "after")
    assert run(built, "maintain", "maintain.action=restore") == ["restore"]
    assert config_map(built, "before")
    assert not config_map(built, "after")
    assert run(built, "maintain", "maintain.action=restore") == [], "that is what happened last"
    assert run(built, "bootstrap") == []


def test_a_snapshot_that_is_not_there(built: Life) -> None:
    with pytest.raises(BadInput, match="there is no snapshot nonsense"):
        run(built, "maintain", "maintain.action=restore", "maintain.snapshot=nonsense")


def test_an_upgrade_and_no_way_back(built: Life, newer: tuple[str, str]) -> None:
    assert run(built, "bootstrap", *newer) == [
        "snapshot:arm-1",
        "upgrade:arm-1",
        "drain:arm-2",
        "upgrade:arm-2",
        "uncordon:arm-2",
        "drain:amd-1",
        "upgrade:amd-1",
        "uncordon:amd-1",
    ]
    nodes = built.cluster().kube.nodes()
    assert {n.name: (n.version, n.ready, n.schedulable) for n in nodes} == dict.fromkeys(NODES, (NEWER, True, True))
    assert run(built, "bootstrap", *newer) == []
    with pytest.raises(BadInput, match="going back to"):
        run(built, "bootstrap")
    cluster = built.cluster()
    server = need_host(cluster, "arm-1")
    kept = cluster.hosts.run(server.host, ["ls", "-1", "/var/lib/hybridlab/snapshots"], sudo=True).stdout.split()
    assert [name.partition("-")[2] for name in kept] == ["by-hand", "before-upgrade"]


def test_paths_were_closed_before_and_are_open_now(built: Life) -> None:
    before = built.cluster().evidence.load("connectivity-before")
    assert before is not None
    assert len(before.data["paths"]) == 6
    assert all(state.endswith("rejected") for state in before.data["paths"].values())
    now = {c.name: c.evidence for c in built.cluster().stage("bootstrap").verify()}
    assert now["connectivity"] == "6 paths between nodes open"


def test_pods_on_different_nodes_talk_and_a_rule_in_the_way_is_seen(built: Life) -> None:
    cluster = built.cluster()
    checks = {c.name: c for c in cluster.stage("bootstrap").verify()}
    assert checks["pod-traffic"].ok, checks["pod-traffic"].evidence
    assert checks["pod-traffic"].evidence.startswith("6 paths between pods carry TCP, large UDP packets and DNS")
    assert cluster.kube.get("v1", "Namespace", "hybridlab-probe") is None, "the pods go when they have answered"
    again = {c.name: c for c in built.cluster().stage("bootstrap").verify()}
    assert "measured" in again["pod-traffic"].evidence, "nothing changed since: not measured again"
    host = need_host(cluster, "arm-2").host
    rule = ["INPUT", "-p", "udp", "--dport", "8472", "-j", "REJECT", "--reject-with", "icmp-host-prohibited"]
    cluster.hosts.run(host, ["iptables", "-I", *rule], sudo=True)
    cluster.evidence.drop("pod-traffic")
    try:
        seen = {c.name: c for c in built.cluster().stage("bootstrap").verify()}["pod-traffic"]
        assert not seen.ok
        assert "arm-1 → arm-2: TCP filtered" in seen.evidence
        assert "arm-1 → amd-1" not in seen.evidence
        assert seen.next_move
    finally:
        cluster.hosts.run(host, ["iptables", "-D", *rule], sudo=True)
