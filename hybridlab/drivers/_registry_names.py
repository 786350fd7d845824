"""Registry hosts: which are private, and which belong together."""

from __future__ import annotations

import ipaddress


def hostname(netloc: str) -> str:
    """A host without its port."""
    return netloc.rpartition("]")[0].lstrip("[") if netloc.startswith("[") else netloc.partition(":")[0]


def is_private(host: str) -> bool:
    """Whether a host name is loopback or a literal private, link-local or reserved address."""
    if host == "localhost" or host.endswith((".localhost", ".local", ".internal")):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return not address.is_global


def belongs_to(other: str, registry: str) -> bool:
    """Whether ``other`` is the registry's own host or under the same parent domain (auth.docker.io is Docker Hub's)."""
    if other == registry:
        return True
    parents = {registry}
    parent = registry.partition(".")[2]
    if "." in parent and not is_private(registry):
        parents.add(parent)
    return any(other == p or other.endswith("." + p) for p in parents)
