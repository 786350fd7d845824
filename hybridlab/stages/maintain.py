"""910: a worker out of the cluster: cordon, drain, remove; 020 and 030 then add it back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hybridlab.models import Check, Finding, HostAddress, Json, NodeInfo
from hybridlab.params import Params
from hybridlab.plan import Plan, Step
from hybridlab.ports import Context
from hybridlab.stages.base import Action, Upstream
from hybridlab.stages.nodes import instances_by_node, node_hosts
from hybridlab.wait import wait_until

NAME = "maintain"
NEEDS: tuple[str, ...] = ()
DRAIN_DEADLINE_S = 600.0
GONE_DEADLINE_S = 600.0


@dataclass(frozen=True)
class Seen:
    nodes: tuple[NodeInfo, ...] = ()
    pods: Mapping[str, int] | None = None  # node → pods that a drain would move
    machines: tuple[str, ...] = ()  # nodes that have a VM of ours


def look(ctx: Context) -> Seen:
    """Nodes, the pods that a drain would move, and which nodes have a VM."""
    kube = ctx.kube_or_none
    if kube is None:
        return Seen()
    counts: dict[str, int] = {}
    for pod in kube.list("v1", "Pod"):
        if evictable(pod):
            counts[pod["spec"]["nodeName"]] = counts.get(pod["spec"]["nodeName"], 0) + 1
    machines = () if ctx.params.site == "byo" else tuple(instances_by_node(ctx.oracle.instances(), ctx.params.cluster))
    return Seen(kube.nodes(), counts, machines)


def chosen(params: Params) -> str | None:
    """The worker to work on: the params' choice, else the last agent."""
    agents = [w.name for w in params.wishes if w.role == "agent"]
    return params.maintain.node or (agents[-1] if agents else None)


def plan(params: Params, seen: Seen, upstream: Upstream) -> Plan:
    """The steps of the chosen action on the chosen node."""
    name, action = chosen(params), params.maintain.action
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
    if action == "replace" and node is None and seen.nodes and not findings:
        findings.append(Finding("note", name, "it is out of the cluster already: 020 and 030 add it back"))
    return Plan(NAME, tuple(steps), {}, tuple(findings))


def evictable(pod: Mapping[str, Json]) -> bool:
    """A pod that a drain has to move: not finished, not a DaemonSet's, not a static one."""
    owners = {o["kind"] for o in pod["metadata"].get("ownerReferences", [])}
    finished = pod.get("status", {}).get("phase") in ("Succeeded", "Failed")
    return bool(pod["spec"].get("nodeName")) and not finished and not owners & {"DaemonSet", "Node"}


# -- actions -----------------------------------------------------------------------------------------------------------
def _set_cordon(ctx: Context, step: Step, on: bool | None) -> Mapping[str, Json]:
    ctx.kube.patch("v1", "Node", step.args["node"], None, {"spec": {"unschedulable": on}})
    return {}


def _cordon(ctx: Context, step: Step) -> Mapping[str, Json]:
    return _set_cordon(ctx, step, True)


def _uncordon(ctx: Context, step: Step) -> Mapping[str, Json]:
    return _set_cordon(ctx, step, None)


def _drain(ctx: Context, step: Step) -> Mapping[str, Json]:
    """Evict pod by pod, again where a disruption budget said not now, until none is left."""
    node = step.args["node"]

    def left() -> list[dict[str, Json]]:
        pods = [p for p in ctx.kube.list("v1", "Pod", fields=f"spec.nodeName={node}") if evictable(p)]
        for pod in pods:
            if "deletionTimestamp" not in pod["metadata"]:
                ctx.kube.evict(pod["metadata"]["namespace"], pod["metadata"]["name"])
        return pods

    moved = len(left())
    wait_until(
        left,
        lambda pods: not pods,
        what=f"node {node} to be drained",
        deadline_s=DRAIN_DEADLINE_S,
        clock=ctx.clock,
        interval_s=0.5,
        describe=lambda pods: f"{len(pods)} pods left: " + ", ".join(p["metadata"]["name"] for p in pods[:3]),
        next_move="a PodDisruptionBudget may hold it: kubectl get pdb -A",
    )
    return {"pods": moved}


def _remove_node(ctx: Context, step: Step) -> Mapping[str, Json]:
    node = step.args["node"]
    ctx.kube.delete("v1", "Node", node)
    secret = ctx.kube.delete("v1", "Secret", f"{node}.node-password.k3s", "kube-system")
    if ctx.params.site == "byo" and node in (hosts := node_hosts(ctx)):
        ctx.hosts.run(hosts[node].host, ["/usr/local/bin/k3s-agent-uninstall.sh"], sudo=True, timeout_s=300)
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


ACTIONS: Mapping[str, Action] = {
    "cordon": _cordon,
    "uncordon": _uncordon,
    "drain": _drain,
    "remove-node": _remove_node,
    "terminate": _terminate,
}


def verify(ctx: Context) -> tuple[Check, ...]:
    """The node is as the action leaves it; for replace, whether it is out now (020 and 030 bring it back)."""
    name, action = chosen(ctx.params), ctx.params.maintain.action
    node = next((n for n in ctx.kube.nodes() if n.name == name), None)
    if action in ("replace", "remove"):
        return (Check(f"node {name}", node is None, "out of the cluster" if node is None else "still in the cluster"),)
    cordoned = node is not None and not node.schedulable
    return (Check(f"node {name}", cordoned == (action == "cordon"), "cordoned" if cordoned else "schedulable"),)
