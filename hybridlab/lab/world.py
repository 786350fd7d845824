"""What the parts of the lab share: the clock, the faults, the request log, saved state, and how they call each other.

The lab is one asyncio process. Each part (oracle, hosts, kube, registry, s3) is a package or module of
``hybridlab.lab`` with ``async def start(world)`` and ``async def stop()``; they reach each other only through the
protocols below, hung on the ``World``.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

Arch = Literal["arm64", "amd64"]
Protocol_ = Literal["tcp", "udp", "icmp"]


@dataclass(frozen=True)
class Machine:
    """A powered-on computer, as the part that owns it (Oracle, or the lab itself for the Docker host) describes it.

    ``ocpus`` may be a fraction (0.125 for a micro). ``user_data`` is the decoded cloud-init text, or "".
    """

    id: str
    name: str
    arch: Arch
    ocpus: float
    memory_gb: float
    boot_volume_gb: int
    private_ip: str
    public_ip: str | None
    user: str
    authorized_keys: tuple[str, ...]
    image: str
    user_data: str = ""


class Hosts(Protocol):
    """The SSH hosts. Ports are published on the world when sshd answers."""

    async def power_on(self, machine: Machine) -> None: ...
    async def power_off(self, machine_id: str) -> None: ...
    async def reboot(self, machine_id: str) -> None: ...
    async def destroy(self, machine_id: str) -> None:
        """Forget the machine and remove its folder."""

    def firewall_allows(
        self, machine_id: str, chain: Literal["INPUT", "FORWARD"], protocol: Protocol_, port: int
    ) -> bool:
        """Whether the live iptables rules of that machine accept a NEW packet."""

    def machine_at(self, ip: str) -> Machine | None:
        """The powered-on machine that has this private or public address."""

    def journal(self, machine_id: str, unit: str, line: str) -> None:
        """Write a line to that machine's journal (``journalctl -u unit``)."""

    def folder(self, machine_id: str) -> Path:
        """The folder that is this machine's ``/``."""

    def disk(self, machine_id: str) -> tuple[int, int]:
        """Size and use of its root file system, in bytes."""


@dataclass(frozen=True)
class K3sService:
    """K3s as started on one machine: what /etc/rancher/k3s/config.yaml and the unit say when it starts.

    ``settings`` has the keys of the config file (``node-ip``, ``token``, ``server``, ``disable``, …), lists as lists.
    """

    role: Literal["server", "agent"]
    version: str
    settings: Mapping[str, Any]


class Kube(Protocol):
    """The K3s API server and its controllers."""

    async def service_started(self, machine: Machine, service: K3sService) -> None:
        """K3s starts on a machine. The first server creates the cluster, listens, and writes
        /var/lib/rancher/k3s/server/node-token and /etc/rancher/k3s/k3s.yaml (0600, server https://127.0.0.1:6443) into
        the machine's folder. An agent that cannot reach or convince its server never joins, and its journal says why,
        as the real one's does; it retries for as long as it runs."""

    async def service_stopped(self, machine_id: str) -> None:
        """K3s stops (or the machine went away): its node becomes NotReady, or the API stops answering."""

    async def uninstalled(self, machine_id: str, role: Literal["server", "agent"]) -> None:
        """k3s-uninstall.sh or k3s-agent-uninstall.sh ran; after the server's, the cluster's data are gone."""

    def traffic_ok(self, source_ip: str, dest_ip: str) -> bool:
        """Whether pods on these two nodes can talk (VXLAN 8472/udp and FORWARD open on both sides)."""


class Network(Protocol):
    """Who may talk to whom, before any machine's own firewall: Oracle's security groups and subnets."""

    def allows(self, source_ip: str, dest_ip: str, protocol: Protocol_, port: int) -> bool: ...


class Registry(Protocol):
    def platforms(self, image: str) -> tuple[str, ...] | None:
        """Platforms of an image reference, as "linux/arm64" or "linux/arm/v7"; None where nobody has the image."""

    def config(self, image: str, platform: str) -> Mapping[str, Any]:
        """The image's configuration blob (``config.ExposedPorts``, ``User``, …)."""


class S3(Protocol):
    endpoint: str  # http://127.0.0.1:PORT
    access_key: str
    secret_key: str
    root: Path  # bucket folders, objects as plain files


class Clock:
    """Time in the lab. ``speed`` 10 makes what the real system takes ten seconds for take one."""

    def __init__(self, speed: float = 1.0) -> None:
        self.speed = speed

    def now(self) -> float:
        """Unix time in seconds (never scaled)."""
        return time.time()

    async def takes(self, seconds: float) -> None:
        """Let as much time pass as the real thing would take, divided by the lab's speed."""
        await asyncio.sleep(seconds / self.speed)


@dataclass
class Fault:
    """A fault that was asked for: fires ``remaining`` more times where ``match`` (a substring) fits the subject."""

    name: str
    remaining: int
    match: str = ""


class Faults:
    """Misbehaviour on request, by name and count, reproducible.

    Names: ``out-of-capacity`` (subject: "AD shape"), ``too-many-requests`` (subject: "METHOD path"), ``ssh-drop``
    (subject: "host argv"; the connection is cut while the command runs), ``s3-corrupt`` (applied at once: flips one
    byte of the newest object whose key matches). Parts add names with ``register``.
    """

    def __init__(self) -> None:
        self.known: dict[str, str] = {}
        self.active: list[Fault] = []
        self._at_once: dict[str, Callable[[str], str]] = {}

    def register(self, name: str, description: str, *, at_once: Callable[[str], str] | None = None) -> None:
        """Add a name. ``at_once``, given ``match``, does the damage when asked, instead of waiting to be struck; it
        returns what it did, and raises LookupError where there is nothing to damage."""
        self.known[name] = description
        if at_once:
            self._at_once[name] = at_once

    def ask(self, name: str, count: int = 1, match: str = "") -> list[str]:
        """Ask for a fault. Returns what was done at once, if anything. Raises KeyError for a name nobody registered."""
        if name not in self.known:
            raise KeyError(name)
        strike = self._at_once.get(name)
        if strike:
            return [strike(match) for _ in range(count)]
        self.active.append(Fault(name, count, match))
        return []

    def fires(self, name: str, subject: str = "") -> bool:
        """Whether this fault strikes now; counts it."""
        for fault in self.active:
            if fault.name == name and fault.remaining > 0 and fault.match in subject:
                fault.remaining -= 1
                self.active = [f for f in self.active if f.remaining > 0]
                return True
        return False


@dataclass(frozen=True)
class LogRow:
    """One request the lab answered. ``mutating`` says whether it was meant to change something."""

    time: float
    part: str  # oracle, hosts, kube, registry, s3
    actor: str  # user agent, or the machine or controller that asked
    verb: str  # GET, POST, exec, sftp-write, …
    target: str
    status: int
    mutating: bool
    detail: str = ""


class RequestLog:
    """Every request, appended to ``requests.jsonl`` so that calls can be counted. Never holds bodies or secrets."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("a", encoding="utf-8")

    def add(
        self, part: str, verb: str, target: str, status: int, *, mutating: bool, actor: str = "", detail: str = ""
    ) -> None:
        row = LogRow(time.time(), part, actor, verb, target, status, mutating, detail)
        self._file.write(json.dumps(asdict(row)) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


@dataclass
class World:
    """The lab's shared state; one per process. ``directory`` is HYBRIDLAB_LAB_DIR."""

    directory: Path
    clock: Clock
    faults: Faults
    log: RequestLog
    operator_ip: str = "198.51.100.7"  # where the person at the keyboard comes from, as the lab's Oracle sees it
    endpoints: dict[str, Any] = field(default_factory=dict)  # goes into lab.json; each part adds its own
    hosts: Hosts = field(init=False)
    kube: Kube = field(init=False)
    network: Network = field(init=False)
    registry: Registry = field(init=False)
    s3: S3 = field(init=False)
    _published: dict[tuple[str, int], int] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    # -- addresses -------------------------------------------------------------------------------------------------
    def publish(self, ip: str, port: int, local_port: int) -> None:
        """Make a logical address reachable: it is served on this loopback port."""
        self._published[(ip, port)] = local_port

    def unpublish(self, ip: str, port: int) -> None:
        self._published.pop((ip, port), None)

    def dial(self, ip: str, port: int) -> tuple[Literal["open", "refused", "filtered"], int]:
        """What the operator gets when connecting to a logical address, and the loopback port when open.

        The cloud's network drops what it doesn't allow; a machine's own rules reject it.
        """
        if not self.network.allows(self.operator_ip, ip, "tcp", port):
            return "filtered", 0
        machine = self.hosts.machine_at(ip)
        if machine and not self.hosts.firewall_allows(machine.id, "INPUT", "tcp", port):
            return "refused", 0
        local = self._published.get((ip, port))
        return ("open", local) if local else ("refused", 0)

    def resolve(self, name: str) -> str | None:
        """The address of the powered-on machine with this name, its public one if it has one, or None."""
        named = (machine for machine in self.machines() if machine.name == name)
        return next((machine.public_ip or machine.private_ip for machine in named), None)

    def machines(self) -> tuple[Machine, ...]:
        """The machines that are up: those whose sshd answers."""
        found = (self.hosts.machine_at(ip) for ip, port in self._published if port == 22)
        return tuple({machine.id: machine for machine in found if machine}.values())

    # -- saved state -----------------------------------------------------------------------------------------------
    def load(self, part: str) -> Any:
        """The JSON this part saved last, or None."""
        path = self.directory / f"{part}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def save(self, part: str, value: Any) -> None:
        """Save this part's state atomically."""
        path = self.directory / f"{part}.json"
        scratch = path.with_suffix(".tmp")
        scratch.write_text(json.dumps(value), encoding="utf-8")
        scratch.replace(path)

    # -- background work -------------------------------------------------------------------------------------------
    def spawn(
        self, work: Awaitable[None], name: str, *, on_error: Callable[[BaseException], None] | None = None
    ) -> None:
        """Run something beside the requests; an exception in it is logged, never lost."""

        async def guarded() -> None:
            try:
                await work
            except asyncio.CancelledError:
                raise
            except Exception as error:  # noqa: BLE001 - the edge of the process: report, keep the other parts alive
                if on_error:
                    on_error(error)
                self.log.add("lab", "task-failed", name, 500, mutating=False, detail=repr(error))

        task = asyncio.get_running_loop().create_task(guarded(), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def cancel_tasks(self) -> None:
        tasks: Sequence[asyncio.Task[None]] = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
