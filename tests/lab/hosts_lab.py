"""A lab of SSH hosts alone, run in a thread of the test process."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import asyncssh

from hybridlab.drivers.ssh import SshHosts
from hybridlab.errors import Unreachable
from hybridlab.lab.hosts import HostsPart
from hybridlab.lab.world import Clock, Faults, K3sService, Machine, RequestLog, World
from hybridlab.models import HostAddress

T = TypeVar("T")


@dataclass
class KubeRecorder:
    """Stands where the Kubernetes part is, and remembers what the hosts told it."""

    events: list[tuple[str, str, Any]] = field(default_factory=list)

    async def service_started(self, machine: Machine, service: K3sService) -> None:
        self.events.append(("started", machine.name, service))

    async def service_stopped(self, machine_id: str) -> None:
        self.events.append(("stopped", machine_id, None))

    async def uninstalled(self, machine_id: str, role: str) -> None:
        self.events.append(("uninstalled", machine_id, role))

    def traffic_ok(self, source_ip: str, dest_ip: str) -> bool:
        return True


class OpenNetwork:
    def allows(self, source_ip: str, dest_ip: str, protocol: str, port: int) -> bool:
        return True


class LabHosts:
    """The hosts part in a loop of its own thread; ``call`` runs a coroutine there."""

    def __init__(self, directory: Path, speed: float = 20.0, *, docker_host: bool = False) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.world = World(directory, Clock(speed), Faults(), RequestLog(directory / "requests.jsonl"))
        self.kube = KubeRecorder()
        self.world.kube = self.kube
        self.world.network = OpenNetwork()
        self.part = HostsPart(docker_host=docker_host)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        key_path = directory / "key"
        if not key_path.exists():
            asyncssh.generate_private_key("ssh-ed25519").write_private_key(key_path)
        self.key = key_path
        self.public_key = asyncssh.read_private_key(key_path).export_public_key().decode()
        self.call(self.part.start(self.world))

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def machine(self, name: str = "arm-1", **changes: Any) -> Machine:
        values: dict[str, Any] = {
            "id": f"ocid1.instance.{name}", "name": name, "arch": "arm64", "ocpus": 2, "memory_gb": 12,
            "boot_volume_gb": 50, "private_ip": "10.0.0.11", "public_ip": "203.0.113.11", "user": "ubuntu",
            "authorized_keys": (self.public_key,), "image": "Canonical-Ubuntu-24.04-aarch64", **changes,
        }  # fmt: skip
        return Machine(**values)

    def power_on(self, machine: Machine) -> HostAddress:
        self.call(self.part.power_on(machine))
        return HostAddress(machine.name, machine.public_ip or machine.private_ip, machine.user)

    def dial(self, host: str, port: int) -> tuple[str, int]:
        state, local = self.world.dial(host, port)
        if state != "open":
            raise Unreachable("no connection", where=f"{host}:{port}", why=state)
        return "127.0.0.1", local

    def driver(self, **options: Any) -> SshHosts:
        options.setdefault("key", self.key)
        return SshHosts(self.dial, self.directory / "known_hosts", **options)

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.directory / "requests.jsonl").read_text().splitlines()]

    def stop(self) -> None:
        self.call(self.part.stop())
        self.call(self.world.cancel_tasks())
        self.world.log.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)


@contextmanager
def lab_hosts(directory: Path, speed: float = 20.0, *, docker_host: bool = False) -> Iterator[LabHosts]:
    lab = LabHosts(directory, speed, docker_host=docker_host)
    try:
        yield lab
    finally:
        lab.stop()


def eventually(check: Callable[[], bool], deadline_s: float = 10.0) -> None:
    """Wait until something is so; fails at the deadline."""
    end = time.monotonic() + deadline_s
    while not check():
        assert time.monotonic() < end, "it did not become so in time"
        time.sleep(0.02)
