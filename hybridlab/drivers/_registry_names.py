"""Image references taken apart as Docker does (https://github.com/distribution/reference), and registry hosts."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

HUB = "registry-1.docker.io"
_HUB_NAMES = frozenset({"docker.io", "index.docker.io", HUB})
_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9a-fA-F:]+\])(?::\d{1,5})?")
_PATH = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")


@dataclass(frozen=True)
class Reference:
    """Where an image is to be asked for: ``host`` is the registry's, ``digest`` wins over ``tag``."""

    host: str
    repository: str
    tag: str
    digest: str

    @property
    def wanted(self) -> str:
        """What follows /manifests/ in a request."""
        return self.digest or self.tag

    @property
    def canonical(self) -> str:
        return f"{self.host}/{self.repository}" + (f"@{self.digest}" if self.digest else f":{self.tag}")


def parse_reference(text: str) -> Reference:
    """Take a reference apart. Raises ValueError that says what is wrong with it."""
    rest, at, digest = text.strip().partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise ValueError(f"{digest!r} is not a digest")
    head, slash, path = rest.partition("/")
    if slash and ("." in head or ":" in head or head == "localhost"):
        host = head
    else:
        host, path = HUB, rest
    if not _HOST.fullmatch(host):
        raise ValueError(f"{host!r} is not a registry's host name")
    name, colon, tag = path.rpartition(":")
    if not colon:
        name, tag = path, "latest"
    if not _TAG.fullmatch(tag):
        raise ValueError(f"{tag!r} is not a tag")
    if not _PATH.fullmatch(name):
        hint = " (names are lower case)" if name != name.lower() else ""
        raise ValueError(f"{name!r} is not a repository's name{hint}")
    host = HUB if host in _HUB_NAMES else host
    if host == HUB and "/" not in name:
        name = f"library/{name}"
    return Reference(host, name, tag, digest)


def is_digest(text: str) -> bool:
    return _DIGEST.fullmatch(text) is not None


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
