"""What manifests, indexes and configuration blobs say, whatever their media type claims: pure functions over JSON.

Media types: OCI image index and manifest, Docker's manifest list v2 and manifest v2; Docker's schema 1 is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from hybridlab.models import ImageConfig, Json, Platform

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
ACCEPT = ", ".join((OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST))
CONFIG_TYPES = frozenset(
    {"application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json", ""}
)
_INDEX_TYPES = frozenset({OCI_INDEX, DOCKER_LIST})
_MANIFEST_TYPES = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
_ATTESTATION = "vnd.docker.reference.type"
_PLAIN_VARIANTS = {("arm64", "v8"), ("amd64", "v1")}
_PREFERRED = ("arm64", "amd64")  # whose config is read where there are several


class BadDocument(ValueError):
    """What a registry sent is not what it says, or nothing we can use; the text says why."""


@dataclass(frozen=True)
class Child:
    """One runnable image of an index."""

    digest: str
    platform: Platform


@dataclass(frozen=True)
class Document:
    """An index with its runnable children, or a manifest with its config blob's digest and media type."""

    kind: Literal["index", "manifest"]
    children: tuple[Child, ...] = ()
    config_digest: str = ""
    config_type: str = ""


def read_document(content: bytes) -> Document:
    """Take a manifest or index apart by its shape. Raises BadDocument where shape and mediaType contradict."""
    found = _object(content)
    if found.get("schemaVersion") == 1 or "fsLayers" in found:
        raise BadDocument("it is a schema 1 manifest, which no current runtime pulls")
    media_type = str(found.get("mediaType") or "")
    is_index, is_manifest = isinstance(found.get("manifests"), list), isinstance(found.get("config"), dict)
    if is_index == is_manifest:
        raise BadDocument("it is neither an index nor a manifest" if not is_index else "it is an index and a manifest")
    if (is_index and media_type in _MANIFEST_TYPES) or (is_manifest and media_type in _INDEX_TYPES):
        raise BadDocument(f"it claims to be {media_type} and is not")
    if is_index:
        return Document("index", children=tuple(_children(found["manifests"])))
    config = found["config"]
    return Document(
        "manifest", config_digest=str(config.get("digest", "")), config_type=str(config.get("mediaType") or "")
    )


def _children(entries: Iterable[Json]) -> Iterable[Child]:
    seen: set[str] = set()
    for entry in entries:
        if not isinstance(entry, dict) or _ATTESTATION in (entry.get("annotations") or {}):
            continue
        found = _platform(entry.get("platform"))
        if found is None or str(found) in seen or not entry.get("digest"):
            continue
        seen.add(str(found))
        yield Child(str(entry["digest"]), found)


def _platform(entry: Json) -> Platform | None:
    """A runnable linux platform; None for attestations (unknown/unknown), other systems, and none at all."""
    if not isinstance(entry, dict):
        return None
    system, architecture = str(entry.get("os") or ""), str(entry.get("architecture") or "")
    if system != "linux" or architecture in ("", "unknown"):
        return None
    variant = str(entry.get("variant") or "")
    return Platform(system, architecture, "" if (architecture, variant) in _PLAIN_VARIANTS else variant)


def preferred(children: Iterable[Child]) -> Child | None:
    """The child whose config speaks for the index: arm64's, else amd64's, else the first."""
    found = tuple(children)
    for architecture in _PREFERRED:
        for child in found:
            if child.platform.architecture == architecture:
                return child
    return found[0] if found else None


def read_config(content: bytes) -> tuple[Platform | None, ImageConfig]:
    """Platform and runtime settings from a configuration blob."""
    found = _object(content)
    platform = _platform({"os": "linux", **{k: v for k, v in found.items() if v}})
    settings = found.get("config") or {}
    if not isinstance(settings, dict):
        settings = {}
    health = settings.get("Healthcheck")
    if not isinstance(health, dict):
        health = {}
    return platform, ImageConfig(
        exposed_ports=tuple(sorted(settings.get("ExposedPorts") or (), key=_port)),
        user=str(settings.get("User") or ""),
        volumes=tuple(sorted(settings.get("Volumes") or ())),
        healthcheck=_strings(health.get("Test")),
        entrypoint=_strings(settings.get("Entrypoint")),
        cmd=_strings(settings.get("Cmd")),
        working_dir=str(settings.get("WorkingDir") or ""),
    )


def digest_of(content: bytes, like: str = "sha256:") -> str:
    """The content's digest, with the algorithm of another one."""
    algorithm = like.partition(":")[0] or "sha256"
    return f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"


def _object(content: bytes) -> Mapping[str, Json]:
    try:
        found = json.loads(content)
    except ValueError:
        raise BadDocument("it is not JSON") from None
    if not isinstance(found, dict):
        raise BadDocument("it is not a JSON object")
    return found


def _strings(value: Json) -> tuple[str, ...]:
    return tuple(str(v) for v in value) if isinstance(value, list) else (str(value),) if value else ()


def _port(port: str) -> tuple[int, str]:
    number = port.partition("/")[0].partition("-")[0]
    return (int(number) if number.isdigit() else 0, port)
