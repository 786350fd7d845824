"""From Oracle's objects to ours and back: nothing of the SDK gets past here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hybridlab.drivers._oracle_memory import Address
from hybridlab.models import Arch, CloudInstance, CloudResource, Json, SecurityRule, ShapeInfo

GONE = frozenset({"TERMINATED"})
_ARM_SHAPE = re.compile(r"\.A\d(\.|$)")
_PROTOCOLS: Mapping[str, str] = {"all": "all", "1": "icmp", "6": "tcp", "17": "udp", "58": "icmpv6"}
_NUMBERS = {name: number for number, name in _PROTOCOLS.items()}


def arch_of_shape(shape: str) -> Arch:
    """Ampere shapes (A1, A2, …) are arm64, all others amd64."""
    return "arm64" if _ARM_SHAPE.search(shape) else "amd64"


def instance(
    found: Any, address: Address | None, public_ip: str | None, boot_volume_id: str | None, boot_volume_gb: int | None
) -> CloudInstance:
    config = found.shape_config
    source = found.source_details
    return CloudInstance(
        id=found.id,
        name=found.display_name,
        state=found.lifecycle_state,
        shape=found.shape,
        arch=arch_of_shape(found.shape),
        ocpus=float(config.ocpus) if config and config.ocpus is not None else 0.0,
        memory_gb=float(config.memory_in_gbs) if config and config.memory_in_gbs is not None else 0.0,
        availability_domain=found.availability_domain,
        private_ip=address.private_ip if address else None,
        public_ip=public_ip,
        boot_volume_id=boot_volume_id,
        boot_volume_gb=boot_volume_gb,
        tags=dict(found.freeform_tags or {}),
        image=found.image_id or getattr(source, "image_id", None) or "",
        created=found.time_created.isoformat() if found.time_created else "",
        subnet_id=address.subnet_id if address else "",
    )


def resource(kind: str, found: Any, **detail: Json) -> CloudResource:
    return CloudResource(
        kind=kind,
        id=found.id,
        name=found.display_name or "",
        state=found.lifecycle_state or "",
        tags=dict(found.freeform_tags or {}),
        detail=detail,
    )


def network_resource(kind: str, found: Any) -> CloudResource:
    """A VCN, internet gateway, route table, security list, NSG or subnet."""
    if kind == "vcn":
        return resource(
            kind,
            found,
            vcn_id=found.id,
            cidr=(found.cidr_blocks or [found.cidr_block])[0],
            default_route_table_id=found.default_route_table_id,
            default_security_list_id=found.default_security_list_id,
        )
    if kind == "route-table":
        rules = tuple((r.destination or r.cidr_block, r.network_entity_id) for r in found.route_rules or ())
        return resource(kind, found, vcn_id=found.vcn_id, rules=rules)
    if kind == "security-list":
        ingress = tuple(listed_rule(r) for r in found.ingress_security_rules or ())
        return resource(kind, found, vcn_id=found.vcn_id, ingress=ingress)
    if kind == "subnet":
        return resource(kind, found, vcn_id=found.vcn_id, cidr=found.cidr_block, route_table_id=found.route_table_id)
    if kind == "internet-gateway":
        return resource(kind, found, vcn_id=found.vcn_id, enabled=bool(found.is_enabled))
    return resource(kind, found, vcn_id=found.vcn_id)


def shape(found: Any, availability_domain: str) -> ShapeInfo:
    """Maxima are those of a flexible shape, else the fixed size."""
    cores, memory = found.ocpu_options, found.memory_options
    return ShapeInfo(
        name=found.shape,
        availability_domain=availability_domain,
        billing=found.billing_type or "PAID",
        ocpus_max=float((cores.max if cores else None) or found.ocpus or 0),
        memory_gb_max=float((memory.max_in_g_bs if memory else None) or found.memory_in_gbs or 0),
    )


def security_rule(found: Any, nsg_id: str) -> SecurityRule:
    """ICMP's type and code stand where other protocols have ports. What our model can't say (stateless rules, source
    ports) is said in ``protocol``, so that such a rule never passes for a wanted one."""
    protocol, low, high = _protocol_and_ports(found)
    peer = found.source if found.direction == "INGRESS" else found.destination
    return SecurityRule(
        direction="ingress" if found.direction == "INGRESS" else "egress",
        protocol=protocol,
        peer="group" if peer == nsg_id else str(peer),
        port_min=low,
        port_max=high,
        description=found.description or "",
        id=found.id,
    )


def listed_rule(found: Any) -> SecurityRule:
    """An ingress rule of a security list."""
    protocol, low, high = _protocol_and_ports(found)
    return SecurityRule("ingress", protocol, str(found.source), low, high, found.description or "")


def _protocol_and_ports(found: Any) -> tuple[str, int | None, int | None]:
    protocol = _PROTOCOLS.get(str(found.protocol), str(found.protocol))
    low = high = None
    options = found.tcp_options or found.udp_options
    if options:
        if options.source_port_range:
            protocol += f" from {options.source_port_range.min}-{options.source_port_range.max}"
        if options.destination_port_range:
            low, high = options.destination_port_range.min, options.destination_port_range.max
    elif found.icmp_options:
        low, high = found.icmp_options.type, found.icmp_options.code
    if found.is_stateless:
        protocol += " stateless"
    return protocol, low, high


def rule_details(rule: SecurityRule, nsg_id: str) -> Any:
    """The SDK's AddSecurityRuleDetails for a rule."""
    from oci.core import models as m

    kind = "NETWORK_SECURITY_GROUP" if rule.peer == "group" else "CIDR_BLOCK"
    peer = nsg_id if rule.peer == "group" else rule.peer
    details = {"direction": rule.direction.upper(), **_common_details(rule)}
    if rule.direction == "ingress":
        details |= {"source": peer, "source_type": kind}
    else:
        details |= {"destination": peer, "destination_type": kind}
    return m.AddSecurityRuleDetails(**details)


def listed_rule_details(rule: SecurityRule) -> Any:
    """The SDK's IngressSecurityRule for a rule of a security list."""
    from oci.core import models as m

    return m.IngressSecurityRule(source=rule.peer, source_type="CIDR_BLOCK", **_common_details(rule))


def _common_details(rule: SecurityRule) -> dict[str, Any]:
    from oci.core import models as m

    details: dict[str, Any] = {
        "protocol": _NUMBERS.get(rule.protocol, rule.protocol),
        "description": rule.description or None,
        "is_stateless": False,
    }
    if rule.port_min is not None and rule.protocol in ("tcp", "udp"):
        ports = m.PortRange(min=rule.port_min, max=rule.port_min if rule.port_max is None else rule.port_max)
        options = m.TcpOptions if rule.protocol == "tcp" else m.UdpOptions
        details[f"{rule.protocol}_options"] = options(destination_port_range=ports)
    elif rule.port_min is not None and rule.protocol == "icmp":
        details["icmp_options"] = m.IcmpOptions(type=rule.port_min, code=rule.port_max)
    return details


def dns_label(name: str) -> str:
    """A VCN's or subnet's DNS label: at most 15 letters and digits, a letter first."""
    label = re.sub(r"[^a-z0-9]", "", name.lower())
    return (label if label[:1].isalpha() else "n" + label)[:15]


def hostname_label(name: str) -> str:
    """A VNIC's hostname (RFC 952 and 1123): at most 63 letters, digits and inner hyphens."""
    return re.sub(r"[^a-z0-9-]", "-", name.lower())[:63].strip("-") or "node"
