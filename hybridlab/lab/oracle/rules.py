"""Security rules: what Oracle accepts as one, and which packets one lets through."""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from hybridlab.lab.oracle.errors import invalid, missing
from hybridlab.lab.oracle.http import check_fields, without_nulls
from hybridlab.lab.oracle.store import Json
from hybridlab.lab.world import Protocol_

Direction = Literal["INGRESS", "EGRESS"]
NUMBERS: Mapping[Protocol_, str] = {"icmp": "1", "tcp": "6", "udp": "17"}
_COMMON = "description icmpOptions:dict isStateless:bool protocol! tcpOptions:dict udpOptions:dict"


def cidr(value: object, name: str) -> ipaddress.IPv4Network:
    """An IPv4 network without host bits, or 400."""
    try:
        if not isinstance(value, str) or "/" not in value:
            raise ValueError
        return ipaddress.IPv4Network(value)
    except ValueError:
        raise invalid(f"{name}: {value} is not a valid CIDR block") from None


def list_rule(rule: Any, direction: Direction) -> Json:
    """A rule of a security list, checked."""
    if not isinstance(rule, dict):
        raise invalid("security rules must be objects")
    peer = "source" if direction == "INGRESS" else "destination"
    given: Json = without_nulls(rule)
    check_fields(given, f"{_COMMON} {peer}! {peer}Type", "security rule: ")
    if given.get(f"{peer}Type", "CIDR_BLOCK") != "CIDR_BLOCK":
        raise invalid(f"security rule: {peer}Type must be CIDR_BLOCK")
    cidr(given[peer], f"security rule: {peer}")
    _check_protocol(given)
    return {"isStateless": False, f"{peer}Type": "CIDR_BLOCK", **given}


def group_rule(rule: Any, groups: Iterable[str]) -> Json:
    """A rule of a network security group, checked; ``groups`` are the NSGs of the VCN, which it may name."""
    if not isinstance(rule, dict):
        raise invalid("securityRules must hold objects")
    given: Json = without_nulls(rule)
    check_fields(given, f"{_COMMON} direction! source sourceType destination destinationType", "security rule: ")
    if given["direction"] not in ("INGRESS", "EGRESS"):
        raise invalid("security rule: direction must be INGRESS or EGRESS")
    peer, other = ("source", "destination") if given["direction"] == "INGRESS" else ("destination", "source")
    if peer not in given:
        raise missing(f"security rule: {peer}")
    if other in given or f"{other}Type" in given:
        raise invalid(f"security rule: {other} must not be given for {given['direction']}")
    kind = given.setdefault(f"{peer}Type", "CIDR_BLOCK")
    if kind == "CIDR_BLOCK":
        cidr(given[peer], f"security rule: {peer}")
    elif kind != "NETWORK_SECURITY_GROUP":
        raise invalid(f"security rule: {peer}Type must be CIDR_BLOCK or NETWORK_SECURITY_GROUP")
    elif given[peer] not in groups:
        raise invalid(f"security rule: {given[peer]} is no network security group of this VCN")
    _check_protocol(given)
    return {"isStateless": False, **given}


def new_rule_id(taken: Iterable[str]) -> str:
    """Six hex digits, as Oracle numbers the rules of a group."""
    used = set(taken)
    while (ident := secrets.token_hex(3).upper()) in used:
        pass
    return ident


def _check_protocol(rule: Json) -> None:
    protocol = rule["protocol"]
    if protocol != "all" and not (protocol.isascii() and protocol.isdigit() and int(protocol) <= 255):
        raise invalid(f"security rule: protocol {protocol} must be all or a number from 0 to 255")
    for name, number in (("tcpOptions", "6"), ("udpOptions", "17")):
        if name in rule:
            if protocol != number:
                raise invalid(f"security rule: {name} needs protocol {number}")
            check_fields(rule[name], "destinationPortRange:dict sourcePortRange:dict", f"{name}: ")
            for ports in rule[name].values():
                check_fields(ports, "min!:int max!:int", f"{name}: ")
                if not 1 <= ports["min"] <= ports["max"] <= 65535:
                    raise invalid(f"security rule: port range {ports['min']}-{ports['max']} is not valid")
    if "icmpOptions" in rule:
        if protocol != "1":
            raise invalid("security rule: icmpOptions needs protocol 1")
        check_fields(rule["icmpOptions"], "type!:int code:int", "icmpOptions: ")


def default_security_rules(vcn_blocks: Iterable[str]) -> Json:
    """The rules of a VCN's default security list: SSH from everywhere, the ICMP that path MTU needs, all out."""
    ssh = {"protocol": "6", "source": "0.0.0.0/0", "tcpOptions": {"destinationPortRange": {"min": 22, "max": 22}}}
    mtu = {"protocol": "1", "source": "0.0.0.0/0", "icmpOptions": {"type": 3, "code": 4}}
    inside = [{"protocol": "1", "source": block, "icmpOptions": {"type": 3}} for block in vcn_blocks]
    return {
        "ingressSecurityRules": [list_rule(rule, "INGRESS") for rule in (ssh, mtu, *inside)],
        "egressSecurityRules": [list_rule({"protocol": "all", "destination": "0.0.0.0/0"}, "EGRESS")],
    }


def lets_through(
    rule: Json, direction: Direction, protocol: Protocol_, port: int, peer_ip: str, peer_groups: Iterable[str]
) -> bool:
    """Whether a rule admits a packet. ``port`` is the destination port, or the type for ICMP."""
    if rule.get("direction", direction) != direction:
        return False
    if rule["protocol"] not in ("all", NUMBERS[protocol]):
        return False
    peer = "source" if direction == "INGRESS" else "destination"
    if rule[f"{peer}Type"] == "NETWORK_SECURITY_GROUP":
        if rule[peer] not in peer_groups:
            return False
    elif ipaddress.IPv4Address(peer_ip) not in ipaddress.IPv4Network(rule[peer]):
        return False
    if protocol == "icmp":
        return "icmpOptions" not in rule or rule["icmpOptions"]["type"] == port
    options = rule.get("tcpOptions" if protocol == "tcp" else "udpOptions", {})
    if "sourcePortRange" in options and options["sourcePortRange"] != {"min": 1, "max": 65535}:
        return False  # a client's own port is any ephemeral one
    ports = options.get("destinationPortRange", {"min": 1, "max": 65535})
    return bool(ports["min"] <= port <= ports["max"])
