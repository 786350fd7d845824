"""Bootstrap proved by looking again: rules, nodes, and paths between them."""

from __future__ import annotations

import json
from collections.abc import Mapping

from hybridlab.models import MACHINE_ARCH, Check
from hybridlab.ports import Context
from hybridlab.stages.bootstrap.seen import look_host
from hybridlab.stages.nodes import (
    HELPER,
    NodeHost,
    node_hosts,
    on_all,
)

REACHED = ("echo", "open", "silent")
"""What the helper's probe says of a port behind no firewall; VXLAN's does not answer, so silence is good there."""


def verify(ctx: Context) -> tuple[Check, ...]:
    """Rules live and saved, nodes Ready with their real architectures, and every node reaching every other."""
    hosts = node_hosts(ctx)
    seen = on_all(hosts, lambda node: look_host(ctx, node))
    nodes = {n.name: n for n in ctx.kube.nodes()}
    checks = []
    for wish in ctx.params.wishes:
        host, node = seen.get(wish.name), nodes.get(wish.name)
        if host is None or node is None:
            checks.append(Check(f"node {wish.name}", False, "no host" if host is None else "not in the cluster"))
            continue
        left = [*(f"live: {r}" for r in host.rejects_live), *(f"file: {r}" for r in host.rejects_saved)]
        checks.append(Check(f"firewall {wish.name}", not left, "; ".join(left) or "no REJECT rule, live or saved"))
        arch = MACHINE_ARCH.get(host.machine)
        ok = node.ready and node.arch == arch == wish.arch
        evidence = f"{'Ready' if node.ready else 'not Ready'}, API says {node.arch}, uname says {host.machine}"
        checks.append(Check(f"node {wish.name}", ok, f"{evidence}, {node.version}"))
    matrix = connectivity(ctx, hosts)
    bad = [f"{a} → {b}: {state}" for (a, b), state in matrix.items() if state != "ok"]
    checks.append(
        Check(
            "connectivity",
            not bad,
            "; ".join(bad) or f"{len(matrix)} paths between nodes open",
            "see which host's firewall is in the way, then run 030 again",
        )
    )
    mode = (ctx.state / "kubeconfig").stat().st_mode & 0o777
    checks.append(Check("kubeconfig", mode == 0o600, f"mode {mode:04o}"))
    return tuple(checks)


def connectivity(ctx: Context, hosts: Mapping[str, NodeHost]) -> dict[tuple[str, str], str]:
    """From each node to each other: kubelet, API (server), VXLAN; ``ok`` or what is in the way."""
    found: dict[tuple[str, str], str] = {}

    def probe(node: NodeHost) -> dict[tuple[str, str], str]:
        targets = {}
        for name, other in hosts.items():
            if name != node.wish.name:
                targets[f"{other.private_ip}:10250/tcp"] = name
                targets[f"{other.private_ip}:8472/udp"] = name
                if other.wish.role == "server":
                    targets[f"{other.private_ip}:6443/tcp"] = name
        if not targets:
            return {}
        result = ctx.hosts.run(node.host, ["python3", HELPER, "probe", *targets], sudo=True, timeout_s=60)
        row: dict[tuple[str, str], str] = {}
        for answer in json.loads(result.stdout):
            target, state = answer["target"], answer["state"]
            path = (node.wish.name, targets[target])
            good = state in REACHED
            if not good or path not in row:
                row[path] = "ok" if good else f"{target.rsplit(':', 1)[1]} {state}"
        return row

    for row in on_all(hosts, probe).values():
        found.update(row)
    return found
