"""Traffic between pods on different nodes: TCP, packets as large as an overlay takes, and the cluster's DNS.

Neither an active unit nor a Ready node proves that pods can talk (see the facts on Oracle's rules): a pod on every node
listens, and each asks all others. The answer is kept as evidence and asked anew when 030 changed something since.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from hybridlab.errors import HybridlabError
from hybridlab.models import Check, Json, NodeInfo
from hybridlab.ports import Context
from hybridlab.stages import helperpod
from hybridlab.stages.bootstrap import matrix
from hybridlab.stages.bootstrap.matrix import NO_ANSWER, Paths, evidence_of
from hybridlab.stages.nodes import on_all_names
from hybridlab.stages.objects import MANAGED
from hybridlab.wait import wait_until

KIND = "pod-traffic"
NAMESPACE = "hybridlab-probe"
PORT = 7000
LARGE = 1372
"""UDP payload of a packet of 1400 bytes: fits flannel's 1450 (VXLAN) and 1420 (WireGuard)."""
DNS_NAME = "kubernetes.default.svc.cluster.local"
MAX_AGE_H = 24.0
DNS_DEADLINE_S = 180.0
LISTEN_S = 600


def traffic_check(ctx: Context) -> tuple[Check, ...]:
    """The check, from evidence where it is young and nothing changed since; none where pods can't be run at all."""
    nodes = [n for n in ctx.kube.nodes() if n.ready and n.name in {w.name for w in ctx.params.wishes}]
    if not ctx.params.bootstrap.prove_traffic:
        return (Check(KIND, True, "not proved: bootstrap.prove_traffic is off"),)
    if len(nodes) < 2 or ctx.kube.get("v1", "Namespace", "kube-system") is None:
        return ()
    inputs = {"nodes": [[n.name, n.version] for n in nodes], "changed": _last_change(ctx)}
    kept, _ = ctx.evidence.usable(KIND, inputs=inputs, max_age_h=MAX_AGE_H, now=ctx.clock.now())
    if kept is not None and all(state == "ok" for state in kept.data["paths"].values()):
        return (_check(kept.data["paths"], f", measured {kept.made[:16]}"),)
    try:
        paths = evidence_of(measure(ctx, nodes))
    except HybridlabError as error:
        move = error.next_move or "set bootstrap.prove_traffic to false where its image can't be had"
        return (Check(KIND, False, f"could not be measured: {error.what}: {error.why}", move),)
    ctx.evidence.save(KIND, {"paths": paths}, inputs=inputs)
    return (_check(paths, ""),)


def _check(paths: Mapping[str, Json], when: str) -> Check:
    bad = [f"{path}: {state}" for path, state in paths.items() if state != "ok"]
    good = f"{len(paths)} paths between pods carry TCP, large UDP packets and DNS{when}"
    move = "look at the rules and the MTU of these nodes, then run 030 again"
    return Check(KIND, not bad, "; ".join(bad) or good, move)


def _last_change(ctx: Context) -> str:
    rows = ctx.ledger.rows(stage="bootstrap")
    return next((r.time for r in reversed(rows) if r.event == "done" and r.effect != "none"), "")


def measure(ctx: Context, nodes: list[NodeInfo]) -> Paths:
    """From the pod on each node to the pods on all others."""
    _await_dns(ctx)
    with _listeners(ctx, nodes) as ips:
        found: Paths = {}
        for row in on_all_names(list(ips), lambda name: _probe_from(ctx, name, ips)).values():
            found.update(row)
        return found


def _await_dns(ctx: Context) -> None:
    """Until CoreDNS serves: K3s starts it some seconds after the first node is Ready."""

    def available() -> int | None:
        found = ctx.kube.get("apps/v1", "Deployment", "coredns", "kube-system")
        return None if found is None else int(found.get("status", {}).get("availableReplicas") or 0)

    wait_until(
        available,
        lambda count: count is None or count > 0,
        what="CoreDNS to be available",
        deadline_s=DNS_DEADLINE_S,
        clock=ctx.clock,
        describe=lambda count: f"{count} replicas available",
        next_move="kubectl -n kube-system describe deployment coredns",
    )


@contextmanager
def _listeners(ctx: Context, nodes: list[NodeInfo]) -> Iterator[dict[str, str]]:
    """A listening pod on every node; yields their addresses by node. The namespace goes with them."""
    meta = {"name": NAMESPACE, "labels": dict(MANAGED)}
    helperpod.remove_namespace(ctx, NAMESPACE)
    ctx.kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": meta})
    try:
        ctx.kube.apply(helperpod.helper_config_map(NAMESPACE))
        for node in nodes:
            pod = helperpod.helper_pod(NAMESPACE, f"probe-{node.name}", {}, node=node.name)
            pod["spec"]["tolerations"] = [{"operator": "Exists"}]
            listen = ["listen", "--tcp", str(PORT), "--udp", str(PORT), "--seconds", str(LISTEN_S)]
            pod["spec"]["containers"][0]["command"] = ["python3", helperpod.SCRIPT, *listen]
            ctx.kube.apply(pod)
        names = [n.name for n in nodes]
        pods = on_all_names(names, lambda name: helperpod.wait_for_pod(ctx, NAMESPACE, f"probe-{name}"))
        yield {name: str(pod["status"]["podIP"]) for name, pod in pods.items()}
    finally:
        helperpod.remove_namespace(ctx, NAMESPACE)


def _probe_from(ctx: Context, name: str, ips: Mapping[str, str]) -> Paths:
    """What one pod gets from all others; the first thing in the way of a path is what is told of it."""
    row: Paths = {(name, other): "ok" for other in ips if other != name}
    dns = f"{DNS_NAME}:443/tcp"
    small, large = _ask(ctx, name, ips, 64, "tcp", dns), _ask(ctx, name, ips, LARGE, "udp")
    for _, other in row:
        for kind, target, answers in (
            ("TCP", f"{ips[other]}:{PORT}/tcp", small),
            (f"UDP of {LARGE} bytes", f"{ips[other]}:{PORT}/udp", large),
        ):
            answer = answers.get(target, NO_ANSWER)
            if answer["state"] != "echo" and row[name, other] == "ok":
                row[name, other] = f"{kind} {_words(answer)}"
    if small.get(dns, NO_ANSWER)["state"] not in ("open", "echo"):
        why = f"DNS or the API's service: {_words(small.get(dns, NO_ANSWER))}"
        row = {path: why if state == "ok" else state for path, state in row.items()}
    return row


def _ask(
    ctx: Context, name: str, ips: Mapping[str, str], size: int, protocol: str, *more: str
) -> dict[str, Mapping[str, Json]]:
    """The helper's answers by target. Raises Refused where they can't be read."""
    targets = [f"{ip}:{PORT}/{protocol}" for other, ip in ips.items() if other != name]
    argv = ["python3", helperpod.SCRIPT, "probe", "--size", str(size), "--timeout", "3", *targets, *more]
    result = ctx.kube.exec(NAMESPACE, f"probe-{name}", argv, timeout_s=60)
    return matrix.read_answers(result.stdout, where=f"pod {NAMESPACE}/probe-{name}", stderr=result.stderr)


def _words(answer: Mapping[str, Json]) -> str:
    return f"{answer['state']} ({answer['error']})" if answer.get("error") else str(answer["state"])
