"""The sections of a params file: each stage's parameters with their types, ranges and one line of help."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from hybridlab.models import Arch, Role

DNS_LABEL = r"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$"


def _cidr(value: str) -> str:
    return str(ipaddress.ip_network(value))


def _ip(value: str) -> str:
    return str(ipaddress.ip_address(value))


def _cidr_or_auto(value: str) -> str:
    return value if value == "auto" else _cidr(value)


Cidr = Annotated[str, AfterValidator(_cidr)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Node(Section):
    name: str = Field(pattern=DNS_LABEL, description="Host name and Kubernetes node name")
    role: Role = Field("agent", description="server (control plane) or agent")
    arch: Arch | None = Field(
        None, description="arm64 (VM.Standard.A1.Flex) or amd64 (VM.Standard.E2.1.Micro); byo: found when empty"
    )
    ocpus: float = Field(1, gt=0, le=80, description="OCPUs; a micro is 1/8 and is given as 1 or 0.125")
    memory_gb: float = Field(6, gt=0, le=512, description="Memory in GiB")
    boot_volume_gb: int = Field(50, ge=50, le=32768, description="Boot volume in GB, 50 at least")
    address: str | None = Field(None, description="byo: address or host name to reach the host by SSH")
    user: str | None = Field(None, description="byo: user to log in as, where it is not bootstrap.ssh_user")
    port: int = Field(22, ge=1, le=65535, description="byo: port of the host's SSH")
    key_file: str | None = Field(None, description="byo: SSH private key, where it is not bootstrap.ssh_key_file")
    node_ip: Annotated[str, AfterValidator(_ip)] | None = Field(
        None, description="byo: address at which the other nodes reach it; what address names when empty"
    )


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

    ssh_user: str = Field("ubuntu", description="User to log in as; needs sudo")
    ssh_key_file: str | None = Field(None, description="byo: SSH private key; ssh-agent and ~/.ssh when empty")
    sudo_password_env: str = Field(
        "HYBRIDLAB_SUDO_PASSWORD", description="Environment variable holding sudo's password, where sudo wants one"
    )
    sudo_password_file: str | None = Field(None, description="File holding sudo's password")
    k3s_version: str | None = Field(
        None, description="K3s version (v1.34.2+k3s1) or channel (stable, v1.34); the source's own when empty"
    )
    k3s_source: str | None = Field(None, description="Release URL, mirror URL or folder; the lab's own, or GitHub")
    airgap_images: bool = Field(
        False, description="Bring K3s' own images along from a URL too; from a folder that has them they always are"
    )
    traefik: bool = Field(False, description="Let K3s install Traefik")
    flannel_backend: Literal["vxlan", "wireguard-native"] = Field("vxlan", description="Overlay network")
    secrets_encryption: bool = Field(True, description="Encrypt Secrets in the datastore")
    swap_gb: int = Field(2, ge=0, le=8, description="Swap file for nodes under 2 GB of memory; 0 for none")
    taint_small: bool = Field(True, description="Taint nodes under 2 GB: only what must run there does")
    labels: dict[str, str] = Field(default_factory=dict, description="Labels for every node")
    prove_traffic: bool = Field(True, description="Prove traffic between pods with a small pod on every node")
    prove_reboot: bool = Field(
        False, description="Reboot every node once, one at a time, and prove that firewall and K3s come back"
    )


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


class DataChoice(Section):
    method: Literal["copy", "stop", "dump"] = Field(
        "copy",
        description="copy: while it runs, until nothing changes; stop: stopped meanwhile; dump: the database's own",
    )


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
    data: dict[str, DataChoice] = Field(
        default_factory=dict, description="How a service's data are taken: service → method copy, stop or dump"
    )
    start: bool = Field(True, description="Start the services in the cluster; false: 075 does")
    strict: bool = Field(False, description="Fail when an image or a key could not be carried over")


class HealthCheck(Section):
    service: str = Field(description="Service of the compose file")
    kind: Literal["http", "tcp", "command"] = Field("http", description="A GET, a connection, or a command in its pod")
    port: int | None = Field(None, ge=1, le=65535, description="Its port inside the project, for http and tcp")
    path: str = Field("/", pattern="^/", description="Path of the GET")
    status: list[int] = Field(default_factory=lambda: [200, 301, 302], description="Good answers to the GET")
    command: list[str] = Field(default_factory=list, description="Command and arguments; good when it exits with 0")
    deadline_s: float = Field(120, gt=0, description="How long it may take to become healthy, in seconds")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.kind == "command" and not self.command:
            raise ValueError(f"the check of {self.service} has no command")
        if self.kind != "command" and self.port is None:
            raise ValueError(f"the {self.kind} check of {self.service} has no port")
        return self


class CutOver(Section):
    """075: the services stop on the Docker host and go on in the cluster, or back."""

    direction: Literal["forward", "back"] = Field("forward", description="Into the cluster, or back to the Docker host")
    stop_timeout_s: int = Field(60, ge=1, le=3600, description="Grace to stop a service on the Docker host, in seconds")
    ready_deadline_s: float = Field(600, gt=0, description="How long a service may take to be Ready, in seconds")
    checks: list[HealthCheck] = Field(default_factory=list, description="Health checks, after all are Ready")
    roll_back: bool = Field(True, description="Roll back by itself when something fails after the first stop")
    switch: Literal["none", "ports", "tunnel"] = Field(
        "none", description="ports: published ports on the nodes; tunnel: cloudflared in the cluster; none: by hand"
    )


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
    action: Literal["replace", "cordon", "uncordon", "remove", "snapshot", "restore"] = Field(
        "replace", description="What to do with it; snapshot and restore are about the server's datastore"
    )
    snapshot: str | None = Field(None, description="Snapshot to restore; the newest when empty")
    snapshot_max_age_h: float = Field(
        24, ge=0, description="Take another snapshot when the newest is older, in hours; 0 for always"
    )
