"""Bootstrap proved by looking again: rules, nodes, and paths between them."""

from __future__ import annotations

from hybridlab.models import MACHINE_ARCH, Check
from hybridlab.ports import Context
from hybridlab.stages.bootstrap.matrix import connectivity
from hybridlab.stages.bootstrap.podtraffic import traffic_check
from hybridlab.stages.bootstrap.reboots import reboot_checks
from hybridlab.stages.bootstrap.seen import look_host
from hybridlab.stages.nodes import node_hosts, on_all


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
        ok = node.ready and node.arch == arch and wish.arch in (arch, None)
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
    checks += traffic_check(ctx)
    checks += reboot_checks(ctx)
    mode = (ctx.state / "kubeconfig").stat().st_mode & 0o777
    checks.append(Check("kubeconfig", mode == 0o600, f"mode {mode:04o}"))
    return tuple(checks)
