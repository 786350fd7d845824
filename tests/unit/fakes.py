"""Stand-ins for the outside world that the unit tests share: a clock, Oracle, hosts, the Kubernetes API, a context.

Each is a few dicts with the same methods as the protocol in hybridlab/ports.py; calls are kept, so that a test can say
what was done and in which order.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hybridlab.errors import NotFound
from hybridlab.ledger import EvidenceStore, Ledger, SecretStore
from hybridlab.models import (
    ARCH_SHAPE,
    Arch,
    CloudImage,
    CloudInstance,
    CloudResource,
    CommandResult,
    ExecResult,
    HostAddress,
    LaunchRequest,
    Limit,
    NodeInfo,
    SecurityRule,
    ShapeInfo,
    Survey,
)
from hybridlab.params import Params, check_params, set_path

A1, MICRO = "VM.Standard.A1.Flex", "VM.Standard.E2.1.Micro"
OPERATOR = "203.0.113.7"
GI = 1 << 30

LAB: dict[str, Any] = {
    "schema": 1,
    "cluster": "homelab",
    "site": "lab",
    "nodes": [
        {"name": "arm-1", "role": "server", "arch": "arm64", "ocpus": 2, "memory_gb": 12},
        {"name": "arm-2", "role": "agent", "arch": "arm64", "ocpus": 1, "memory_gb": 6},
        {"name": "amd-1", "role": "agent", "arch": "amd64", "ocpus": 1, "memory_gb": 1},
    ],
    "layout": {"allowance": "until-2026-06"},
}


def make_params(changes: Mapping[str, Any] | None = None, **top: Any) -> Params:
    """The article's cluster, with changes by dotted path and whole sections replaced."""
    data = copy.deepcopy({**LAB, **top})
    for key, value in (changes or {}).items():
        set_path(data, key, value)
    return check_params(data)


class FakeClock:
    """Time that passes only in ``sleep``. ``at`` runs something when a moment is reached."""

    def __init__(self, start: float = 1_000.0) -> None:
        self.time = start
        self.slept: list[float] = []
        self.at: dict[float, Callable[[], None]] = {}

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0, f"a sleep of {seconds} s"
        self.slept.append(seconds)
        self.time += seconds
        for moment in sorted(m for m in self.at if m <= self.time):
            self.at.pop(moment)()


def vm(name: str, arch: Arch = "arm64", *, tags: Mapping[str, str] | None = None, **fields: Any) -> CloudInstance:
    """A running VM of cluster homelab as 020 would have made it."""
    own = {"hybridlab": "homelab", "hybridlab-node": name} if tags is None else tags
    size: dict[str, Any] = {"ocpus": 1.0, "memory_gb": 6.0 if arch == "arm64" else 1.0}
    made = CloudInstance(
        id=f"ocid1.instance.oc1..{name}",
        name=name,
        state="RUNNING",
        shape=ARCH_SHAPE[arch],
        arch=arch,
        availability_domain="AD-1",
        private_ip=f"10.0.0.{sum(name.encode()) % 250}",
        public_ip=f"198.51.100.{sum(name.encode()) % 250}",
        boot_volume_id=f"ocid1.bootvolume.oc1..{name}",
        boot_volume_gb=50,
        tags=own,
        subnet_id="subnet-id",
        **size,
    )
    return replace(made, **fields)


def resource(kind: str, *, name: str = "homelab", tags: Mapping[str, str] | None = None, **more: Any) -> CloudResource:
    own = {"hybridlab": "homelab"} if tags is None else tags
    rest = {"id": f"{kind}-id", "state": "AVAILABLE", **more}
    return CloudResource(kind=kind, name=name, tags=own, **rest)


ICMP_MTU = SecurityRule("ingress", "icmp", "0.0.0.0/0", 3, 4)


def network() -> tuple[CloudResource, ...]:
    """Everything 020 makes beside the VMs, as Oracle would show it afterwards."""
    vcn = {"cidr": "10.0.0.0/16", "default_route_table_id": "table-id", "default_security_list_id": "list-id"}
    return (
        resource("vcn", detail=vcn),
        resource("internet-gateway"),
        resource("route-table", id="table-id", tags={}, detail={"rules": [["0.0.0.0/0", "internet-gateway-id"]]}),
        resource("security-list", id="list-id", tags={}, detail={"ingress": (ICMP_MTU,)}),
        resource("nsg"),
        resource("subnet", detail={"cidr": "10.0.0.0/24"}),
    )


class FakeOracle:
    """A compartment in memory. ``answers``: what the next launches do (an error to raise, or a callable); then all
    succeed. VMs are RUNNING at once unless ``boot_state`` says otherwise."""

    def __init__(self, *, domains: Sequence[str] = ("AD-1", "AD-2", "AD-3")) -> None:
        self.vms: list[CloudInstance] = []
        self.things: list[CloudResource] = []
        self.group_rules: list[SecurityRule] = []
        self.domains = tuple(domains)
        self.limit_rows: tuple[Limit, ...] = ()
        self.answers: list[BaseException | Callable[[LaunchRequest], None]] = []
        self.launches: list[tuple[LaunchRequest, str]] = []
        self.calls: list[tuple[Any, ...]] = []
        self.surveys: list[float] = []  # how old each might have been
        self.boot_state = "RUNNING"
        self.refusals: dict[str, list[BaseException]] = {}

    def close(self) -> None:
        pass

    def availability_domains(self) -> tuple[str, ...]:
        return self.domains

    def shapes(self) -> tuple[ShapeInfo, ...]:
        micro = [ShapeInfo(MICRO, self.domains[-1], "ALWAYS_FREE", 1, 1)]
        return (*(ShapeInfo(A1, d, "LIMITED_FREE", 4, 24) for d in self.domains), *micro)

    def limits(self) -> tuple[Limit, ...]:
        return self.limit_rows

    def newest_image(self, shape: str, arch: Arch, *, os: str, version: str) -> CloudImage:
        return CloudImage(f"image-{arch}", f"{os}-{version}-{arch}", "2026-01-01")

    def survey(self, tags: Mapping[str, str], *, max_age_s: float = 0.0) -> Survey:
        self.surveys.append(max_age_s)
        groups = [t.id for t in self.things if t.kind == "nsg" and tags.items() <= t.tags.items()]
        return Survey(tuple(self.vms), tuple(self.things), {g: self.rules(g) for g in groups}, 0.0)

    def last_survey(self, max_age_s: float) -> Survey | None:
        return None

    def instances(self, *, max_age_s: float = 0.0) -> tuple[CloudInstance, ...]:
        return tuple(self.vms)

    def resources(self) -> tuple[CloudResource, ...]:
        return tuple(self.things)

    def rules(self, nsg_id: str) -> tuple[SecurityRule, ...]:
        return tuple(self.group_rules)

    def _make(self, kind: str, name: str, tags: Mapping[str, str], **detail: Any) -> CloudResource:
        self.calls.append(("create", kind))
        made = CloudResource(kind, f"{kind}-id", name, "AVAILABLE", dict(tags), detail)
        self.things.append(made)
        return made

    def create_vcn(self, name: str, cidr: str, tags: Mapping[str, str]) -> CloudResource:
        ids = {"default_route_table_id": "table-id", "default_security_list_id": "list-id"}
        self.things.append(resource("route-table", id="table-id", tags={}, detail={"rules": []}))
        open_ssh = (SecurityRule("ingress", "tcp", "0.0.0.0/0", 22, 22),)
        self.things.append(resource("security-list", id="list-id", tags={}, detail={"ingress": open_ssh}))
        return self._make("vcn", name, tags, cidr=cidr, **ids)

    def create_internet_gateway(self, name: str, vcn_id: str, tags: Mapping[str, str]) -> CloudResource:
        return self._make("internet-gateway", name, tags, vcn_id=vcn_id)

    def _replace(self, resource_id: str, **detail: Any) -> None:
        self.things = [replace(t, detail={**t.detail, **detail}) if t.id == resource_id else t for t in self.things]

    def set_default_route(self, route_table_id: str, gateway_id: str) -> None:
        self.calls.append(("route", route_table_id, gateway_id))
        self._replace(route_table_id, rules=[["0.0.0.0/0", gateway_id]])

    def set_security_list(self, list_id: str, ingress: Sequence[SecurityRule]) -> None:
        self.calls.append(("list", list_id))
        self._replace(list_id, ingress=tuple(ingress))

    def create_nsg(self, name: str, vcn_id: str, tags: Mapping[str, str]) -> CloudResource:
        return self._make("nsg", name, tags, vcn_id=vcn_id)

    def add_rules(self, nsg_id: str, rules: Sequence[SecurityRule]) -> None:
        self.calls.append(("add-rules", nsg_id, len(rules)))
        first = len(self.group_rules)
        self.group_rules += [replace(r, id=f"rule-{first + i}") for i, r in enumerate(rules)]

    def remove_rules(self, nsg_id: str, rule_ids: Sequence[str]) -> None:
        self.calls.append(("remove-rules", nsg_id, tuple(rule_ids)))
        self.group_rules = [r for r in self.group_rules if r.id not in rule_ids]

    def create_subnet(self, name: str, vcn_id: str, cidr: str, tags: Mapping[str, str]) -> CloudResource:
        return self._make("subnet", name, tags, vcn_id=vcn_id, cidr=cidr)

    def launch(self, request: LaunchRequest, *, retry_token: str) -> CloudInstance:
        self.launches.append((request, retry_token))
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, BaseException):
            raise answer
        if answer is not None:
            answer(request)
        return self.add(request)

    def add(self, request: LaunchRequest) -> CloudInstance:
        """Really make the VM that a request asks for (also for a launch whose answer is lost)."""
        arch: Arch = "arm64" if request.shape == A1 else "amd64"
        made = vm(
            request.name,
            arch,
            tags=dict(request.tags),
            state=self.boot_state,
            ocpus=request.ocpus,
            memory_gb=request.memory_gb,
            availability_domain=request.availability_domain,
            subnet_id=request.subnet_id,
        )
        self.vms.append(made)
        return made

    def set_state(self, name: str, state: str) -> None:
        self.vms = [replace(v, state=state) if v.name == name else v for v in self.vms]

    def start_instance(self, instance_id: str) -> None:
        self.calls.append(("start", instance_id))
        self.vms = [replace(v, state="RUNNING") if v.id == instance_id else v for v in self.vms]

    def terminate(self, instance_id: str) -> None:
        self.calls.append(("terminate", instance_id))
        self.vms = [v for v in self.vms if v.id != instance_id]

    def tag_boot_volume(self, volume_id: str, tags: Mapping[str, str]) -> None:
        self.calls.append(("tag", volume_id))
        self.things = [replace(t, tags={**t.tags, **tags}) if t.id == volume_id else t for t in self.things]

    def delete(self, thing: CloudResource) -> None:
        self.calls.append(("delete", thing.kind, thing.name))
        if self.refusals.get(thing.kind):
            raise self.refusals[thing.kind].pop(0)
        self.things = [t for t in self.things if t.id != thing.id]

    def capacity(self, availability_domain: str, shape: str, ocpus: float, memory_gb: float) -> str:
        return "AVAILABLE"


OWNED_BY_ROOT = ("/etc", "/opt", "/var")
NEEDS_ROOT = ("iptables", "modprobe", "mkswap", "fallocate", "install", "env", "sh", "chmod", "curl", "rm", "swapoff")


class FakeHosts:
    """Hosts whose commands a function answers: ``answer(name, argv) → (status, stdout)``; files are kept by host."""

    def __init__(self, answer: Callable[[str, tuple[str, ...]], tuple[int, str]] | None = None) -> None:
        self.answer = answer or (lambda name, argv: (0, ""))
        self.ran: list[tuple[str, tuple[str, ...]]] = []
        self.files: dict[tuple[str, str], bytes] = {}
        self.modes: dict[tuple[str, str], int] = {}
        self.waited: list[tuple[str, str, float]] = []
        self.forgotten: list[str] = []

    def close(self) -> None:
        pass

    def run(self, host: HostAddress, argv: Sequence[str], **options: Any) -> CommandResult:
        self.ran.append((host.name, tuple(argv)))
        assert options.get("sudo") or argv[0] not in NEEDS_ROOT, f"only root may run {argv}"
        status, out = self.answer(host.name, tuple(argv))
        assert status == 0 or options.get("check") is False, f"{argv} failed on {host.name}"
        return CommandResult(status, out, "")

    def put(
        self, host: HostAddress, data: bytes | Path, remote_path: str, *, mode: int = 0o644, sudo: bool = False
    ) -> bool:
        assert sudo or not remote_path.startswith(OWNED_BY_ROOT), f"only root may write {remote_path}"
        content = data.read_bytes() if isinstance(data, Path) else data
        changed = self.files.get((host.name, remote_path)) != content
        self.files[host.name, remote_path] = content
        self.modes[host.name, remote_path] = mode
        return changed

    def get(self, host: HostAddress, remote_path: str, *, sudo: bool = False) -> bytes:
        assert sudo or not remote_path.startswith(OWNED_BY_ROOT), f"only root may read {remote_path}"
        return self.files[host.name, remote_path]

    def stream(
        self, host: HostAddress, argv: Sequence[str], *, stdout: Callable[[bytes], None] | None = None, **options: Any
    ) -> CommandResult:
        result = self.run(host, argv, **options)
        if stdout:
            stdout(result.stdout.encode())
        return result

    def wait_for_ssh(self, host: HostAddress, deadline_s: float) -> None:
        self.waited.append((host.name, host.address, deadline_s))

    def forget(self, host: HostAddress) -> None:
        self.forgotten.append(host.address)


def node(name: str, arch: str = "arm64", **fields: Any) -> NodeInfo:
    """A Ready node with the labels 030 gives it."""
    labels = {"hybridlab.io/cluster": "homelab", "hybridlab.io/role": "server" if name == "arm-1" else "agent"}
    taints = (("hybridlab.io/small", "true", "NoSchedule"),) if name == "amd-1" else ()
    made = NodeInfo(name, arch, True, "", "10.0.0.9", labels, taints, True, "v1.34.2+k3s1", 2000, 6 * GI, 1800, 5 * GI)
    return replace(made, **fields)


class FakeKube:
    """Objects by (kind, namespace, name). ``on_patch`` and ``on_delete`` stand for the controllers."""

    def __init__(self, *objects: Mapping[str, Any], nodes: Sequence[NodeInfo] = ()) -> None:
        self.objects: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.node_rows = tuple(nodes)
        self.calls: list[tuple[Any, ...]] = []
        self.different: dict[str, tuple[str, ...]] = {}
        self.evictions_refused = 0
        for obj in objects:
            self.put(obj)

    def close(self) -> None:
        pass

    def put(self, obj: Mapping[str, Any]) -> dict[str, Any]:
        made = copy.deepcopy(dict(obj))
        meta = made["metadata"]
        meta.setdefault("uid", f"uid-{made['kind']}-{meta['name']}")
        self.objects[made["kind"], meta.get("namespace") or "", meta["name"]] = made
        return made

    def version(self) -> str:
        return "v1.34.2+k3s1"

    def nodes(self) -> tuple[NodeInfo, ...]:
        return self.node_rows

    def get(self, api_version: str, kind: str, name: str, namespace: str | None = None) -> dict[str, Any] | None:
        return self.objects.get((kind, namespace or "", name))

    def list(
        self, api_version: str, kind: str, namespace: str | None = None, *, labels: str = "", fields: str = ""
    ) -> tuple[dict[str, Any], ...]:
        wanted = dict(pair.split("=", 1) for pair in labels.split(",") if pair)
        on_node = fields.removeprefix("spec.nodeName=") if fields else ""
        found = []
        for (k, ns, _), obj in list(self.objects.items()):
            has = obj["metadata"].get("labels", {})
            matches = k == kind and namespace in (None, ns) and all(has.get(a) == b for a, b in wanted.items())
            if matches and (not on_node or obj["spec"].get("nodeName") == on_node):
                found.append(obj)
        return tuple(found)

    def apply(self, obj: Mapping[str, Any], *, dry_run: bool = False, force: bool = True) -> dict[str, Any]:
        self.calls.append(("apply", obj["kind"], obj["metadata"]["name"]))
        return self.put(obj)

    def differs(self, obj: Mapping[str, Any]) -> tuple[str, ...]:
        meta = obj["metadata"]
        if self.get("", obj["kind"], meta["name"], meta.get("namespace")) is None:
            return ("",)
        return self.different.get(meta["name"], ())

    def patch(
        self, api_version: str, kind: str, name: str, namespace: str | None, body: Mapping[str, Any]
    ) -> dict[str, Any]:
        self.calls.append(("patch", kind, name, copy.deepcopy(dict(body))))
        obj = self.objects.setdefault(
            (kind, namespace or "", name), {"kind": kind, "metadata": {"name": name}, "spec": {}}
        )
        _merge(obj, body)
        return obj

    def delete(
        self, api_version: str, kind: str, name: str, namespace: str | None = None, *, grace_s: int | None = None
    ) -> bool:
        self.calls.append(("delete", kind, name))
        return self.objects.pop((kind, namespace or "", name), None) is not None

    def exec(self, namespace: str, pod: str, argv: Sequence[str], **_: Any) -> Any:
        raise AssertionError(f"no test runs {argv} in a pod")

    def logs(self, namespace: str, pod: str, *, container: str | None = None, tail: int = 50) -> str:
        return ""

    def evict(self, namespace: str, pod: str) -> bool:
        self.calls.append(("evict", namespace, pod))
        if self.evictions_refused:
            self.evictions_refused -= 1
            return False
        self.objects.pop(("Pod", namespace, pod), None)
        return True


class PodKube(FakeKube):
    """A cluster whose pods are Ready at once, on ``where(pod)``; ``inside(pod, argv, stdin)`` answers what runs in one.

    A namespace takes all that is in it along.
    """

    def __init__(self, inside: Callable[[str, tuple[str, ...], bytes], str], *objects: Mapping[str, Any]) -> None:
        super().__init__(*objects)
        self.inside = inside
        self.where: Callable[[dict[str, Any]], str] = lambda pod: "arm-1"
        self.room: dict[str, int] = {"free": 50 * GI}

    def apply(self, obj: Mapping[str, Any], *, dry_run: bool = False, force: bool = True) -> dict[str, Any]:
        made = super().apply(obj)
        if made["kind"] == "Pod":
            made["spec"]["nodeName"] = self.where(made)
            made["status"] = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
        return made

    def delete(
        self, api_version: str, kind: str, name: str, namespace: str | None = None, *, grace_s: int | None = None
    ) -> bool:
        if kind == "Namespace":
            self.objects = {key: obj for key, obj in self.objects.items() if key[1] != name}
        return super().delete(api_version, kind, name, namespace)

    def exec(
        self, namespace: str, pod: str, argv: Sequence[str], *, stdin: Iterator[bytes] | None = None, **_: Any
    ) -> ExecResult:
        assert ("Pod", namespace, pod) in self.objects, f"pod {pod} is not there"
        if argv[2] == "room":
            return ExecResult(0, json.dumps({"device": 1, "total": 100 * GI, "held": 0, **self.room}).encode(), "")
        return ExecResult(0, self.inside(pod, tuple(argv[2:]), b"".join(stdin or ())).encode(), "")


def digest_lines(files: Mapping[str, str]) -> str:
    """What the node helper's ``digest`` prints for files (path → content)."""
    rows: list[dict[str, Any]] = [{"path": p, "type": "file", "sha256": c} for p, c in sorted(files.items())]
    total = sum(len(c) for c in files.values())
    rows.append({"summary": True, "sha256": f"all:{sorted(files.items())}", "bytes": total})
    return "".join(json.dumps(row) + "\n" for row in rows)


def _merge(target: dict[str, Any], body: Mapping[str, Any]) -> None:
    for key, value in body.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, Mapping):
            _merge(target.setdefault(key, {}), value)
        else:
            target[key] = copy.deepcopy(value)


class FakeSite:
    name = "lab"

    def __init__(self) -> None:
        self.token: str | None = "tunnel-token-value"
        self.source = ("https://github.com/k3s-io/k3s/releases/download", "v1.34.2+k3s1")

    def dial(self, host: str, port: int) -> tuple[str, int]:
        return "127.0.0.1", 10_000 + port

    def operator_ip(self) -> str:
        return OPERATOR

    def s3_settings(self) -> Mapping[str, str]:
        return {
            "endpoint": "http://s3:1",
            "cluster_endpoint": "http://s3.cluster:1",
            "region": "us-east-1",
            "access_key": "AK",
            "secret_key": "SK-secret-value",
        }

    def tunnel_token(self) -> str | None:
        return self.token

    def k3s_source(self) -> tuple[str, str]:
        return self.source

    def docker_host(self) -> HostAddress:
        return HostAddress("docker-host", "192.168.1.10")


class FakeS3:
    """One bucket in memory; ``damage`` flips a byte of what is read back."""

    bucket, endpoint = "hybridlab-backup", "http://s3:1"

    def __init__(self, *, damage: bool = False) -> None:
        self.held: dict[str, bytes] = {}
        self.parts: list[int] = []
        self.damage = damage

    def close(self) -> None:
        pass

    def ensure_bucket(self) -> bool:
        return True

    def bucket_exists(self) -> bool:
        return True

    def put_multipart(self, key: str, parts: Iterator[bytes]) -> None:
        pieces = list(parts)
        self.parts = [len(p) for p in pieces]
        self.held[key] = b"".join(pieces)

    def get(self, key: str) -> Iterator[bytes]:
        data = bytearray(self.held[key])
        if self.damage:
            data[-1] ^= 1
        yield bytes(data)

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.held.pop(key, None)


class FakeContext:
    """A ``ports.Context`` whose record is real (in a folder of the test) and whose drivers are the fakes."""

    def __init__(
        self,
        folder: Path,
        params: Params | None = None,
        *,
        oracle: FakeOracle | None = None,
        hosts: FakeHosts | None = None,
        kube: FakeKube | None = None,
    ) -> None:
        self.params = params or make_params()
        self.params_base = folder
        self.state = folder / "state" / self.params.cluster
        self.clock = FakeClock()
        self.said: list[str] = []
        self.say: Callable[[str], None] = self.said.append
        self.ledger = Ledger(self.state / "ledger.jsonl", run="run-1")
        self.evidence = EvidenceStore(self.state / "evidence", cluster=self.params.cluster, run="run-1")
        self.secrets = SecretStore(self.state / "secrets")
        self.site: Any = FakeSite()
        self.oracle: Any = oracle or FakeOracle()
        self.hosts: Any = hosts or FakeHosts()
        self.docker_hosts: Any = FakeHosts()
        self.registry: Any = None
        self.s3: Any = FakeS3()
        self.notes: dict[str, Any] = {}
        self.max_age_s = 0.0
        self._kube = kube
        self.refreshed = 0

    @property
    def kube(self) -> Any:
        if self._kube is None:
            raise NotFound("there is no kubeconfig yet")
        return self._kube

    @property
    def kube_or_none(self) -> Any:
        return self._kube

    def interrupt(self) -> None:
        interrupt = getattr(self.clock, "interrupt", None)
        if interrupt is not None:  # the real clock's
            interrupt()

    def refresh(self) -> None:
        self.refreshed += 1
