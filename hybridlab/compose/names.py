"""Names that Kubernetes accepts, kept recognisable and unique.

Limits: Service, volume, container and label value 63; port name 15 with a letter; most objects 253 (63 used here, so
that a name is also a label value).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

MAX_LABEL = 63
# A StatefulSet's pods carry its name and an 11-character revision hash in one label value.
MAX_STATEFUL_SET = 52


def short_hash(text: str, length: int = 8) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def label(text: str, *, fallback: str = "x", max_length: int = MAX_LABEL) -> str:
    """A DNS-1035 label (starts with a letter): lower case, other characters as dashes, too long ones hashed."""
    slug = re.sub(r"-{2,}", "-", re.sub(r"[^a-z0-9-]+", "-", text.lower())).strip("-") or fallback
    if not slug[0].isalpha():
        slug = f"n{slug}" if slug[0].isdigit() else f"x-{slug}"
    if len(slug) > max_length:
        slug = f"{slug[: max_length - 9].rstrip('-')}-{short_hash(text)}"
    return slug


def is_label(text: str) -> bool:
    return bool(re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", text))


def label_value(text: str) -> str:
    """A label value: at most 63 characters of [A-Za-z0-9._-], alphanumeric at both ends."""
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "-", text)
    if len(cleaned) > MAX_LABEL:
        cleaned = f"{cleaned[: MAX_LABEL - 9]}-{short_hash(text)}"
    return cleaned.strip("-._")


def is_annotation_key(key: str) -> bool:
    """Whether Kubernetes takes it as a qualified name: the key of an annotation or label, an appProtocol."""
    prefix, slash, name = key.rpartition("/")
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", name):
        return False
    dns = r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*"
    return not slash or (len(prefix) <= 253 and bool(re.fullmatch(dns, prefix)))


def config_key(text: str) -> str:
    """A key of a ConfigMap or Secret: [-._a-zA-Z0-9]+, at most 253 characters, not ``.`` or ``..``."""
    key = re.sub(r"[^-._a-zA-Z0-9]+", "_", text)
    if len(key) > 253:
        key = f"{key[:240]}-{short_hash(text)}"
    return key if key.strip(".") else f"file{key}"


def port_name(protocol: str, port: int) -> str:
    return f"{protocol.lower()}-{port}"


class NameBook:
    """Hands out unique labels, one book per kind of object; asking again for the same thing gives the same name."""

    def __init__(self, reserved: Iterable[str] = ()) -> None:
        self._taken: dict[str, str] = dict.fromkeys(reserved, "")
        self._given: dict[str, str] = {}

    def name(self, wanted: str, *, identity: str | None = None, max_length: int = MAX_LABEL) -> str:
        identity = identity or wanted
        if identity in self._given:
            return self._given[identity]
        slug = label(wanted, max_length=max_length)
        if slug in self._taken:
            slug = f"{slug[: max_length - 9].rstrip('-')}-{short_hash(identity)}"
        self._taken[slug] = identity
        self._given[identity] = slug
        return slug


def service_names(names: Iterable[str]) -> dict[str, str]:
    """Compose service → Kubernetes name; those that need no change come first, so nobody takes theirs."""
    book = NameBook()
    ordered = list(names)
    for name in ordered:
        if is_label(name):
            book.name(name)
    return {name: book.name(name) for name in ordered}
