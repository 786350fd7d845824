"""How a pod finds addresses: extra_hosts → hostAliases, dns, dns_search and dns_opt → dnsConfig.

Limits: Kubernetes' API reference, PodDNSConfig (1.36): 3 servers, 32 search domains of 2,048 characters together.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping

from hybridlab.compose.fidelity import Record
from hybridlab.compose.model import Obj
from hybridlab.models import Json

_DOMAIN = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_DOMAIN_MAX = 253
_SEARCHES = 32
_SEARCHES_LENGTH = 2048
_SERVERS = 2  # of three: the cluster's own comes first


def host_aliases(service: str, spec: Mapping[str, Json], record: Record) -> list[Obj]:
    by_address: dict[str, list[str]] = {}
    given = spec.get("extra_hosts") or []
    pairs = given.items() if isinstance(given, Mapping) else (_pair(str(text)) for text in given)
    for name, addresses in pairs:
        for address in [addresses] if isinstance(addresses, str) else addresses:
            key, plain, host = f"extra_hosts.{name}", address.strip("[]"), str(name).lower()
            if address == "host-gateway":
                record.refused(service, key, "the Docker host is not there; name the node or service meant")
            elif not _is_address(plain):
                record.refused(service, key, f"{address!r} is not an address")
            elif not _is_domain(host):
                record.refused(service, key, "not a host name that Kubernetes accepts")
            else:
                by_address.setdefault(plain, []).append(host)
                record.mapped(service, key, "hostAliases")
    return [{"ip": address, "hostnames": names} for address, names in by_address.items()]


def dns_config(service: str, spec: Mapping[str, Json], addresses: Mapping[str, str], record: Record) -> dict[str, Json]:
    """``addresses``: fixed IPs in the project → the service that has it."""
    out: dict[str, Json] = {}
    for server in _listed(spec.get("dns")):
        if server in addresses:
            record.refused(
                service,
                "dns",
                f"{server} is {addresses[server]}'s fixed address, which does not exist here; "
                "point CoreDNS' forward at that Service if it must resolve for everyone",
            )
        elif not _is_address(server) or server.startswith("127.") or len(out.get("nameservers", [])) >= _SERVERS:
            record.refused(service, "dns", f"{server}: not reachable from a pod, or more than resolvers take (3)")
        else:
            out.setdefault("nameservers", []).append(server)
            record.approximated(service, "dns", f"{server} after the cluster's own, which service names need")
    for domain in _listed(spec.get("dns_search")):
        known = out.get("searches", [])
        if not _is_domain(domain.removesuffix(".")):
            record.refused(service, "dns_search", f"{domain}: not a domain that Kubernetes accepts")
        elif len(known) == _SEARCHES or len(" ".join([*known, domain])) > _SEARCHES_LENGTH:
            record.refused(
                service, "dns_search", f"{domain}: more than the {_SEARCHES} that Kubernetes takes, or too long"
            )
        else:
            out.setdefault("searches", []).append(domain)
            record.mapped(service, "dns_search", "dnsConfig.searches")
    for option in _listed(spec.get("dns_opt")):
        name, colon, value = option.partition(":")
        if not name:
            record.refused(service, "dns_opt", f"{option!r} has no name")
            continue
        out.setdefault("options", []).append({"name": name, "value": value} if colon else {"name": name})
        record.mapped(service, "dns_opt", "dnsConfig.options")
    return out


def _listed(value: Json) -> Iterable[str]:
    return [value] if isinstance(value, str) else [str(item) for item in value or []]


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_domain(text: str) -> bool:
    return len(text) <= _DOMAIN_MAX and _DOMAIN.fullmatch(text) is not None


def _pair(text: str) -> tuple[str, str]:
    name, _, address = text.partition("=" if "=" in text else ":")
    return name, address
