"""What stages ask of the outside world: a protocol for each driver, and the context that carries them.

Stages import this and never a driver, so that they hold no SDK and can be planned without a network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

from hybridlab.ledger import EvidenceStore, Ledger, SecretStore
from hybridlab.models import (
    Arch,
    CloudImage,
    CloudInstance,
    CloudResource,
    CommandResult,
    ExecResult,
    HostAddress,
    ImageInfo,
    Json,
    LaunchRequest,
    Limit,
    NodeInfo,
    ObjectInfo,
    SecurityRule,
    ShapeInfo,
    Survey,
)
from hybridlab.params import Params
from hybridlab.wait import Clock

Dial = Callable[[str, int], tuple[str, int]]
"""Logical address and port → what to connect to. Raises Unreachable where the site says no."""

Progress = Callable[[str], None]


class Closing(Protocol):
    """Something that keeps connections open between calls."""

    def close(self) -> None:
        """Hang up; whoever goes on opens a new one."""


class Oracle(Closing, Protocol):
    """Oracle Cloud, one compartment of it. Errors: AuthFailed, NotFound, Conflict, TooManyRequests, OutOfCapacity,
    LimitReached, Refused, Unreachable (the outcome of a change is unknown)."""

    def availability_domains(self) -> tuple[str, ...]: ...
    def shapes(self) -> tuple[ShapeInfo, ...]:
        """Every shape of every availability domain."""

    def limits(self) -> tuple[Limit, ...]: ...
    def newest_image(self, shape: str, arch: Arch, *, os: str, version: str) -> CloudImage: ...
    def survey(self, tags: Mapping[str, str], *, max_age_s: float = 0.0) -> Survey:
        """``instances`` and ``resources`` in as few calls as can be, and the rules of security groups with these tags.

        ``max_age_s``: an earlier survey will do that is no older, if nothing in it was on its way and nothing was
        changed through this driver since.
        """

    def last_survey(self, max_age_s: float) -> Survey | None:
        """The last survey of any process of this cluster, under the same conditions; asks nothing."""

    def instances(self, *, max_age_s: float = 0.0) -> tuple[CloudInstance, ...]:
        """All VMs of the compartment that are not TERMINATED, also those that are not ours. ``max_age_s``: an earlier
        survey will do, as in ``survey``."""

    def resources(self) -> tuple[CloudResource, ...]:
        """Networks and boot volumes of the compartment, also those that are not ours.

        Kinds: vcn, internet-gateway, route-table, security-list, nsg, subnet, boot-volume. ``detail`` has at least
        ``vcn_id`` where there is one; vcn: ``cidr``, ``default_route_table_id``, ``default_security_list_id``;
        route-table: ``rules`` (lists of destination, target id); security-list: ``ingress`` (a tuple of
        SecurityRule); subnet: ``cidr``; boot-volume: ``size_gb``, ``attached`` (bool), ``availability_domain``.
        """

    def rules(self, nsg_id: str) -> tuple[SecurityRule, ...]: ...
    def create_vcn(self, name: str, cidr: str, tags: Mapping[str, str]) -> CloudResource: ...
    def create_internet_gateway(self, name: str, vcn_id: str, tags: Mapping[str, str]) -> CloudResource: ...
    def set_default_route(self, route_table_id: str, gateway_id: str) -> None:
        """Route 0.0.0.0/0 to the gateway, keeping rules for other destinations."""

    def set_security_list(self, list_id: str, ingress: Sequence[SecurityRule]) -> None:
        """Replace the ingress rules of a security list; egress stays as it is."""

    def create_nsg(self, name: str, vcn_id: str, tags: Mapping[str, str]) -> CloudResource: ...
    def add_rules(self, nsg_id: str, rules: Sequence[SecurityRule]) -> None: ...
    def remove_rules(self, nsg_id: str, rule_ids: Sequence[str]) -> None: ...
    def create_subnet(self, name: str, vcn_id: str, cidr: str, tags: Mapping[str, str]) -> CloudResource: ...
    def launch(self, request: LaunchRequest, *, retry_token: str) -> CloudInstance:
        """Ask for a VM once, without retrying. Returns at once (PROVISIONING)."""

    def start_instance(self, instance_id: str) -> None: ...
    def terminate(self, instance_id: str) -> None:
        """Terminate a VM with its boot volume; returns at once."""

    def tag_boot_volume(self, volume_id: str, tags: Mapping[str, str]) -> None:
        """Add freeform tags to a boot volume: it does not get its VM's."""

    def delete(self, resource: CloudResource) -> None:
        """Delete a network resource or boot volume. Conflict while something still uses it."""

    def capacity(self, availability_domain: str, shape: str, ocpus: float, memory_gb: float) -> str:
        """Oracle's capacity report (advisory): AVAILABLE, OUT_OF_HOST_CAPACITY, HARDWARE_NOT_SUPPORTED."""


class Hosts(Closing, Protocol):
    """Hosts over SSH. ``sudo`` runs as root. Errors: Unreachable, AuthFailed, CommandFailed, DeadlineExceeded."""

    def run(
        self,
        host: HostAddress,
        argv: Sequence[str],
        *,
        stdin: bytes | None = None,
        sudo: bool = False,
        timeout_s: float | None = None,
        check: bool = True,
    ) -> CommandResult: ...
    def put(
        self, host: HostAddress, data: bytes | Path, remote_path: str, *, mode: int = 0o644, sudo: bool = False
    ) -> bool:
        """Write a file whole; returns whether it changed."""

    def get(self, host: HostAddress, remote_path: str, *, sudo: bool = False) -> bytes: ...
    def stream(
        self,
        host: HostAddress,
        argv: Sequence[str],
        *,
        stdin: BinaryIO | Iterable[bytes] | None = None,
        stdout: Callable[[bytes], None] | None = None,
        sudo: bool = False,
        timeout_s: float | None = None,
    ) -> CommandResult:
        """Run a command with its input or output passed through in pieces; ``stdout`` of the result is then empty."""

    def wait_for_ssh(self, host: HostAddress, deadline_s: float) -> None: ...
    def interrupt(self) -> None:
        """End the work of all other threads that live now: what they wait for here raises Interrupted."""

    def forget(self, host: HostAddress) -> None:
        """Drop a host's pinned key and connection: the machine is gone, and its address may be another's next."""


class Kube(Closing, Protocol):
    """The Kubernetes API, objects as plain dicts. Errors: NotFound, Conflict, Refused, AuthFailed, Unreachable."""

    def version(self) -> str: ...
    def nodes(self) -> tuple[NodeInfo, ...]: ...
    def get(self, api_version: str, kind: str, name: str, namespace: str | None = None) -> dict[str, Json] | None:
        """None when it isn't there, also when the kind itself isn't known to the server."""

    def list(
        self, api_version: str, kind: str, namespace: str | None = None, *, labels: str = "", fields: str = ""
    ) -> tuple[dict[str, Json], ...]:
        """All namespaces when None. Empty when the kind isn't known to the server."""

    def apply(self, obj: Mapping[str, Json], *, dry_run: bool = False, force: bool = True) -> dict[str, Json]:
        """Server-side apply with field manager ``hybridlab``. Returns the object as it then is."""

    def differs(self, obj: Mapping[str, Json]) -> tuple[str, ...]:
        """Paths at which the live object lacks or contradicts what apply would set; ("",) when it is missing.

        Read-only: compares ``obj`` with the live object (lists of named items by name, quantities by value).
        """

    def patch(
        self, api_version: str, kind: str, name: str, namespace: str | None, body: Mapping[str, Json]
    ) -> dict[str, Json]:
        """Merge patch (RFC 7386)."""

    def delete(
        self, api_version: str, kind: str, name: str, namespace: str | None = None, *, grace_s: int | None = None
    ) -> bool:
        """Delete in the background; returns False when it wasn't there."""

    def exec(
        self,
        namespace: str,
        pod: str,
        argv: Sequence[str],
        *,
        container: str | None = None,
        stdin: Iterator[bytes] | None = None,
        stdout: Callable[[bytes], None] | None = None,
        timeout_s: float = 60.0,
    ) -> ExecResult:
        """Run a command in a pod; the exit status is the command's own. Output goes to ``stdout`` if given."""

    def logs(self, namespace: str, pod: str, *, container: str | None = None, tail: int = 50) -> str: ...
    def evict(self, namespace: str, pod: str) -> bool:
        """Ask for an eviction; False where a disruption budget says not now (429)."""


class Registry(Closing, Protocol):
    def lookup(self, references: Sequence[str], *, progress: Progress | None = None) -> dict[str, ImageInfo]:
        """What the registries say of these references, asked concurrently. Unknown images are answers, not errors."""


class S3(Closing, Protocol):
    """One bucket. Errors: AuthFailed, NotFound, Refused, Unreachable."""

    bucket: str
    endpoint: str

    def ensure_bucket(self) -> bool:
        """Make the bucket if it isn't there; returns whether it was made."""

    def bucket_exists(self) -> bool: ...
    def put_multipart(self, key: str, parts: Iterable[bytes]) -> None:
        """Upload in parts; every part but the last is at least 5 MiB."""

    def get(self, key: str) -> Iterator[bytes]: ...
    def list(self, prefix: str = "") -> tuple[ObjectInfo, ...]: ...
    def delete(self, keys: Sequence[str]) -> None: ...


class Site(Protocol):
    """What differs between lab, oracle and byo: endpoints and where credentials lie."""

    name: Literal["lab", "oracle", "byo"]

    def dial(self, host: str, port: int) -> tuple[str, int]:
        """What to connect to for a logical address. Raises Unreachable where the site says no."""

    def resolve(self, name: str) -> tuple[str, ...]:
        """The addresses of a host name as seen from here, IPv4 first. Raises BadInput for one that nobody knows."""

    def operator_ip(self) -> str:
        """The operator's public address as the cluster's side sees it."""

    def s3_settings(self) -> Mapping[str, str]:
        """endpoint (for the operator), cluster_endpoint (for pods), region, access_key, secret_key."""

    def tunnel_token(self) -> str | None:
        """Cloudflare's tunnel token from the environment or a file, or None."""

    def k3s_source(self) -> tuple[str, str]:
        """Where the K3s release comes from (URL or folder) and the version to install."""

    def docker_host(self) -> HostAddress: ...


class Context(Protocol):
    """What a stage's look, actions and verify get. Drivers connect on first use."""

    @property
    def params(self) -> Params: ...
    @property
    def params_base(self) -> Path:
        """The folder that relative paths in the params start from."""

    @property
    def state(self) -> Path:
        """``state/<cluster>/``"""

    @property
    def ledger(self) -> Ledger: ...
    @property
    def evidence(self) -> EvidenceStore: ...
    @property
    def secrets(self) -> SecretStore: ...
    @property
    def clock(self) -> Clock: ...
    @property
    def say(self) -> Progress:
        """Report progress: one short line at a time."""

    @property
    def site(self) -> Site: ...
    @property
    def oracle(self) -> Oracle: ...
    @property
    def hosts(self) -> Hosts: ...
    @property
    def docker_hosts(self) -> Hosts:
        """SSH to the Docker host that services are moved from: its own key."""

    @property
    def kube(self) -> Kube:
        """Raises NotFound while there is no kubeconfig yet."""

    @property
    def kube_or_none(self) -> Kube | None:
        """None while there is no kubeconfig or nobody answers: for looks before the cluster exists."""

    @property
    def registry(self) -> Registry: ...
    @property
    def s3(self) -> S3: ...
    @property
    def max_age_s(self) -> float:
        """Seconds that what a look uses may be old: 0, except where a later stage only wants to know its beginning."""

    @property
    def notes(self) -> dict[str, Any]:
        """What a look found, for the actions of the same stage in the same process; each look replaces its own."""

    def interrupt(self) -> None:
        """End the work of all other threads that live now: what they wait for raises Interrupted (see base.apply)."""

    def refresh(self) -> None:
        """Forget connections whose credentials or addresses changed (after bootstrap, after a restore)."""


FRESH_S = 60.0
"""Seconds for which what was seen of Oracle is good enough where a look of one's own isn't wanted (architecture.md)."""

Tags = Mapping[str, str]
TAG = "hybridlab"
"""Freeform tag key on everything the cluster owns in Oracle; the value is the cluster's name."""
