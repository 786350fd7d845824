"""The frozen data of a conversion: the project read, the choices made, the manifests and claims that result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hybridlab.models import Json

Verdict = Literal["mapped", "approximated", "refused"]
PlacementKind = Literal["any", "prefer", "only", "none", "unknown"]
ClaimKind = Literal["volume", "bind", "anonymous"]
Obj = dict[str, Any]  # one Kubernetes object, keys in the order they are written

LABEL_NAME = "app.kubernetes.io/name"
LABEL_PART_OF = "app.kubernetes.io/part-of"
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
LABEL_COLOCATE = "hybridlab.io/colocate"
ANNOTATION_WHY = "hybridlab.io/why"
ANNOTATION_PLACEMENT = "hybridlab.io/placement"
ANNOTATION_PLACEMENT_WHY = "hybridlab.io/placement-why"
ARCH_LABEL = "kubernetes.io/arch"


@dataclass(frozen=True)
class Project:
    """A Compose project in Compose's own normalised form, ``$$`` undone.

    ``directory`` is what relative paths are relative to (None: unknown, no file is read). ``environment`` holds only
    the variables that top-level secrets and configs name.
    """

    name: str
    services: Mapping[str, Json]
    volumes: Mapping[str, Json] = field(default_factory=dict)
    networks: Mapping[str, Json] = field(default_factory=dict)
    configs: Mapping[str, Json] = field(default_factory=dict)
    secrets: Mapping[str, Json] = field(default_factory=dict)
    other: Mapping[str, Json] = field(default_factory=dict)  # x-…, models and what a newer Compose may add
    directory: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Preference:
    """Which architecture a multi-arch image prefers: scheduler weights 1–100, and where they come from."""

    weights: Mapping[str, int] = field(default_factory=lambda: {"arm64": 100, "amd64": 1})
    reason: str = "the params' choice"

    def weight(self, architecture: str) -> int:
        return max(1, min(100, self.weights.get(architecture, 1)))


@dataclass(frozen=True)
class Options:
    """The choices of a conversion.

    ``publish``: how ports published to the outside are offered (K3s' ServiceLB answers LoadBalancer Services).
    ``shared_storage_class``: a class that can do ReadWriteMany; without one, sharers of a claim run on one node.
    ``claim_sizes``: claim name → quantity, where measured. ``registry``: prefix for images that must be built.
    ``seed``: copy an image's files into an empty claim, as Docker does for a new named volume.
    """

    namespace: str = ""
    storage_class: str = ""
    shared_storage_class: str = ""
    claim_size: str = "1Gi"
    claim_sizes: Mapping[str, str] = field(default_factory=dict)
    preference: Preference = Preference()
    publish: Literal["load-balancer", "cluster-ip"] = "load-balancer"
    liveness: bool = False
    pin_digests: bool = False
    seed: bool = True
    registry: str = ""


@dataclass(frozen=True)
class ServiceNeeds:
    """What a placement must respect. ``allowed`` None: any architecture (a co-located group may narrow it).

    ``everywhere``: one pod on every node that fits (DaemonSet).
    """

    name: str
    image: str = ""
    platform: str = ""
    cpu_m: int = 0
    memory: int = 0
    allowed: frozenset[str] | None = None
    everywhere: bool = False


@dataclass(frozen=True)
class Placement:
    """Where a pod may and would rather run, as pieces of a pod spec, and why.

    ``architectures``: those it can land on, best first. ``remedy``: what to do when ``kind`` is none.
    """

    kind: PlacementKind
    reason: str
    node_selector: Mapping[str, str] = field(default_factory=dict)
    affinity: Mapping[str, Json] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, str], ...] = ()
    architectures: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    remedy: str = ""


@dataclass(frozen=True)
class ClaimSource:
    """A claim and what on the Docker host fills it.

    ``source``: the Docker volume's real name (kind volume), a host path as in the compose file (bind), or
    ``service:path`` of an anonymous volume. ``services``: all that mount it. ``file``: for a single file, the name it
    has in the claim's root.
    """

    name: str
    kind: ClaimKind
    source: str
    services: tuple[str, ...]
    size: str = "1Gi"
    access_mode: str = "ReadWriteOnce"
    reason: str = ""
    file: str = ""


@dataclass(frozen=True)
class Finding:
    """What became of one key: ``service`` is empty for top-level keys, ``key`` is a dotted path."""

    service: str
    key: str
    verdict: Verdict
    note: str = ""


@dataclass(frozen=True)
class Manifests:
    """The result: ``objects`` in apply order (namespace first), claims to fill, a line for every key.

    ``owners``: for every object, the service it belongs to, or "" for shared ones (same order as ``objects``).
    ``images``: service → the reference in the manifest. ``commands``: service → commands a person must run.
    """

    project: str
    namespace: str
    objects: tuple[Obj, ...]
    claims: tuple[ClaimSource, ...]
    fidelity: tuple[Finding, ...]
    placements: Mapping[str, Placement]
    images: Mapping[str, str]
    commands: Mapping[str, tuple[str, ...]]
    owners: tuple[str, ...]

    def of_kind(self, kind: str) -> tuple[Obj, ...]:
        return tuple(obj for obj in self.objects if obj["kind"] == kind)

    def refused(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.fidelity if finding.verdict == "refused")

    def unknown(self) -> tuple[str, ...]:
        """Services whose image nobody could tell about: what ``--strict`` fails on."""
        return tuple(name for name, placement in self.placements.items() if placement.kind == "unknown")
