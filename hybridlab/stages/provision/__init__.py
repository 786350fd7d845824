"""020: network and VMs in Oracle Cloud: VCN, gateway, route, security group, subnet, one VM a wanted node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hybridlab.errors import NotFound
from hybridlab.models import Check, CloudInstance, CloudResource, Finding, Json, NodeWish, SecurityRule
from hybridlab.params import Params
from hybridlab.plan import Plan, Step, unknown
from hybridlab.ports import FRESH_S, TAG, Context
from hybridlab.stages.base import Action, Upstream
from hybridlab.stages.nodes import NODE_TAG, instances_by_node, ours
from hybridlab.stages.provision.launch import launch_node, make_ssh_key, start_node
from hybridlab.stages.provision.network import find, list_closed, network_steps, rule_changes, wanted_rules

NAME = "provision"
NEEDS = ("layout",)
__all__ = ["ACTIONS", "NAME", "NEEDS", "Seen", "look", "mismatch", "plan", "rule_changes", "verify", "wanted_rules"]


@dataclass(frozen=True)
class Seen:
    """What Oracle has in the compartment, and where the operator comes from. Empty on site byo."""

    instances: tuple[CloudInstance, ...] = ()
    resources: tuple[CloudResource, ...] = ()
    rules: tuple[SecurityRule, ...] = ()
    operator_cidr: str = ""
    ssh_key: bool = False  # whether the cluster's key pair is in the secret store


def look(ctx: Context) -> Seen:
    """Read the compartment's VMs, networks and the rules of our security group."""
    return _look(ctx, ctx.max_age_s)


def _look(ctx: Context, max_age_s: float) -> Seen:
    if ctx.params.site == "byo":
        return Seen()
    survey = ctx.oracle.survey(_tags(ctx), max_age_s=max_age_s)
    nsg = find(survey.resources, "nsg", ctx.params.cluster)
    return Seen(
        instances=survey.instances,
        resources=survey.resources,
        rules=survey.rules.get(nsg.id, ()) if nsg else (),
        operator_cidr=operator_cidr(ctx),
        ssh_key=ctx.secrets.get("ssh_key") is not None,
    )


def operator_cidr(ctx: Context) -> str:
    wanted = ctx.params.provision.operator_cidr
    return f"{ctx.site.operator_ip()}/32" if wanted == "auto" else wanted


def plan(params: Params, seen: Seen, upstream: Upstream) -> Plan:
    """What is missing or different in Oracle Cloud, in the order it has to be made."""
    if params.site == "byo":
        note = Finding("note", "site byo", "the hosts are yours already: nothing to provision")
        return Plan(NAME, (), {"nodes": [_expected(w, w.address) for w in params.wishes]}, (note,))
    findings = [Finding("refusal", "layout", text) for text in upstream["layout"]["refused"]]
    steps = [*network_steps(params, seen.resources, seen.rules, seen.operator_cidr), *_vm_steps(params, seen, findings)]
    vms = instances_by_node(seen.instances, params.cluster)
    nodes = []
    for wish in params.wishes:
        vm = vms.get(wish.name)
        nodes.append(_expected(wish, vm.private_ip if vm and vm.private_ip else unknown(f"{wish.name}.private_ip")))
    return Plan(NAME, tuple(steps), {"nodes": nodes}, tuple(findings))


def _expected(wish: NodeWish, private_ip: Json) -> dict[str, Json]:
    return {
        "name": wish.name,
        "role": wish.role,
        "arch": wish.arch,
        "memory_gb": wish.memory_gb,
        "private_ip": private_ip,
    }


def _vm_steps(params: Params, seen: Seen, findings: list[Finding]) -> list[Step]:
    steps, have = [], instances_by_node(seen.instances, params.cluster)
    if not seen.ssh_key:
        steps.append(
            Step(
                "make-ssh-key",
                "make-ssh-key",
                "the cluster's SSH key",
                "a key of its own, in the secret store",
                "create",
            )
        )
    for wish in params.wishes:
        vm = have.pop(wish.name, None)
        size = f"{wish.shape}, {wish.ocpus:g} OCPU, {wish.memory_gb:g} GB, {wish.arch}"
        if vm is None:
            steps.append(
                Step(
                    f"launch:{wish.name}",
                    "launch",
                    f"VM {wish.name}",
                    f"wanted as {wish.role}: {size}",
                    "create",
                    {
                        "node": wish.name,
                        "shape": wish.shape,
                        "ocpus": wish.ocpus,
                        "memory_gb": wish.memory_gb,
                        "boot_volume_gb": wish.boot_volume_gb,
                    },
                    undo="terminate",
                    batch="vms",
                )
            )
        elif vm.state in ("STOPPED", "STOPPING"):
            steps.append(
                Step(
                    f"start:{wish.name}",
                    "start",
                    f"VM {wish.name}",
                    f"it is {vm.state.lower()}",
                    "change",
                    {"node": wish.name},
                    batch="vms",
                )
            )
        elif _untagged(vm, seen.resources, params.cluster):
            steps.append(
                Step(
                    f"tag-volume:{wish.name}",
                    "tag-volume",
                    f"boot volume of {wish.name}",
                    "without our tag it could not be told from others when its VM is gone",
                    "change",
                    {"node": wish.name},
                    batch="vms",
                )
            )
        elif wrong := mismatch(wish, vm, degrade=params.provision.degrade):
            findings.append(
                Finding(
                    "refusal",
                    wish.name,
                    f"the VM there is not what is wanted: {wrong}",
                    "change the params to match, or remove the node with 910-maintain-nodes first",
                )
            )
    for name in have:
        findings.append(Finding("warning", name, "a VM of this cluster that the params no longer want", "see 910"))
    foreign = [vm.name for vm in seen.instances if TAG not in vm.tags]
    if foreign:
        findings.append(
            Finding("note", ", ".join(foreign), "VMs in this compartment that aren't hybridlab's: left alone")
        )
    return steps


def _untagged(vm: CloudInstance, resources: Sequence[CloudResource], cluster: str) -> bool:
    """Whether a running VM's boot volume lacks our tag: volumes don't inherit, and a launch may have been cut off."""
    volume = next((r for r in resources if r.kind == "boot-volume" and r.id == vm.boot_volume_id), None)
    return vm.state == "RUNNING" and volume is not None and not ours(volume.tags, cluster)


def mismatch(wish: NodeWish, vm: CloudInstance, *, degrade: bool = False) -> str:
    """In what a VM differs from the wish; empty where it is what was asked for."""
    wrong = []
    if vm.shape != wish.shape:
        wrong.append(f"shape {vm.shape}, not {wish.shape}")
    if vm.arch != wish.arch:
        wrong.append(f"architecture {vm.arch}, not {wish.arch}")
    if wish.arch == "arm64":  # a micro's size is fixed
        sizes = [(wish.ocpus, wish.memory_gb), *([(1.0, 6.0)] if degrade else [])]
        if (vm.ocpus, vm.memory_gb) not in sizes:
            wrong.append(f"{vm.ocpus:g} OCPU and {vm.memory_gb:g} GB, not {wish.ocpus:g} and {wish.memory_gb:g}")
    if vm.boot_volume_gb is not None and vm.boot_volume_gb < wish.boot_volume_gb:
        wrong.append(f"boot volume {vm.boot_volume_gb} GB, not {wish.boot_volume_gb}")
    return "; ".join(wrong)


# -- actions -----------------------------------------------------------------------------------------------------------
def _tags(ctx: Context) -> dict[str, str]:
    return {TAG: ctx.params.cluster}


def _need(ctx: Context, kind: str) -> CloudResource:
    found = find(ctx.oracle.resources(), kind, ctx.params.cluster)
    if found is None:
        raise NotFound(f"our {kind} is not there", where=ctx.params.cluster, next_move="run 020 again")
    return found


def _create_vcn(ctx: Context, step: Step) -> Mapping[str, Json]:
    made = ctx.oracle.create_vcn(ctx.params.cluster, step.args["cidr"], _tags(ctx))
    return {"id": made.id}


def _create_gateway(ctx: Context, step: Step) -> Mapping[str, Json]:
    vcn = _need(ctx, "vcn")
    return {"id": ctx.oracle.create_internet_gateway(ctx.params.cluster, vcn.id, _tags(ctx)).id}


def _set_route(ctx: Context, step: Step) -> Mapping[str, Json]:
    table = str(_need(ctx, "vcn").detail["default_route_table_id"])
    ctx.oracle.set_default_route(table, _need(ctx, "internet-gateway").id)
    return {"id": table}


def _close_default_list(ctx: Context, step: Step) -> Mapping[str, Json]:
    found = str(_need(ctx, "vcn").detail["default_security_list_id"])
    ctx.oracle.set_security_list(found, [SecurityRule("ingress", "icmp", "0.0.0.0/0", 3, 4, "path MTU discovery")])
    return {"id": found}


def _create_nsg(ctx: Context, step: Step) -> Mapping[str, Json]:
    return {"id": ctx.oracle.create_nsg(ctx.params.cluster, _need(ctx, "vcn").id, _tags(ctx)).id}


def _set_rules(ctx: Context, step: Step) -> Mapping[str, Json]:
    nsg = _need(ctx, "nsg")
    add, remove = rule_changes(wanted_rules(ctx.params, operator_cidr(ctx)), ctx.oracle.rules(nsg.id))
    if add:
        ctx.oracle.add_rules(nsg.id, add)
    if remove:
        ctx.oracle.remove_rules(nsg.id, [r.id for r in remove])
    return {"id": nsg.id, "added": len(add), "removed": len(remove)}


def _create_subnet(ctx: Context, step: Step) -> Mapping[str, Json]:
    made = ctx.oracle.create_subnet(ctx.params.cluster, _need(ctx, "vcn").id, step.args["cidr"], _tags(ctx))
    return {"id": made.id}


def _launch(ctx: Context, step: Step) -> Mapping[str, Json]:
    wish = next(w for w in ctx.params.wishes if w.name == step.args["node"])
    subnet, nsg = _need(ctx, "subnet"), _need(ctx, "nsg")
    return launch_node(ctx, step, wish, subnet.id, nsg.id, {**_tags(ctx), NODE_TAG: wish.name})


def _tag_volume(ctx: Context, step: Step) -> Mapping[str, Json]:
    vm = instances_by_node(ctx.oracle.instances(), ctx.params.cluster).get(step.args["node"])
    if vm is None or vm.boot_volume_id is None:
        raise NotFound(f"node {step.args['node']} has no boot volume", next_move="run 020 again")
    ctx.oracle.tag_boot_volume(vm.boot_volume_id, {**_tags(ctx), NODE_TAG: step.args["node"]})
    return {"id": vm.boot_volume_id}


ACTIONS: Mapping[str, Action] = {
    "create-vcn": _create_vcn,
    "create-gateway": _create_gateway,
    "set-route": _set_route,
    "close-default-list": _close_default_list,
    "create-nsg": _create_nsg,
    "set-rules": _set_rules,
    "create-subnet": _create_subnet,
    "make-ssh-key": make_ssh_key,
    "tag-volume": _tag_volume,
    "launch": _launch,
    "start": start_node,
}


def verify(ctx: Context) -> tuple[Check, ...]:
    """Every VM is what was asked for, and the security group has exactly the wanted rules.

    Where nothing was changed since the look, and that was moments ago, it is not asked again: the answers would be the
    same. After any change, whatever came of it, Oracle is looked at anew.
    """
    if ctx.params.site == "byo":
        return ()
    seen = _look(ctx, FRESH_S)
    vms = instances_by_node(seen.instances, ctx.params.cluster)
    checks = []
    for wish in ctx.params.wishes:
        vm = vms.get(wish.name)
        if vm is None:
            checks.append(Check(f"VM {wish.name}", False, "there is none", "run 020 again"))
            continue
        wrong = mismatch(wish, vm, degrade=ctx.params.provision.degrade)
        size = f"{vm.shape} {vm.ocpus:g} OCPU {vm.memory_gb:g} GB in {vm.availability_domain}, {vm.private_ip}"
        checks.append(Check(f"VM {wish.name}", vm.state == "RUNNING" and not wrong, wrong or f"{vm.state}, {size}"))
    add, remove = rule_changes(wanted_rules(ctx.params, seen.operator_cidr), seen.rules)
    evidence = f"{len(seen.rules)} rules; SSH and API from {seen.operator_cidr} only"
    if add or remove:
        evidence = f"{len(add)} missing, {len(remove)} not wanted"
    checks.append(Check("security group", not add and not remove, evidence))
    vcn = find(seen.resources, "vcn", ctx.params.cluster)
    closed = list_closed(vcn, seen.resources)
    checks.append(Check("default security list", closed, "lets in ICMP only" if closed else "lets in more than ICMP"))
    return tuple(checks)
