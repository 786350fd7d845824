"""The network of a cluster: which steps are missing, and which rules its security group should have. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from hybridlab.models import CloudResource, Json, SecurityRule
from hybridlab.params import Params
from hybridlab.plan import Step
from hybridlab.stages.nodes import ours


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


def network_steps(
    params: Params, resources: Sequence[CloudResource], live: Sequence[SecurityRule], operator_cidr: str
) -> list[Step]:
    """What is missing or different in the network, in the order it has to be made."""
    name, steps = params.cluster, []

    def have(kind: str) -> CloudResource | None:
        return find(resources, kind, name)

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
    if not _routed(vcn, gateway, resources):
        steps.append(
            Step("set-route", "set-route", f"default route table of {name}", "0.0.0.0/0 goes to the gateway", "change")
        )
    if not list_closed(vcn, resources):
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
    wanted = wanted_rules(params, operator_cidr)
    add, remove = rule_changes(wanted, live)
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


def list_closed(vcn: CloudResource | None, resources: Sequence[CloudResource]) -> bool:
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
