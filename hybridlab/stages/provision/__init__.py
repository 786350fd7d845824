"""020: network and VMs in Oracle Cloud: VCN, gateway, route, security group, subnet, one VM a wanted node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hybridlab.errors import NotFound
from hybridlab.models import Check, CloudInstance, CloudResource, Finding, Json, NodeWish, SecurityRule
from hybridlab.params import Params
from hybridlab.plan import Plan, Step, unknown
from hybridlab.ports import TAG, Context
from hybridlab.stages.base import Action, Upstream
from hybridlab.stages.nodes import NODE_TAG, instances_by_node, ours
from hybridlab.stages.provision.launch import launch_node, make_ssh_key, start_node

NAME = "provision"
NEEDS = ("layout",)


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
    if ctx.params.site == "byo":
        return Seen()
    resources = ctx.oracle.resources()
    nsg = find(resources, "nsg", ctx.params.cluster)
    return Seen(
        instances=ctx.oracle.instances(),
        resources=resources,
        rules=ctx.oracle.rules(nsg.id) if nsg else (),
        operator_cidr=operator_cidr(ctx),
        ssh_key=ctx.secrets.get("ssh_key") is not None,
    )


def operator_cidr(ctx: Context) -> str:
    wanted = ctx.params.provision.operator_cidr
    return f"{ctx.site.operator_ip()}/32" if wanted == "auto" else wanted


def find(resources: Sequence[CloudResource], kind: str, cluster: str) -> CloudResource | None:
    """Our resource of that kind, by tag; one that is going away doesn't count."""
    going = ("TERMINATING", "TERMINATED")
    found = (r for r in resources if r.kind == kind and ours(r.tags, cluster) and r.state not in going)
    return next(found, None)


def wanted_rules(params: Params, operator: str) -> tuple[SecurityRule, ...]:
    """The one security group: everything among its members, SSH and the API from the operator only, all outwards.

    ICMP type 3 code 4 stays open to all: VMs have an MTU of 9000, and without it large transfers hang.
    """
    rules = [
        SecurityRule("ingress", "all", "group", description="all traffic among the nodes"),
        SecurityRule("ingress", "tcp", operator, 22, 22, "SSH from the operator"),
        SecurityRule("ingress", "tcp", operator, 6443, 6443, "Kubernetes API from the operator"),
        SecurityRule("ingress", "icmp", "0.0.0.0/0", 3, 4, "path MTU discovery"),
        SecurityRule("egress", "all", "0.0.0.0/0", description="everything outwards"),
    ]
    if params.expose.method == "traefik":
        for port in (80, 443):
            rules.append(SecurityRule("ingress", "tcp", "0.0.0.0/0", port, port, "Traefik"))
    return tuple(rules)


def plan(params: Params, seen: Seen, upstream: Upstream) -> Plan:
    """What is missing or different in Oracle Cloud, in the order it has to be made."""
    if params.site == "byo":
        note = Finding("note", "site byo", "the hosts are yours already: nothing to provision")
        return Plan(NAME, (), {"nodes": [_expected(w, w.address) for w in params.wishes]}, (note,))
    findings = [Finding("refusal", "layout", text) for text in upstream["layout"]["refused"]]
    steps = [*_network_steps(params, seen), *_vm_steps(params, seen, findings)]
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


def _network_steps(params: Params, seen: Seen) -> list[Step]:
    name, steps = params.cluster, []

    def have(kind: str) -> CloudResource | None:
        return find(seen.resources, kind, name)

    vcn = have("vcn")
    if vcn is None:
        cidr = params.provision.vcn_cidr
        steps.append(
            Step(
                "create-vcn",
                "create-vcn",
                f"VCN {name}",
                f"the nodes need a network of their own ({cidr})",
                "create",
                {"cidr": cidr},
                undo="delete-vcn",
            )
        )
    gateway = have("internet-gateway")
    if gateway is None:
        steps.append(
            Step(
                "create-gateway",
                "create-gateway",
                f"internet gateway {name}",
                "the way out to images and packages",
                "create",
                undo="delete-gateway",
            )
        )
    if not _routed(vcn, gateway, seen.resources):
        steps.append(
            Step("set-route", "set-route", f"default route table of {name}", "0.0.0.0/0 goes to the gateway", "change")
        )
    if not _list_closed(vcn, seen.resources):
        steps.append(
            Step(
                "close-default-list",
                "close-default-list",
                f"default security list of {name}",
                "Oracle's default opens SSH to the whole internet; the security group decides instead",
                "change",
            )
        )
    if have("nsg") is None:
        steps.append(
            Step(
                "create-nsg",
                "create-nsg",
                f"security group {name}",
                "one group for all nodes",
                "create",
                undo="delete-nsg",
            )
        )
    wanted = wanted_rules(params, seen.operator_cidr)
    add, remove = rule_changes(wanted, seen.rules)
    if add or remove:
        what = [f"{len(add)} missing"] if add else []
        what += [f"{len(remove)} not wanted"] if remove else []
        steps.append(
            Step(
                "set-rules",
                "set-rules",
                f"security group {name}",
                "rules: " + ", ".join(what),
                "change",
                {"add": [_rule_json(r) for r in add], "remove": [_rule_json(r) for r in remove]},
            )
        )
    if have("subnet") is None:
        cidr = params.provision.subnet_cidr
        steps.append(
            Step(
                "create-subnet",
                "create-subnet",
                f"subnet {name}",
                f"public addresses for the nodes ({cidr})",
                "create",
                {"cidr": cidr},
                undo="delete-subnet",
            )
        )
    return steps


def _routed(vcn: CloudResource | None, gateway: CloudResource | None, resources: Sequence[CloudResource]) -> bool:
    if vcn is None or gateway is None:
        return False
    table = next((r for r in resources if r.id == vcn.detail["default_route_table_id"]), None)
    return table is not None and any(list(rule) == ["0.0.0.0/0", gateway.id] for rule in table.detail["rules"])


def _list_closed(vcn: CloudResource | None, resources: Sequence[CloudResource]) -> bool:
    """Whether the default security list lets in nothing but ICMP."""
    if vcn is None:
        return False
    found = next((r for r in resources if r.id == vcn.detail["default_security_list_id"]), None)
    return found is not None and all(rule.protocol == "icmp" for rule in found.detail["ingress"])


def rule_changes(
    wanted: Sequence[SecurityRule], live: Sequence[SecurityRule]
) -> tuple[list[SecurityRule], list[SecurityRule]]:
    """Rules to add and live rules to remove, compared by what they allow, not by description."""

    def key(rule: SecurityRule) -> tuple[Json, ...]:
        return (rule.direction, rule.protocol, rule.peer, rule.port_min, rule.port_max)

    have, want = {key(r) for r in live}, {key(r) for r in wanted}
    return [r for r in wanted if key(r) not in have], [r for r in live if key(r) not in want]


def _rule_json(rule: SecurityRule) -> dict[str, Json]:
    data = {"direction": rule.direction, "protocol": rule.protocol, "peer": rule.peer}
    ports = {"port_min": rule.port_min, "port_max": rule.port_max} if rule.port_min is not None else {}
    return {**data, **ports, "description": rule.description}


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


ACTIONS: Mapping[str, Action] = {
    "create-vcn": _create_vcn,
    "create-gateway": _create_gateway,
    "set-route": _set_route,
    "close-default-list": _close_default_list,
    "create-nsg": _create_nsg,
    "set-rules": _set_rules,
    "create-subnet": _create_subnet,
    "make-ssh-key": make_ssh_key,
    "launch": _launch,
    "start": start_node,
}


def verify(ctx: Context) -> tuple[Check, ...]:
    """Every VM is what was asked for, reachable by SSH, and the security group has exactly the wanted rules."""
    if ctx.params.site == "byo":
        return ()
    seen = look(ctx)
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
    closed = _list_closed(vcn, seen.resources)
    checks.append(Check("default security list", closed, "lets in ICMP only" if closed else "lets in more than ICMP"))
    return tuple(checks)
