"""Killed with SIGKILL at any point and run again, a lifecycle ends as one that nobody disturbed.

Compared: what the lab holds at the end, to the last firewall rule and Kubernetes object, and how many launches and
joins its log counts. A sample of points by default; with HYBRIDLAB_TEST_LONG=1 after every row of the ledger, at once
and a moment later, in the middle of the step that the row announced.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from life import Life
from soon import soon

from hybridlab.errors import DeadlineExceeded
from hybridlab.stages.nodes import node_hosts

STAGES = ("layout", "provision", "bootstrap", "storage")
PROGRAM = str(Path(__file__).with_name("resume_steps.py"))
KINDS = (
    ("v1", "Namespace"),
    ("v1", "PersistentVolumeClaim"),
    ("v1", "PersistentVolume"),
    ("v1", "Service"),
    ("apps/v1", "Deployment"),
    ("apps/v1", "StatefulSet"),
    ("apps/v1", "DaemonSet"),
    ("batch/v1", "Job"),
    ("storage.k8s.io/v1", "StorageClass"),
    ("helm.cattle.io/v1", "HelmChart"),
)
FILES = ("/etc/fstab", "/etc/rancher/k3s/config.yaml")
LONG = bool(os.environ.get("HYBRIDLAB_TEST_LONG"))
MOMENT_S = 0.15


def steps(life: Life, rows: int = 0, delay_s: float = 0.0) -> Any:
    return life.command(
        sys.executable, PROGRAM, str(rows), str(delay_s), *STAGES,
        HYBRIDLAB_HOME=str(life.home), HYBRIDLAB_LAB_DIR=str(life.lab_dir),
    )  # fmt: skip


def firewall(text: str) -> list[str]:
    """Rules as iptables-save prints them, without its comments and counters."""
    return sorted(re.sub(r"\[\d+:\d+\]", "", line) for line in text.splitlines() if line[:1] in "-:*")


def held(life: Life) -> dict[str, Any]:
    """What the lab holds for the cluster, without what differs between any two clusters: ids, addresses, times."""
    cluster = life.cluster()
    found: dict[str, Any] = {
        "vms": sorted((vm.name, vm.state, vm.shape, vm.ocpus, vm.memory_gb) for vm in cluster.oracle.instances()),
        "oracle": sorted((r.kind, r.name, r.state) for r in cluster.oracle.resources()),
        "nodes": sorted(
            (n.name, n.arch, n.ready, n.schedulable, n.version, tuple(sorted(n.labels)), n.taints)
            for n in cluster.kube.nodes()
        ),
    }
    for name, node in node_hosts(cluster).items():
        rules = cluster.hosts.run(node.host, ["sudo", "-n", "iptables-save"]).stdout
        found[f"{name} firewall"] = firewall(rules)
        for path in FILES:
            text = cluster.hosts.run(node.host, ["sudo", "-n", "cat", path]).stdout
            # an address or a token is another one in every cluster
            found[f"{name} {path}"] = re.sub(r"\d+\.\d+\.\d+\.\d+|(?<=^token: ).*", "…", text, flags=re.M)
    for version, kind in KINDS:
        rows = cluster.kube.list(version, kind)
        found[kind] = sorted(f"{r['metadata'].get('namespace', '')}/{r['metadata']['name']}" for r in rows)
    return found


def counted(life: Life) -> Counter[str]:
    """Launches and joins that the lab's log tells of, and the VMs there ever were."""
    rows = [r for r in life.mutating(0) if 200 <= r["status"] < 300 and r["verb"] == "POST"]
    found = Counter({"VMs": len(life.launched())})
    found["launches"] = sum(r["target"].endswith("/instances") for r in rows)
    found["joins"] = sum(r["target"] == "/api/v1/nodes" for r in rows)
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, dict[str, Any], Counter[str]]]:
    """How many rows a run writes that nobody disturbs, what it leaves, and what the log counts."""
    life = Life(tmp_path_factory.mktemp("undisturbed") / "home")
    life.start()
    try:
        done = steps(life)
        assert done.status == 0, done.said
        yield len(life.ledger()), held(life), counted(life)
    finally:
        life.stop()


def points(rows: int) -> list[tuple[int, float]]:
    """After which rows to kill, and how much later."""
    if LONG:
        return [(row, delay_s) for row in range(1, rows) for delay_s in (0.0, MOMENT_S)]
    # in the midst of the launches, the installation, the joins and the storage
    shares = ((20, MOMENT_S), (45, 0.0), (62, MOMENT_S), (88, 0.0))
    return [(max(1, rows * share // 100), delay_s) for share, delay_s in shares]


def test_an_undisturbed_run_is_what_it_should_be(undisturbed: tuple[int, dict[str, Any], Counter[str]]) -> None:
    rows, holds, count = undisturbed
    assert rows > 40
    assert [vm[:2] for vm in holds["vms"]] == [(name, "RUNNING") for name in ("amd-1", "arm-1", "arm-2")]
    assert [node[2] for node in holds["nodes"]] == [True] * 3
    assert count == {"VMs": 3, "launches": 3, "joins": 3}


def settled(life: Life, holds: dict[str, Any]) -> dict[str, Any]:
    """What the lab holds once it holds the same as another, or in the end."""
    found: list[dict[str, Any]] = []

    def look() -> bool:
        found.append(held(life))
        return found[-1] == holds

    with contextlib.suppress(DeadlineExceeded):
        soon(look, bool, "the lab to settle", 10)
    return found[-1]


@pytest.mark.slow
def test_killed_anywhere_and_run_again_it_ends_the_same(
    undisturbed: tuple[int, dict[str, Any], Counter[str]], tmp_path: Path
) -> None:
    rows, holds, count = undisturbed
    wrong: dict[str, Any] = {}
    for row, delay_s in points(rows):
        life = Life(tmp_path / f"{row}-{delay_s}" / "home")
        life.start()
        try:
            killed = steps(life, row, delay_s)
            assert killed.status == -signal.SIGKILL or (delay_s and killed.status == 0), killed.said
            last = life.ledger()[-1]
            again = steps(life)
            where = f"row {row} (+{delay_s:g} s): {last.stage} {last.step} {last.event}"
            if again.status:
                wrong[where] = again.said[-1500:]
                continue
            found = settled(life, holds)
            wrong |= {f"{where}, {key}": (found[key], holds[key]) for key in holds if found[key] != holds[key]}
            if counted(life) != count:
                wrong[f"{where}, counts"] = counted(life)
            left = life.steps()
            if set(left) & set(STAGES):
                wrong[f"{where}, plan"] = left
        finally:
            life.stop()
    told = "\n".join(f"{where}: {what}" for where, what in wrong.items())
    assert not wrong, told
