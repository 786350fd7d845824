"""900: everything that is tagged ours goes, in reverse order; nothing else is touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hybridlab.errors import Conflict, NotFound
from hybridlab.models import Check, CloudInstance, CloudResource, Finding, HostAddress, Json
from hybridlab.params import Params
from hybridlab.plan import Plan, Step
from hybridlab.ports import TAG, Context
from hybridlab.stages.base import Action, Upstream
from hybridlab.stages.hostundo import undo_host
from hybridlab.stages.nodes import node_hosts, ours
from hybridlab.wait import wait_until

NAME = "teardown"
NEEDS: tuple[str, ...] = ()
GONE = ("TERMINATED", "TERMINATING")
DELETE_DEADLINE_S = 600.0
ORDER = ("boot-volume", "subnet", "nsg", "internet-gateway", "vcn")
"""Children before parents; the gateway's route goes with it. Default route table and security list go with the VCN."""


@dataclass(frozen=True)
class Seen:
    instances: tuple[CloudInstance, ...] = ()
    resources: tuple[CloudResource, ...] = ()
    marked_hosts: tuple[str, ...] = ()  # byo: hosts that carry our marker
    kubeconfig: bool = False


def look(ctx: Context) -> Seen:
    """Read what exists in Oracle, or on site byo which hosts carry our marker."""
    kubeconfig = (ctx.state / "kubeconfig").exists()
    if ctx.params.site == "byo":
        marked = []
        for name, node in node_hosts(ctx).items():
            found = ctx.hosts.run(node.host, ["cat", "/etc/hybridlab/cluster"], sudo=True, check=False).stdout.strip()
            if found == ctx.params.cluster:
                marked.append(name)
        return Seen(marked_hosts=tuple(marked), kubeconfig=kubeconfig)
    survey = ctx.oracle.survey({TAG: ctx.params.cluster})
    return Seen(survey.instances, survey.resources, kubeconfig=kubeconfig)


def plan(params: Params, seen: Seen, upstream: Upstream) -> Plan:
    """VMs first, then orphaned boot volumes, then the network from the inside out."""
    cluster, findings = params.cluster, []
    steps = [
        Step(
            f"clean:{name}",
            "clean",
            name,
            "K3s, swap, helper and marker go; the firewall's rules come back",
            "delete",
            {"node": name},
            batch="hosts",
        )
        for name in seen.marked_hosts
    ]
    vms = [vm for vm in seen.instances if ours(vm.tags, cluster) and vm.state not in GONE]
    for vm in vms:
        steps.append(
            Step(
                f"terminate:{vm.name}",
                "terminate",
                f"VM {vm.name}",
                "it is tagged ours; its boot volume goes too",
                "delete",
                {"name": vm.name},
                batch="vms",
            )
        )
    guests = _guests(seen, cluster)
    for vm in guests:
        findings.append(
            Finding(
                "warning",
                vm.name,
                "a VM in our network that is not ours: left alone, and with it the network",
                "terminate it yourself, then run 900 again",
            )
        )
    boot_volumes = {vm.boot_volume_id for vm in vms}
    for kind in ORDER:
        if guests and kind in ("subnet", "internet-gateway", "vcn"):
            continue
        for resource in seen.resources:
            if resource.kind != kind or not ours(resource.tags, cluster) or resource.state in GONE:
                continue
            if kind == "boot-volume" and resource.id in boot_volumes:
                continue  # terminated with its VM
            steps.append(
                Step(
                    f"delete:{kind}:{resource.name}",
                    "delete",
                    f"{kind} {resource.name}",
                    "it is tagged ours",
                    "delete",
                    {"kind": kind, "name": resource.name},
                )
            )
    if seen.kubeconfig and (steps or not vms):
        steps.append(
            Step("forget-kubeconfig", "forget-kubeconfig", "kubeconfig", "the cluster it opens is gone", "delete")
        )
    foreign = [vm.name for vm in seen.instances if TAG not in vm.tags and vm not in guests and vm.state not in GONE]
    if foreign:
        findings.append(Finding("note", ", ".join(foreign), "VMs that are not ours: left alone"))
    if steps:
        findings.append(Finding("note", "backups", "what lies in S3 stays there; delete the bucket yourself"))
    return Plan(NAME, tuple(steps), {"nodes": []}, tuple(findings))


def _guests(seen: Seen, cluster: str) -> list[CloudInstance]:
    """VMs that are not ours in a subnet that is."""
    subnets = {r.id for r in seen.resources if r.kind == "subnet" and ours(r.tags, cluster)}
    return [
        vm for vm in seen.instances if not ours(vm.tags, cluster) and vm.subnet_id in subnets and vm.state not in GONE
    ]


# -- actions -----------------------------------------------------------------------------------------------------------
def _terminate(ctx: Context, step: Step) -> Mapping[str, Json]:
    def mine() -> list[CloudInstance]:
        found = [vm for vm in ctx.oracle.instances() if ours(vm.tags, ctx.params.cluster)]
        return [vm for vm in found if vm.name == step.args["name"] and vm.state != "TERMINATED"]

    ids = []
    for vm in mine():
        if vm.state != "TERMINATING":
            ctx.oracle.terminate(vm.id)
        if vm.public_ip:
            ctx.hosts.forget(HostAddress(vm.name, vm.public_ip, ctx.params.bootstrap.ssh_user))
        ids.append(vm.id)
    wait_until(
        mine,
        lambda left: not left,
        what=f"VM {step.args['name']} to be gone",
        deadline_s=DELETE_DEADLINE_S,
        clock=ctx.clock,
        interval_s=1.0,
        describe=lambda left: ", ".join(vm.state for vm in left),
    )
    return {"ids": ids}


def _delete(ctx: Context, step: Step) -> Mapping[str, Json]:
    """Delete one resource; a VNIC or attachment that lingers gives 409 for a while."""
    kind, name = step.args["kind"], step.args["name"]

    def mine() -> list[CloudResource]:
        return [
            r
            for r in ctx.oracle.resources()
            if r.kind == kind and r.name == name and ours(r.tags, ctx.params.cluster) and r.state not in GONE
        ]

    def attempt() -> str:
        left = mine()
        if not left:
            return ""
        try:
            ctx.oracle.delete(left[0])
        except Conflict as error:
            return error.why or error.what
        except NotFound:
            return ""
        return "" if len(left) == 1 else f"{len(left) - 1} more"

    wait_until(
        attempt,
        lambda problem: not problem,
        what=f"{kind} {name} to be deletable",
        deadline_s=DELETE_DEADLINE_S,
        clock=ctx.clock,
        interval_s=1.0,
        next_move="something that isn't ours may still use it: see Oracle's console",
    )
    return {}


def _forget_kubeconfig(ctx: Context, step: Step) -> Mapping[str, Json]:
    (ctx.state / "kubeconfig").unlink(missing_ok=True)
    for name in ("k3s_token", "k3s_node_token", "kube_client_key"):
        ctx.secrets.drop(name)
    ctx.refresh()
    return {}


def _clean(ctx: Context, step: Step) -> Mapping[str, Json]:
    return undo_host(ctx, node_hosts(ctx)[step.args["node"]])


ACTIONS: Mapping[str, Action] = {
    "clean": _clean,
    "terminate": _terminate,
    "delete": _delete,
    "forget-kubeconfig": _forget_kubeconfig,
}


def verify(ctx: Context) -> tuple[Check, ...]:
    """Nothing tagged ours is left, except what a VM that isn't ours holds in use."""
    seen = look(ctx)
    guests = _guests(seen, ctx.params.cluster)
    vms = [vm.name for vm in seen.instances if ours(vm.tags, ctx.params.cluster) and vm.state not in GONE]
    if ctx.params.site == "byo":
        marked = ", ".join(seen.marked_hosts)
        return (Check("hosts", not marked, f"still marked as ours: {marked}" if marked else "none carries our marker"),)
    left = _left(seen.resources, ctx.params.cluster, guests=bool(guests))
    checks = [
        Check("VMs", not vms, ", ".join(vms) or "none left"),
        Check("network and volumes", not left, ", ".join(left) or "none left"),
    ]
    if guests:
        names = ", ".join(vm.name for vm in guests)
        checks.append(Check("not ours", True, f"{names}: left alone, with the network"))
    return tuple(checks)


def _left(resources: Sequence[CloudResource], cluster: str, *, guests: bool) -> list[str]:
    kinds = [k for k in ORDER if not (guests and k in ("subnet", "internet-gateway", "vcn"))]
    mine = (r for r in resources if ours(r.tags, cluster) and r.state not in GONE)
    return [f"{r.kind} {r.name}" for r in mine if r.kind in kinds]
