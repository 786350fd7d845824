"""The lab's Docker host: where the services run before they move to the cluster."""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import asyncssh
from ruamel.yaml import YAML

from hybridlab.lab.hosts.docker_data import seed_bind, seed_volume
from hybridlab.lab.hosts.host import Host
from hybridlab.lab.world import Machine, World

MACHINE_ID = "docker-1"
ADDRESS = "192.168.1.10"
USER = "ubuntu"
IMAGE = "debian-12-docker"
VOLUMES = "/var/lib/docker/volumes"
PROJECT_FOLDER = f"/home/{USER}"


@dataclass(frozen=True)
class Mount:
    """``kind`` is volume (``source``: its key in the compose file, empty for an anonymous one) or bind (``source``: an
    absolute path)."""

    kind: str
    source: str
    target: str
    read_only: bool = False


@dataclass(frozen=True)
class Service:
    image: str
    mounts: tuple[Mount, ...] = ()


@dataclass(frozen=True)
class Project:
    """A Compose project as it runs: its name and services."""

    name: str
    services: Mapping[str, Service]


def default_project() -> Project:
    """The article's services."""
    text = resources.files("hybridlab.data").joinpath("hosts/docker-project.json").read_text("utf-8")
    value = json.loads(text)
    services = {
        name: Service(item["image"], tuple(Mount(*mount) for mount in item["mounts"]))
        for name, item in value["services"].items()
    }
    return Project(value["name"], services)


def read_project(path: Path) -> Project:
    """The services, images, volumes and binds of a compose file; nothing else of it matters on the Docker host."""
    value: dict[str, Any] = YAML(typ="safe", pure=True).load(path.read_text("utf-8"))
    name = str(value.get("name") or path.resolve().parent.name)
    base = f"{PROJECT_FOLDER}/{name}"
    services: dict[str, Service] = {}
    for key, item in value.get("services", {}).items():
        mounts = tuple(mount for each in item.get("volumes", []) if (mount := _mount(each, base)) is not None)
        services[str(key)] = Service(str(item.get("image") or f"{name}-{key}"), mounts)
    return Project(name, services)


def _mount(item: Any, base: str) -> Mount | None:
    if isinstance(item, str):
        source, _, rest = item.partition(":")
        target, _, mode = rest.partition(":")
        if not rest:
            return Mount("volume", "", source)
        is_bind = source.startswith((".", "/", "~"))
        kind, read_only = "bind" if is_bind else "volume", "ro" in mode.split(",")
    else:
        kind, source, target = item.get("type", "volume"), str(item.get("source", "")), str(item.get("target", ""))
        read_only = bool(item.get("read_only", False))
        if kind not in ("bind", "volume") or (kind == "bind" and not source):
            return None
    if kind == "bind":
        source = posixpath.normpath(posixpath.join(base, source.replace("~", PROJECT_FOLDER, 1)))
    return Mount(kind, source, target, read_only)


def volume_name(project: str, key: str) -> str:
    return f"{project}_{key}"


def data_folder(name: str) -> str:
    """Where a volume's files are on the Docker host."""
    return f"{VOLUMES}/{name}/_data"


def key_pair(world: World) -> str:
    """The key that opens the Docker host, made once; returns the public half."""
    folder = world.directory / "docker-host"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / "id_ed25519"
    if not path.exists():
        key = asyncssh.generate_private_key("ssh-ed25519", comment="hybridlab-docker-host")
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(key.export_private_key())
    world.endpoints["docker_host"] = {"address": ADDRESS, "user": USER, "key_file": str(path)}
    return asyncssh.read_private_key(path).export_public_key().decode().strip()


def docker_machine(public_key: str) -> Machine:
    return Machine(
        id=MACHINE_ID, name="docker-1", arch="amd64", ocpus=1, memory_gb=4, boot_volume_gb=100, private_ip=ADDRESS,
        public_ip=None, user=USER, authorized_keys=(public_key,), image=IMAGE,
    )  # fmt: skip


def install_project(host: Host, project: Project, beside: Path | None = None) -> None:
    """Put the project's containers and volumes on a new Docker host, with data in them.

    ``beside`` is the folder of the compose file, where single files that are mounted from there are taken from.
    """
    files, now = host.files, host.world.clock.now()
    volumes: dict[str, Any] = {}
    containers: dict[str, Any] = {}
    for folder, mode in (("/var/lib/docker", 0o710), (VOLUMES, 0o701)):
        files.makedirs(folder)
        files.chmod(folder, mode)
    base = f"{PROJECT_FOLDER}/{project.name}"
    files.put("/etc/localtime", "TZif2")
    files.makedirs(base)
    files.chown(base, host.user.uid, host.user.gid)
    for service, item in project.services.items():
        mounts: list[dict[str, Any]] = []
        for mount in item.mounts:
            if mount.kind == "volume":
                name = volume_name(project.name, mount.source)
                if not mount.source:
                    name = hashlib.sha256(f"{project.name} {service} {mount.target}".encode()).hexdigest()
                source = data_folder(name)
                if name not in volumes:
                    volumes[name] = {"key": mount.source, "created": now}
                    seed_volume(files, source, item.image)
            else:
                name, source = "", mount.source
                if not files.exists(source) and not source.startswith(("/proc", "/sys", "/var/run", "/run", "/etc")):
                    own = beside / posixpath.relpath(source, base) if beside else None
                    data = own.read_bytes() if own and own.is_file() else None
                    seed_bind(files, source, item.image, host.user, data)
            mounts.append(
                {
                    "Type": mount.kind,
                    "Name": name,
                    "Source": source,
                    "Destination": mount.target,
                    "RW": not mount.read_only,
                }
            )
        container = f"{project.name}-{service}-1"
        containers[container] = {
            "id": hashlib.sha256(container.encode()).hexdigest(),
            "service": service,
            "image": item.image,
            "mounts": mounts,
            "running": True,
            "since": now,
        }
    host.state.docker = {"project": project.name, "folder": base, "volumes": volumes, "containers": containers}
    host.save()
