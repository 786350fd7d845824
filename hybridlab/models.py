"""Frozen data that crosses layers: what drivers return and stages reason about.

An SDK's own objects stay in its driver. Sizes are bytes unless the name says otherwise, memory of nodes is GiB.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Arch = Literal["arm64", "amd64"]
Role = Literal["server", "agent"]
Json = Any  # a JSON value; mypy has no useful recursive form that pydantic and dataclasses share

ARCH_SHAPE: Mapping[str, str] = {"arm64": "VM.Standard.A1.Flex", "amd64": "VM.Standard.E2.1.Micro"}
MACHINE_ARCH: Mapping[str, Arch] = {"aarch64": "arm64", "arm64": "arm64", "x86_64": "amd64", "amd64": "amd64"}


# -- nodes and hosts ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class NodeWish:
    """A node as params ask for it; ``ocpus`` may be a fraction (a micro is 1/8).

    ``arch`` is None only for a host of one's own whose params leave it to be found by looking.
    """

    name: str
    role: Role
    arch: Arch | None
    ocpus: float
    memory_gb: float
    boot_volume_gb: int = 50
    address: str | None = None  # these are byo only
    user: str | None = None
    port: int = 22
    key_file: str | None = None
    node_ip: str | None = None

    @property
    def stated_arch(self) -> Arch:
        """The architecture where it must have been stated: on every site but byo, as params make sure."""
        if self.arch is None:
            raise ValueError(f"{self.name} states no architecture")
        return self.arch

    @property
    def shape(self) -> str:
        return ARCH_SHAPE[self.stated_arch]


@dataclass(frozen=True)
class HostAddress:
    """Where and as whom to reach a host over SSH; ``address`` is the logical one, as in plans and reports."""

    name: str
    address: str
    user: str = "ubuntu"
    port: int = 22


@dataclass(frozen=True)
class CommandResult:
    exit_status: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class NodeCapacity:
    """A Kubernetes node as the placement sees it: what is free after requests, in millicores and bytes."""

    name: str
    arch: Arch
    cpu_free_m: int
    memory_free: int
    taints: tuple[tuple[str, str, str], ...] = ()  # key, value, effect
    labels: Mapping[str, str] = field(default_factory=dict)
    ready: bool = True


# -- Oracle ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class CloudInstance:
    """A VM as Oracle describes it; ``state`` is Oracle's lifecycle state."""

    id: str
    name: str
    state: str
    shape: str
    arch: Arch
    ocpus: float
    memory_gb: float
    availability_domain: str
    private_ip: str | None
    public_ip: str | None
    boot_volume_id: str | None
    boot_volume_gb: int | None
    tags: Mapping[str, str]
    image: str = ""
    created: str = ""
    subnet_id: str = ""


@dataclass(frozen=True)
class CloudResource:
    """Anything else Oracle keeps for us: ``kind`` is vcn, internet-gateway, route-table, nsg, subnet, boot-volume."""

    kind: str
    id: str
    name: str
    state: str
    tags: Mapping[str, str]
    detail: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True)
class SecurityRule:
    """One rule of a network security group or security list. ``protocol`` is all, tcp, udp or icmp; ports None: all.

    ``peer`` is a CIDR, or the word ``group`` for members of the same group. For icmp ``port_min`` is the type and
    ``port_max`` the code.
    """

    direction: Literal["ingress", "egress"]
    protocol: str
    peer: str
    port_min: int | None = None
    port_max: int | None = None
    description: str = ""
    id: str = field(default="", compare=False)


@dataclass(frozen=True)
class Survey:
    """A whole compartment, looked at once: ``rules`` by the id of a security group, ``taken`` as Unix time."""

    instances: tuple[CloudInstance, ...]
    resources: tuple[CloudResource, ...]
    rules: Mapping[str, tuple[SecurityRule, ...]]
    taken: float


@dataclass(frozen=True)
class LaunchRequest:
    name: str
    shape: str
    ocpus: float
    memory_gb: float
    boot_volume_gb: int
    image_id: str
    availability_domain: str
    subnet_id: str
    nsg_id: str
    authorized_keys: str
    tags: Mapping[str, str]
    user_data: str = ""


@dataclass(frozen=True)
class CloudImage:
    id: str
    name: str
    created: str


@dataclass(frozen=True)
class ShapeInfo:
    """A shape offered in one availability domain; ``billing`` is ALWAYS_FREE, LIMITED_FREE or PAID."""

    name: str
    availability_domain: str
    billing: str
    ocpus_max: float
    memory_gb_max: float


@dataclass(frozen=True)
class Limit:
    """A live service limit; ``availability_domain`` None for regional ones."""

    name: str
    availability_domain: str | None
    used: float
    available: float


# -- Kubernetes --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class NodeInfo:
    """A node of the cluster. ``ready_since`` is an ISO time."""

    name: str
    arch: str
    ready: bool
    ready_since: str
    internal_ip: str
    labels: Mapping[str, str]
    taints: tuple[tuple[str, str, str], ...]
    schedulable: bool
    version: str
    cpu_m: int
    memory: int
    cpu_free_m: int
    memory_free: int


@dataclass(frozen=True)
class ExecResult:
    exit_status: int
    stdout: bytes
    stderr: str


# -- images ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Platform:
    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


@dataclass(frozen=True)
class ImageConfig:
    """What an image's configuration blob says, for one platform."""

    exposed_ports: tuple[str, ...] = ()
    user: str = ""
    volumes: tuple[str, ...] = ()
    healthcheck: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    working_dir: str = ""


@dataclass(frozen=True)
class ImageBefore:
    """What a tag led to before it moved; ``seen`` is the ISO time when it was last found so."""

    digest: str
    platforms: tuple[Platform, ...]
    seen: str


@dataclass(frozen=True)
class ImageInfo:
    """What a registry says of an image reference.

    ``digest`` is the index digest where ``index``; ``known`` False means that nobody has it, and ``problem`` says why.
    ``platforms`` holds runnable linux platforms only (attestations are left out).
    """

    reference: str
    known: bool
    digest: str = ""
    index: bool = False
    platforms: tuple[Platform, ...] = ()
    config: ImageConfig = ImageConfig()
    problem: str = ""
    looked_up: str = ""  # ISO time of the answer, older when it came from the cache
    before: ImageBefore | None = None  # where the tag moved since somebody here first asked

    @property
    def architectures(self) -> frozenset[str]:
        return frozenset(p.architecture for p in self.platforms if p.os == "linux")

    @property
    def drift(self) -> str:
        """What changed since the tag last moved: architectures gained and lost, the digests; "" if it never did."""
        if self.before is None:
            return ""
        earlier = {str(p) for p in self.before.platforms}
        now = {str(p) for p in self.platforms}
        words = [f"lost {', '.join(sorted(earlier - now))}"] if earlier - now else []
        words += [f"gained {', '.join(sorted(now - earlier))}"] if now - earlier else []
        digests = " → ".join(digest.removeprefix("sha256:")[:12] for digest in (self.before.digest, self.digest))
        return f"since {self.before.seen}: {'; '.join([*words, f'digest {digests}'])}"


# -- object storage ----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class ObjectInfo:
    key: str
    size: int
    modified: str


# -- judgement ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Finding:
    """Something worth a reader's attention. ``level``: note (for information), warning, refusal (nothing is done)."""

    level: Literal["note", "warning", "refusal"]
    subject: str
    text: str
    next_move: str = ""
    strict: bool = False  # counts as a failure (exit 1) under --strict


@dataclass(frozen=True)
class Check:
    """One thing verified by looking again; ``evidence`` is what was seen."""

    name: str
    ok: bool
    evidence: str
    next_move: str = ""


@dataclass(frozen=True)
class Gate:
    """Whether a plan may be applied: its hash, and by whom it was approved (empty while it is closed)."""

    stage: str
    hash: str
    open: bool
    by: str
    steps: int


@dataclass(frozen=True)
class HandOver:
    """How a stage ended: counts of its plan, its checks, and what can be done next."""

    stage: str
    steps_done: int
    checks: tuple[Check, ...]
    findings: tuple[Finding, ...]
    next_runbook: str
