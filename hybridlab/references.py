"""Image references taken apart as Docker does (https://github.com/distribution/reference)."""

from __future__ import annotations

import re
from dataclasses import dataclass

HUB = "registry-1.docker.io"  # where Docker Hub answers; images are named after docker.io
_HUB_NAMES = ("docker.io", "index.docker.io", "registry.hub.docker.com", HUB)
_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9a-fA-F:]+\])(?::\d{1,5})?")
_NAME = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")


@dataclass(frozen=True)
class Reference:
    """``registry/repository:tag@digest``; where both tag and digest are given, the digest decides."""

    registry: str
    repository: str
    tag: str = ""
    digest: str = ""

    def __str__(self) -> str:
        text = f"{self.registry}/{self.repository}"
        text += f":{self.tag}" if self.tag else ""
        return text + (f"@{self.digest}" if self.digest else "")

    @property
    def familiar(self) -> str:
        """As people write it: without docker.io and library/."""
        text = str(self)
        for prefix in ("docker.io/library/", "docker.io/"):
            if text.startswith(prefix):
                return text[len(prefix) :]
        return text

    @property
    def host(self) -> str:
        """Whom to ask for it."""
        return HUB if self.registry == "docker.io" else self.registry

    @property
    def canonical(self) -> str:
        """Host, repository and what decides."""
        return f"{self.host}/{self.repository}" + (f"@{self.digest}" if self.digest else f":{self.tag}")


def parse_reference(text: str) -> Reference:
    """The parts of an image reference, with Docker's defaults filled in (docker.io, library/, latest).

    The first part is a registry only with ``.`` or ``:``, or if it is ``localhost``. Raises ValueError that says what
    is wrong with it.
    """
    rest, at, digest = text.strip().partition("@")
    if at and not is_digest(digest):
        raise ValueError(f"{digest!r} is not a digest (sha256: and 64 hexadecimal digits)")
    head, slash, path = rest.partition("/")
    if slash and ("." in head or ":" in head or head == "localhost"):
        registry = head
    else:
        registry, path = "docker.io", rest
    if not _HOST.fullmatch(registry):
        raise ValueError(f"{registry!r} is not a registry's host name")
    name, colon, tag = path.rpartition(":")
    if not colon:
        name, tag = path, "" if digest else "latest"
    if (colon or tag) and not _TAG.fullmatch(tag):
        raise ValueError(f"{tag!r} is not a tag")
    if registry in _HUB_NAMES:
        registry = "docker.io"
        name = name if "/" in name else f"library/{name}"
    if not _NAME.fullmatch(name):
        hint = " (names are lower case)" if name != name.lower() else ""
        raise ValueError(f"{name!r} is not a repository's name{hint}")
    return Reference(registry, name, tag, digest)


def is_digest(text: str) -> bool:
    return _DIGEST.fullmatch(text) is not None
