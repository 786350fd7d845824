"""A lab of fakes around the real KubePart: machines without SSH, a network without rules, a registry of a few images.

Run as ``python tests/lab/kube_fixture.py FOLDER [SPEED]``: serves a cluster of three nodes until interrupted and writes
FOLDER/kubeconfig.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Awaitable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from hybridlab.lab.kube import KubePart
from hybridlab.lab.world import Arch, Clock, Faults, K3sService, Machine, RequestLog, World

T = TypeVar("T")
VERSION = "v1.34.2+k3s1"
IMAGES: Mapping[str, tuple[str, ...]] = {
    "busybox": ("linux/amd64", "linux/arm64", "linux/arm/v7"),
    "mariadb": ("linux/amd64", "linux/arm64"),
    "nginx": ("linux/amd64", "linux/arm64"),
    "amd64only": ("linux/amd64",),
}


def machine(name: str, number: int, arch: Arch = "arm64") -> Machine:
    return Machine(
        id=f"ocid1.instance.{name}",
        name=name,
        arch=arch,
        ocpus=2,
        memory_gb=12,
        boot_volume_gb=50,
        private_ip=f"10.0.0.{number}",
        public_ip=f"203.0.113.{number}",
        user="ubuntu",
        authorized_keys=(),
        image="Canonical-Ubuntu-24.04",
    )


class FakeHosts:
    """Machines as folders; ``closed`` holds (machine id, chain, port) that a firewall rejects."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.machines: dict[str, Machine] = {}
        self.closed: set[tuple[str, str, int]] = set()
        self.journals: dict[tuple[str, str], list[str]] = {}

    def add(self, one: Machine) -> Machine:
        self.machines[one.id] = one
        return one

    async def power_on(self, machine: Machine) -> None:
        self.add(machine)

    async def power_off(self, machine_id: str) -> None:
        self.machines.pop(machine_id, None)

    async def reboot(self, machine_id: str) -> None:
        raise AssertionError("not used")

    async def destroy(self, machine_id: str) -> None:
        self.machines.pop(machine_id, None)

    def firewall_allows(
        self,
        machine_id: str,
        chain: Literal["INPUT", "FORWARD"],
        protocol: Literal["tcp", "udp", "icmp"],
        port: int,
    ) -> bool:
        return (machine_id, chain, port) not in self.closed

    def machine_at(self, ip: str) -> Machine | None:
        return next((m for m in self.machines.values() if ip in (m.private_ip, m.public_ip)), None)

    def journal(self, machine_id: str, unit: str, line: str) -> None:
        self.journals.setdefault((machine_id, unit), []).append(line)

    def folder(self, machine_id: str) -> Path:
        path = self._root / machine_id
        path.mkdir(parents=True, exist_ok=True)
        return path

    def disk(self, machine_id: str) -> tuple[int, int]:
        return 50 << 30, 2 << 30


class FakeNetwork:
    def __init__(self) -> None:
        self.blocked: set[tuple[str, int]] = set()  # (destination, port)

    def allows(self, source_ip: str, dest_ip: str, protocol: str, port: int) -> bool:
        return (dest_ip, port) not in self.blocked


class FakeRegistry:
    def platforms(self, image: str) -> tuple[str, ...] | None:
        name = image.split("@")[0].rpartition("/")[2].split(":")[0]
        if image.startswith("rancher/"):
            return ("linux/amd64", "linux/arm64")
        return IMAGES.get(name)

    def config(self, image: str, platform: str) -> Mapping[str, Any]:
        return {"config": {}}


class FakeS3:
    endpoint = "http://127.0.0.1:9"
    access_key = "lab"
    secret_key = "lab"
    root = Path("/nonexistent")


class KubeLab:
    """The Kubernetes part of a lab in a thread of its own, with one server and two agents when asked."""

    def __init__(self, folder: Path, *, speed: float = 20.0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="kube-lab", daemon=True)
        self._thread.start()
        self.world = World(folder, Clock(speed), Faults(), RequestLog(folder / "requests.jsonl"))
        self.hosts = FakeHosts(folder / "hosts")
        self.network = FakeNetwork()
        self.kube = KubePart()
        self.world.hosts = self.hosts
        self.world.network = self.network
        self.world.registry = FakeRegistry()
        self.world.s3 = FakeS3()
        self.world.kube = self.kube
        self.run(self.kube.start(self.world))

    def run(self, work: Awaitable[T], timeout_s: float = 30) -> T:
        """Run something in the lab's loop and wait for it."""

        async def awaited() -> T:
            return await work

        return asyncio.run_coroutine_threadsafe(awaited(), self._loop).result(timeout_s)

    def stop(self) -> None:
        self.run(self.kube.stop())
        self.run(self.world.cancel_tasks())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        self.world.log.close()

    # -- a cluster --------------------------------------------------------------------------------------------------
    def start_server(self, one: Machine, **settings: Any) -> None:
        self.hosts.add(one)
        self.run(self.kube.service_started(one, K3sService("server", VERSION, settings)))

    def start_agent(self, one: Machine, **settings: Any) -> None:
        self.hosts.add(one)
        self.run(self.kube.service_started(one, K3sService("agent", VERSION, settings)))

    def node_token(self, server: Machine) -> str:
        path = self.hosts.folder(server.id) / "var/lib/rancher/k3s/server/node-token"
        return path.read_text(encoding="utf-8").strip()

    def kubeconfig(self, server: Machine) -> Path:
        """The server's kubeconfig, pointed at the loopback port."""
        text = (self.hosts.folder(server.id) / "etc/rancher/k3s/k3s.yaml").read_text(encoding="utf-8")
        state, port = self.world.dial(server.public_ip or "", 6443)
        if state != "open":
            raise AssertionError(f"the API is {state}")
        path = self.folder / "kubeconfig"
        path.write_text(text.replace(":6443", f":{port}"), encoding="utf-8")
        path.chmod(0o600)
        return path

    def three_nodes(self) -> Machine:
        """An arm server, an arm agent and an amd agent; returns the server."""
        server = machine("arm1", 11)
        self.start_server(server)
        token = self.node_token(server)
        for one in (machine("arm2", 12), machine("amd1", 13, "amd64")):
            self.start_agent(one, server="https://10.0.0.11:6443", token=token)
        return server


def main() -> None:
    lab = KubeLab(Path(sys.argv[1]), speed=float(sys.argv[2]) if len(sys.argv) > 2 else 1.0)
    server = lab.three_nodes()
    sys.stdout.write(f"{lab.kubeconfig(server)}\n")
    sys.stdout.flush()
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        lab.stop()


if __name__ == "__main__":
    main()
