"""910: a worker out of the cluster: cordon, drain, remove; 020 and 030 then add it back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from hybridlab.errors import DeadlineExceeded
from hybridlab.models import Check, Finding, HostAddress, Json, NodeInfo
from hybridlab.params import Params
from hybridlab.plan import Plan, Step
from hybridlab.ports import Context
from hybridlab.stages import datastore
from hybridlab.stages.base import Action, Upstream
from hybridlab.stages.drains import cordon, drain, evictable, uncordon
from hybridlab.stages.hostundo import uninstall_k3s
from hybridlab.stages.nodes import instances_by_node, need_host, node_hosts
from hybridlab.wait import wait_until

NAME = "maintain"
NEEDS: tuple[str, ...] = ()
GONE_DEADLINE_S = 600.0
READY_DEADLINE_S = 120.0


@dataclass(frozen=True)
class Seen:
    nodes: tuple[NodeInfo, ...] = ()
    pods: Mapping[str, int] | None = None  # node → pods that a drain would move
    machines: tuple[str, ...] = ()  # nodes that have a VM of ours
    snapshots: tuple[str, ...] = ()  # of the server's datastore, oldest first
    newest_h: float = 0.0  # age of the newest snapshot
    restored: str = ""  # the snapshot that was put back last


def look(ctx: Context) -> Seen:
    """Nodes, the pods that a drain would move, and which nodes have a VM."""
    kept = _look_snapshots(ctx) if ctx.params.maintain.action in ("snapshot", "restore") else Seen()
    kube = ctx.kube_or_none
    if kube is None:
        return kept
    counts: dict[str, int] = {}
    for pod in kube.list("v1", "Pod"):
        if evictable(pod):
            counts[pod["spec"]["nodeName"]] = counts.get(pod["spec"]["nodeName"], 0) + 1
    machines = () if ctx.params.site == "byo" else tuple(instances_by_node(ctx.oracle.instances(), ctx.params.cluster))
    return replace(kept, nodes=kube.nodes(), pods=counts, machines=machines)


def _look_snapshots(ctx: Context) -> Seen:
    server = need_host(ctx, ctx.params.server.name)
    names = datastore.snapshots(ctx, server)
    age = datastore.age_h(names[-1], datetime.now(UTC)) if names else 0.0
    return Seen(snapshots=names, newest_h=age, restored=datastore.restored(ctx, server))


def chosen(params: Params) -> str | None:
    """The worker to work on: the params' choice, else the last agent."""
    agents = [w.name for w in params.wishes if w.role == "agent"]
    return params.maintain.node or (agents[-1] if agents else None)


def plan(params: Params, seen: Seen, upstream: Upstream) -> Plan:
    """The steps of the chosen action on the chosen node."""
    name, action = chosen(params), params.maintain.action
    if action in ("snapshot", "restore"):
        return _plan_datastore(params, seen)
    if name is None:
        return Plan(NAME, (), {}, (Finding("refusal", "nodes", "there is no worker", "add an agent to the params"),))
    if name == params.server.name and action in ("replace", "remove"):
        why = "it is the server: the cluster's data are on it"
        return Plan(NAME, (), {}, (Finding("refusal", name, why, "choose a worker; 900 takes the whole cluster down"),))
    node = next((n for n in seen.nodes if n.name == name), None)
    findings, steps = [], []
    if node is None and name not in {w.name for w in params.wishes}:
        findings.append(
            Finding(
                "refusal",
                "maintain.node",
                f"there is no node {name}",
                f"one of: {', '.join(n.name for n in seen.nodes)}",
            )
        )
    arguments = {"node": name}
    if node and action == "uncordon" and not node.schedulable:
        steps.append(Step("uncordon", "uncordon", f"node {name}", "pods may come again", "change", arguments))
    if node and action != "uncordon" and node.schedulable:
        steps.append(Step("cordon", "cordon", f"node {name}", "no new pods", "change", arguments, undo="uncordon"))
    if action in ("replace", "remove"):
        count = (seen.pods or {}).get(name, 0)
        if node:
            steps.append(Step("drain", "drain", f"node {name}", f"{count} pods have to move", "change", arguments))
        # the VM goes before its node: cut off between the two, the next plan still sees a node that has to go
        if name in seen.machines and (node or action == "remove"):
            steps.append(
                Step(
                    "terminate",
                    "terminate",
                    f"VM {name}",
                    "a fresh machine takes its place" if action == "replace" else "it is no longer wanted",
                    "delete",
                    arguments,
                )
            )
        if node:
            steps.append(
                Step(
                    "remove-node",
                    "remove-node",
                    f"node {name}",
                    "with its password secret, or a machine of the same name would be refused",
                    "delete",
                    arguments,
                )
            )
    if action == "replace" and node is None and seen.nodes and not findings:
        findings.append(Finding("note", name, "it is out of the cluster already: 020 and 030 add it back"))
    return Plan(NAME, tuple(steps), {}, tuple(findings))


def _plan_datastore(params: Params, seen: Seen) -> Plan:
    """A snapshot where the newest is too old, or a restore of the chosen one unless that is what happened last."""
    server, wanted = params.server.name, params.maintain.snapshot
    if params.maintain.action == "snapshot":
        if seen.snapshots and seen.newest_h < params.maintain.snapshot_max_age_h:
            note = f"{seen.snapshots[-1]} is {seen.newest_h:.1f} h old: young enough"
            return Plan(NAME, (), {}, (Finding("note", server, note),))
        why = "the datastore and what opens it, copied while K3s is down for a moment; pods go on running"
        return Plan(NAME, (Step("snapshot", "snapshot", server, why, "create", {"node": server}),), {}, ())
    chosen_one = wanted or (seen.snapshots[-1] if seen.snapshots else "")
    if chosen_one not in seen.snapshots:
        what = f"there is no snapshot {wanted}" if wanted else "there is no snapshot"
        move = f"one of: {', '.join(seen.snapshots)}" if seen.snapshots else "take one first: action snapshot"
        return Plan(NAME, (), {}, (Finding("refusal", "maintain.snapshot", what, move),))
    if seen.restored == chosen_one:
        note = f"{chosen_one} was put back already; take another snapshot before putting it back again"
        return Plan(NAME, (), {}, (Finding("note", server, note),))
    why = f"everything in the cluster as it was in {chosen_one}; what is there now is kept beside it"
    arguments = {"node": server, "snapshot": chosen_one}
    lost = Finding("warning", server, f"what was made in the cluster since {chosen_one} is forgotten")
    return Plan(NAME, (Step("restore", "restore", server, why, "change", arguments),), {}, (lost,))


# -- actions -----------------------------------------------------------------------------------------------------------
def _cordon(ctx: Context, step: Step) -> Mapping[str, Json]:
    cordon(ctx, step.args["node"])
    return {}


def _uncordon(ctx: Context, step: Step) -> Mapping[str, Json]:
    uncordon(ctx, step.args["node"])
    return {}


def _drain(ctx: Context, step: Step) -> Mapping[str, Json]:
    return {"pods": drain(ctx, step.args["node"])}


def _remove_node(ctx: Context, step: Step) -> Mapping[str, Json]:
    """From a host of one's own K3s goes first: an agent that still runs could register the node anew."""
    node = step.args["node"]
    if ctx.params.site == "byo" and node in (hosts := node_hosts(ctx)):
        uninstall_k3s(ctx, hosts[node])
    ctx.kube.delete("v1", "Node", node)
    secret = ctx.kube.delete("v1", "Secret", f"{node}.node-password.k3s", "kube-system")
    return {"password_secret": secret}


def _terminate(ctx: Context, step: Step) -> Mapping[str, Json]:
    vm = instances_by_node(ctx.oracle.instances(), ctx.params.cluster).get(step.args["node"])
    if vm is None:
        return {"changed": False}
    ctx.oracle.terminate(vm.id)
    if vm.public_ip:
        ctx.hosts.forget(HostAddress(vm.name, vm.public_ip, ctx.params.bootstrap.ssh_user))
    wait_until(
        lambda: [v for v in ctx.oracle.instances() if v.id == vm.id and v.state != "TERMINATED"],
        lambda rows: not rows,
        what=f"VM {vm.name} to be gone",
        deadline_s=GONE_DEADLINE_S,
        clock=ctx.clock,
        interval_s=1.0,
        describe=lambda rows: rows[0].state,
    )
    return {"id": vm.id}


def _snapshot(ctx: Context, step: Step) -> Mapping[str, Json]:
    return datastore.take_snapshot(ctx, need_host(ctx, step.args["node"]), datastore.new_name("by-hand"))


def _restore(ctx: Context, step: Step) -> Mapping[str, Json]:
    return datastore.restore_snapshot(ctx, need_host(ctx, step.args["node"]), step.args["snapshot"])


ACTIONS: Mapping[str, Action] = {
    "snapshot": _snapshot,
    "restore": _restore,
    "cordon": _cordon,
    "uncordon": _uncordon,
    "drain": _drain,
    "remove-node": _remove_node,
    "terminate": _terminate,
}


def verify(ctx: Context) -> tuple[Check, ...]:
    """The node is as the action leaves it; for replace, whether it is out now (020 and 030 bring it back)."""
    name, action = chosen(ctx.params), ctx.params.maintain.action
    if action in ("snapshot", "restore"):
        return _verify_datastore(ctx)
    node = next((n for n in ctx.kube.nodes() if n.name == name), None)
    if action in ("replace", "remove"):
        return (Check(f"node {name}", node is None, "out of the cluster" if node is None else "still in the cluster"),)
    cordoned = node is not None and not node.schedulable
    return (Check(f"node {name}", cordoned == (action == "cordon"), "cordoned" if cordoned else "schedulable"),)


def _verify_datastore(ctx: Context) -> tuple[Check, ...]:
    """The snapshot is there, or the restored one is what runs; and every wanted node is Ready again."""
    server = need_host(ctx, ctx.params.server.name)
    names, wanted = datastore.snapshots(ctx, server), {w.name for w in ctx.params.wishes}
    if ctx.params.maintain.action == "snapshot":
        first = Check("snapshot", bool(names), names[-1] if names else "none is there")
    else:
        back = datastore.restored(ctx, server)
        first = Check("restored", bool(back), back or "none was put back")

    def ready() -> set[str]:
        kube = ctx.kube_or_none
        return {n.name for n in kube.nodes() if n.ready} if kube is not None else set()

    try:
        found = wait_until(
            ready, lambda up: wanted <= up, what="all nodes to be Ready", deadline_s=READY_DEADLINE_S, clock=ctx.clock
        )
    except DeadlineExceeded:
        found = ready()
    missing = sorted(wanted - found)
    return (first, Check("nodes", not missing, f"not Ready: {', '.join(missing)}" if missing else "all Ready"))
