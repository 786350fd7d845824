"""The one schema of a params file: types, ranges, cross-checks, reading, overriding, writing back with comments.

It also draws the form, the command line's help, the report's table and a JSON Schema: see ``fields_of``.
"""

from __future__ import annotations

import difflib
import io
import ipaddress
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import YAMLError

from hybridlab.errors import ParamsError, SchemaTooNew
from hybridlab.models import Arch, Json, NodeWish, Role

SCHEMA = 1
DNS_LABEL = r"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$"


def _cidr(value: str) -> str:
    return str(ipaddress.ip_network(value))


def _cidr_or_auto(value: str) -> str:
    return value if value == "auto" else _cidr(value)


Cidr = Annotated[str, AfterValidator(_cidr)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Node(Section):
    name: str = Field(pattern=DNS_LABEL, description="Host name and Kubernetes node name")
    role: Role = Field("agent", description="server (control plane) or agent")
    arch: Arch = Field(description="arm64 (VM.Standard.A1.Flex) or amd64 (VM.Standard.E2.1.Micro)")
    ocpus: float = Field(1, gt=0, le=80, description="OCPUs; a micro is 1/8 and is given as 1 or 0.125")
    memory_gb: float = Field(6, gt=0, le=512, description="Memory in GiB")
    boot_volume_gb: int = Field(50, ge=50, le=32768, description="Boot volume in GB, 50 at least")
    address: str | None = Field(None, description="byo: address or host name to reach the host by SSH")


class Layout(Section):
    """010: what is wanted against what is allowed."""

    allowance: str = Field("since-2026-06", description="Dated free allowance to plan against")
    allow_cost: bool = Field(False, description="Go on although the layout is over the free allowance")
    compare_usd_per_node: float = Field(12.0, ge=0, description="Monthly price of a node elsewhere, for comparison")


class OracleAccount(Section):
    """Where the Oracle account's configuration lies."""

    config_file: str | None = Field(None, description="OCI config file; ~/.oci/config, or the lab's own")
    profile: str = Field("DEFAULT", description="Profile in the OCI config file")
    compartment: str | None = Field(None, description="Compartment OCID; the tenancy's root when empty")


class Provision(Section):
    """020: network and VMs in Oracle Cloud."""

    vcn_cidr: Cidr = Field("10.0.0.0/16", description="Address range of the VCN")
    subnet_cidr: Cidr = Field("10.0.0.0/24", description="Address range of the subnet inside it")
    operator_cidr: Annotated[str, AfterValidator(_cidr_or_auto)] = Field(
        "auto", description="Who may reach SSH and the API: a CIDR, or auto for this machine's public address"
    )
    image_os: str = Field("Canonical Ubuntu", description="Operating system of the images")
    image_version: str = Field("24.04", description="Its version")
    capacity_deadline_s: float = Field(900, ge=0, description="How long to hunt for capacity, in seconds")
    capacity_pause_s: float = Field(30, gt=0, description="First pause between two rounds of the hunt, in seconds")
    degrade: bool = Field(False, description="Accept 1 OCPU and 6 GB where the wanted A1 size has no capacity")


class Bootstrap(Section):
    """030: firewall and K3s on the hosts."""

    ssh_user: str = Field("ubuntu", description="User to log in as; needs sudo without a password")
    k3s_version: str | None = Field(None, description="K3s version, e.g. v1.34.2+k3s1; the source's own when empty")
    k3s_source: str | None = Field(None, description="Release URL, mirror URL or folder; the lab's own, or GitHub")
    traefik: bool = Field(False, description="Let K3s install Traefik")
    flannel_backend: Literal["vxlan", "wireguard-native"] = Field("vxlan", description="Overlay network")
    secrets_encryption: bool = Field(True, description="Encrypt Secrets in the datastore")
    swap_gb: int = Field(2, ge=0, le=8, description="Swap file for nodes under 2 GB of memory; 0 for none")
    taint_small: bool = Field(True, description="Taint nodes under 2 GB: only what must run there does")
    labels: dict[str, str] = Field(default_factory=dict, description="Labels for every node")


class Benchmark(Section):
    """040: ARM against AMD, measured."""

    rounds: int = Field(3, ge=1, le=50, description="Interleaved rounds")
    seconds: float = Field(0.5, gt=0, le=30, description="Seconds per test and round")
    max_age_h: float = Field(720, gt=0, description="Measure again when the evidence is older, in hours")


class Storage(Section):
    """050: storage for claims."""

    engine: Literal["jiva", "longhorn", "cstor", "localpv", "local-path"] = Field("jiva", description="Storage engine")
    replicas: int = Field(3, ge=1, le=5, description="Copies of each volume (Jiva: 3, or 1 without protection)")
    storage_class: str = Field("hybridlab", pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$", description="StorageClass")
    test_mb: int = Field(8, ge=1, le=1024, description="Size of the test file, in MiB")


class Expose(Section):
    """060: how services are reached."""

    method: Literal["cloudflare", "traefik", "none"] = Field("cloudflare", description="Way in")
    replicas: int = Field(2, ge=1, le=10, description="cloudflared pods")
    token_env: str = Field("CLOUDFLARE_TUNNEL_TOKEN", description="Environment variable holding the tunnel token")
    token_file: str | None = Field(None, description="File holding the tunnel token")
    image: str = Field("docker.io/cloudflare/cloudflared:2025.10.1", description="Image of cloudflared")


class DockerHost(Section):
    address: str = Field(description="Address of the Docker host")
    user: str = Field("ubuntu", description="SSH user, allowed to use docker and sudo")
    key_file: str | None = Field(None, description="SSH key; the lab's own, or ssh-agent and ~/.ssh")


class Migrate(Section):
    """070: services from Docker Compose."""

    compose: str | None = Field(None, description="Compose file, relative to this params file")
    env_file: str | None = Field(None, description="Env file for its variables, relative to this params file")
    project: str | None = Field(None, description="Compose project name on the Docker host; from the file when empty")
    namespace: str = Field("services", pattern=DNS_LABEL, description="Namespace for the services")
    prefer: Arch = Field("arm64", description="Preferred architecture for multi-arch images")
    claim_gb: int = Field(1, ge=1, le=200, description="Size of each claim, in GiB")
    services: list[str] | None = Field(None, description="Only these services; all when empty")
    docker_host: DockerHost | None = Field(None, description="Where the services run today; no data copy when empty")
    strict: bool = Field(False, description="Fail when an image or a key could not be carried over")


class Backup(Section):
    """080: Velero to S3."""

    endpoint: str | None = Field(None, description="S3 endpoint URL; the lab's own when empty")
    region: str = Field("us-east-1", description="S3 region")
    bucket: str = Field("hybridlab-backup", pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$", description="Bucket")
    credentials_file: str | None = Field(None, description="AWS credentials file; AWS_* environment when empty")
    uploader: Literal["kopia", "restic"] = Field("kopia", description="restic only up to Velero 1.16")
    schedule: str = Field("0 3 * * *", description="Cron schedule of the daily backup")
    ttl_h: int = Field(720, ge=1, description="Keep backups for this many hours")
    max_age_h: float = Field(24, gt=0, description="Back up again when the newest backup is older, in hours")


class Drill(Section):
    """090: the backup proved by restoring it."""

    namespace: str = Field("restore-drill", pattern=DNS_LABEL, description="Scratch namespace")
    max_age_h: float = Field(168, gt=0, description="Drill again when the evidence is older, in hours")


class Maintain(Section):
    """910: one node out, and one back."""

    node: str | None = Field(None, description="Worker to replace; the last agent when empty")
    action: Literal["replace", "cordon", "uncordon", "remove"] = Field("replace", description="What to do with it")


class Params(Section):
    """A whole params file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)

    schema_: Literal[1] = Field(1, alias="schema", description="Version of this format")
    cluster: str = Field(pattern=DNS_LABEL, description="Name of the cluster; its tag on everything it owns")
    site: Literal["lab", "oracle", "byo"] = Field(description="Where: lab, oracle or byo")
    nodes: list[Node] = Field(min_length=1, max_length=20, description="The wanted nodes")
    layout: Layout = Field(default_factory=Layout)
    oracle: OracleAccount = Field(default_factory=OracleAccount)
    provision: Provision = Field(default_factory=Provision)
    bootstrap: Bootstrap = Field(default_factory=Bootstrap)
    benchmark: Benchmark = Field(default_factory=Benchmark)
    storage: Storage = Field(default_factory=Storage)
    expose: Expose = Field(default_factory=Expose)
    migrate: Migrate = Field(default_factory=Migrate)
    backup: Backup = Field(default_factory=Backup)
    drill: Drill = Field(default_factory=Drill)
    maintain: Maintain = Field(default_factory=Maintain)

    @model_validator(mode="after")
    def _cross_checks(self) -> Self:
        names = [n.name for n in self.nodes]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"nodes: the name {twice[0]} is used twice")
        servers = [n.name for n in self.nodes if n.role == "server"]
        if len(servers) != 1:
            raise ValueError(f"nodes: exactly one node must have role: server, found {len(servers)}")
        if self.site == "byo":
            missing = [n.name for n in self.nodes if not n.address]
            if missing:
                raise ValueError(f"nodes: site byo needs an address for {', '.join(missing)}")
        vcn = ipaddress.ip_network(self.provision.vcn_cidr)
        subnet = ipaddress.ip_network(self.provision.subnet_cidr)
        if subnet.version != vcn.version or not subnet.subnet_of(vcn):  # type: ignore[arg-type]
            raise ValueError(f"provision.subnet_cidr: {subnet} is not inside vcn_cidr {vcn}")
        for pods in ("10.42.0.0/16", "10.43.0.0/16"):
            if vcn.overlaps(ipaddress.ip_network(pods)):
                raise ValueError(f"provision.vcn_cidr: {vcn} overlaps {pods}, which K3s uses for pods or services")
        return self

    @property
    def wishes(self) -> tuple[NodeWish, ...]:
        return tuple(NodeWish(**n.model_dump()) for n in self.nodes)

    @property
    def server(self) -> NodeWish:
        return next(w for w in self.wishes if w.role == "server")

    def plain(self, *sections: str) -> dict[str, Json]:
        """The params as plain JSON, all of them or only ``cluster``, ``site``, ``nodes`` and the named sections."""
        data: dict[str, Json] = self.model_dump(mode="json", by_alias=True)
        return {k: v for k, v in data.items() if not sections or k in ("cluster", "site", "nodes", *sections)}


# -- reading -----------------------------------------------------------------------------------------------------------
def _yaml(text: str) -> YAML:
    """A writer that keeps comments, quotes and, as ``text`` has it, the indentation of lists."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    if re.search(r"^ +- ", text, re.MULTILINE):
        yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml


def read_params(path: Path, overrides: Mapping[str, Json] | None = None) -> Params:
    """Read a params file and apply overrides by dotted path (``storage.replicas``); None leaves the file's value.

    Raises ParamsError naming the file, the key and the nearest valid name; SchemaTooNew for a newer format.
    """
    data = _load(path)
    for key, value in (overrides or {}).items():
        if value is not None:
            set_path(data, key, value)
    return check_params(data, where=str(path))


def _load(path: Path) -> dict[str, Json]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        folder = path.parent if path.parent.exists() else Path()
        near = difflib.get_close_matches(path.name, [p.name for p in folder.glob("*.y*ml")], n=1, cutoff=0.4)
        hint = f"did you mean {folder / near[0]}?" if near else "see params/ for examples"
        raise ParamsError("there is no such params file", where=str(path), next_move=hint) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ParamsError("the params file can't be read", where=str(path), why=str(error)) from error
    try:
        data = YAML(typ="safe").load(io.StringIO(text))
    except DuplicateKeyError as error:
        key = re.search(r'duplicate key "([^"]*)"', str(error))
        mark = error.problem_mark
        line = f"line {mark.line + 1}" if mark else ""
        name = key.group(1) if key else "a key"
        raise ParamsError(f"{name} is given twice", where=f"{path}, {line}", next_move="keep one of the two") from error
    except YAMLError as error:
        raise ParamsError("the params file is not YAML", where=str(path), why=" ".join(str(error).split())) from error
    if not isinstance(data, dict):
        what = "the params file is empty" if data is None else "the params file is not a mapping of keys to values"
        raise ParamsError(what, where=str(path), next_move="start from params/lab.yaml")
    schema = data.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise SchemaTooNew(
            "the params file was written for a newer hybridlab",
            where=str(path),
            why=f"schema {schema}, this one reads up to {SCHEMA}",
            next_move="upgrade hybridlab",
        )
    return data


def set_path(data: dict[str, Json], key: str, value: Json) -> None:
    """Set ``a.b`` in nested mappings; lists by index or, for nodes, by name (``nodes.arm-1.memory_gb``)."""
    target: Json = data
    *parents, last = key.split(".")
    for part in parents:
        if isinstance(target, list):
            target = next((item for item in target if item.get("name") == part), None)
        else:
            target = target.setdefault(part, {}) if isinstance(target, dict) else None
        if target is None or not isinstance(target, dict | list):
            raise ParamsError(f"unknown parameter {key}", next_move=_hint(key))
    if not isinstance(target, dict):
        raise ParamsError(f"unknown parameter {key}", next_move=_hint(key))
    target[last] = value


def _hint(key: str) -> str:
    known = [f.path for f in fields_of(Params)]
    tails = {k.rsplit(".", 1)[-1]: k for k in known}
    sections = {path.rsplit(".", 1)[0] for path in known if "." in path}
    near = difflib.get_close_matches(key, [*known, *sorted(sections)], n=1, cutoff=0.6)
    near = near or [tails[m] for m in difflib.get_close_matches(key.rsplit(".", 1)[-1], list(tails), n=1, cutoff=0.7)]
    return f"did you mean {near[0]}?" if near else "see docs/params.md for all parameters"


def check_params(data: Mapping[str, Json], *, where: str = "") -> Params:
    """Validate plain data against the schema. Raises ParamsError listing every problem, each with its key."""
    try:
        return Params.model_validate(data)
    except ValidationError as error:
        problems, hints = [], []
        for item in error.errors():
            key = ".".join(str(part) for part in item["loc"])
            if item["type"] == "extra_forbidden":
                problems.append(f"unknown parameter {key}")
                hints.append(_hint(key))
            elif item["type"] == "missing":
                problems.append(f"{key} is missing")
            else:
                text = item["msg"].removeprefix("Value error, ")
                got = "" if item["type"] == "value_error" else f", not {item['input']!r}"
                problems.append(f"{key}: {text[0].lower()}{text[1:]}{got}" if key else text)
        raise ParamsError(
            "; ".join(problems), where=where, next_move=hints[0] if hints else "correct the params, then run again"
        ) from None


class FieldInfo(BaseModel):
    """One scalar parameter, for forms, help and tables. ``choices`` is empty where any value of the type will do."""

    path: str
    type: str
    default: Json
    choices: tuple[str, ...] = ()
    description: str = ""
    required: bool = False


def fields_of(model: type[BaseModel], prefix: str = "") -> Iterator[FieldInfo]:
    """Every parameter of a section (or of the whole schema) by dotted path; lists and mappings as one entry."""
    for name, info in model.model_fields.items():
        shown = info.alias or name
        path = f"{prefix}{shown}"
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from fields_of(kind, path + ".")
            continue
        optional = type(None) in get_args(kind)
        inner = next((a for a in get_args(kind) if a is not type(None)), kind) if optional else kind
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from fields_of(inner, path + ".")
            continue
        choices = tuple(str(a) for a in get_args(inner)) if str(inner).startswith("typing.Literal") else ()
        text = getattr(inner, "__name__", str(inner)) if not choices else "choice"
        default = None if info.is_required() else info.get_default(call_default_factory=True)
        yield FieldInfo(
            path=path,
            type=f"{text} or empty" if optional else text,
            default=default,
            choices=choices,
            description=info.description or "",
            required=info.is_required(),
        )


def parse_override(text: str) -> tuple[str, Json]:
    """``key=value`` from the command line; the value is read as YAML: ``3`` is a number, ``true`` a truth value."""
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise ParamsError(f"not a setting: {text!r}", next_move="write --set section.name=value")
    try:
        return key.strip(), YAML(typ="safe").load(value) if value else None
    except YAMLError as error:
        raise ParamsError(f"the value of {key} is not YAML", why=str(error)) from error


def save_params(path: Path, changes: Mapping[str, Json]) -> str:
    """Write changes back into a params file, keeping its comments and order; returns a unified diff.

    The result is checked first: a change that would make the file invalid raises ParamsError and writes nothing.
    """
    before = path.read_text(encoding="utf-8")
    yaml = _yaml(before)
    data = yaml.load(before)
    for key, value in changes.items():
        set_path(data, key, value)
    out = io.StringIO()
    yaml.dump(data, out)
    after = out.getvalue()
    check_params(YAML(typ="safe").load(after), where=str(path))
    path.write_text(after, encoding="utf-8")
    return "".join(
        difflib.unified_diff(before.splitlines(True), after.splitlines(True), str(path), f"{path} (saved)", n=1)
    )
