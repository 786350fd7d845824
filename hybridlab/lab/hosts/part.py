"""The lab's SSH hosts: a machine a VM, each with its own sshd, files, rules and services."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Literal

from hybridlab.lab.hosts import server
from hybridlab.lab.hosts.docker_host import (
    default_project,
    docker_machine,
    install_project,
    key_pair,
    read_project,
)
from hybridlab.lab.hosts.firewall import Packet
from hybridlab.lab.hosts.host import Host, HostState
from hybridlab.lab.hosts.k3s_service import resume_k3s, start_enabled, stop_k3s
from hybridlab.lab.hosts.releases import ReleaseServer
from hybridlab.lab.hosts.space import fill_named
from hybridlab.lab.world import Machine, Protocol_, World

SSHD_UP_S = 2.0
SHUTDOWN_S = 1.0
SSH_PORT = 22


class OpenNetwork:
    """A network that lets everything pass."""

    def allows(self, source_ip: str, dest_ip: str, protocol: Protocol_, port: int) -> bool:
        return True


class HostsPart:
    """Implements ``hybridlab.lab.world.Hosts``.

    ``compose_file`` says which services run on the lab's Docker host; None takes the article's. ``docker_host`` False
    leaves that machine out.
    """

    def __init__(self, compose_file: Path | None = None, *, docker_host: bool = True) -> None:
        self._compose_file = compose_file
        self._with_docker_host = docker_host
        self._hosts: dict[str, Host] = {}
        self._world: World | None = None
        self._releases: ReleaseServer | None = None

    @property
    def world(self) -> World:
        if self._world is None:
            raise RuntimeError("the hosts were not started")
        return self._world

    async def start(self, world: World) -> None:
        """Load the machines of this lab; those that were on answer at once, as if the lab had never stopped."""
        self._world = world
        world.hosts = self
        if not hasattr(world, "network"):
            world.network = OpenNetwork()  # until Oracle's part brings its own; a lab may have none
        world.faults.register("ssh-drop", 'cut the connection while a command runs; matches "HOST COMMAND"')
        world.faults.register("ssh-refuse", "refuse a connection; matches the host's name")
        world.faults.register("source-changed", 'change a file right after it was archived; matches "HOST FOLDER"')
        world.faults.register(
            "disk-full",
            'fill a disk, at once; match "HOST", or "HOST BYTES" for what is left',
            at_once=lambda match: fill_named(self._hosts, match),
        )
        self._releases = ReleaseServer(world)
        await self._releases.start()
        folder = Host.directory(world)
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.glob("*.json")):
            host = Host(world, HostState.load(json.loads(path.read_text("utf-8"))))
            self._hosts[host.machine.id] = host
            if host.state.powered:
                await resume_k3s(host)
                await server.listen(host)
                self._publish(host)
        if self._with_docker_host:
            await self._start_docker_host()

    async def _start_docker_host(self) -> None:
        """The Docker host is always on; it is made, with its services and their data, when the lab is new."""
        machine = docker_machine(key_pair(self.world))
        if machine.id in self._hosts:
            return
        host = self._create(machine)
        if self._compose_file:
            install_project(host, read_project(self._compose_file), self._compose_file.parent)
        else:
            install_project(host, default_project())
        host.state.powered = True
        host.boot()
        await server.listen(host)
        self._publish(host)

    def _create(self, machine: Machine) -> Host:
        host = self._hosts[machine.id] = Host(self.world, HostState(machine))
        host.seed()
        return host

    async def stop(self) -> None:
        """Save every machine and hang up; they stay powered on."""
        if self._releases is not None:
            await self._releases.stop()
        for host in self._hosts.values():
            await server.hang_up(host)
            host.save()

    # -- power -----------------------------------------------------------------------------------------------------
    async def power_on(self, machine: Machine) -> None:
        """Boot a machine (made first, when new); sshd answers about two seconds later."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", machine.id):
            raise ValueError(f"not a machine id: {machine.id!r}")
        host = self._hosts.get(machine.id)
        if host is not None and host.state.powered:
            return
        if host is None:
            host = self._create(machine)
        host.state.machine = machine
        host.state.powered = True
        host.boot()
        host.save()
        self.world.log.add("hosts", "power-on", machine.name, 0, mutating=True)
        self._spawn(self._come_up(host), f"boot {machine.name}")

    async def _come_up(self, host: Host) -> None:
        boots = host.state.boots
        await self.world.clock.takes(SSHD_UP_S)
        if not host.state.powered or host.state.boots != boots or host.machine.id not in self._hosts:
            return  # switched off meanwhile
        await server.listen(host)
        self._publish(host)
        await start_enabled(host)
        host.save()

    async def power_off(self, machine_id: str) -> None:
        host = self._hosts.get(machine_id)
        if host is None or not host.state.powered:
            return
        host.state.powered = False
        self._unpublish(host)
        await server.hang_up(host)
        await stop_k3s(host, mark=False)
        host.listening.clear()
        host.save()
        self.world.log.add("hosts", "power-off", host.name, 0, mutating=True)

    async def reboot(self, machine_id: str) -> None:
        host = self._hosts[machine_id]
        await self.power_off(machine_id)
        await self.world.clock.takes(SHUTDOWN_S)
        if machine_id in self._hosts:
            await self.power_on(host.machine)

    async def destroy(self, machine_id: str) -> None:
        await self.power_off(machine_id)
        host = self._hosts.pop(machine_id, None)
        if host is None:
            return
        # bytes, since names in there need not be UTF-8
        shutil.rmtree(str(host.files.root).encode(), ignore_errors=True)
        for suffix in (".json", ".hostkey"):
            (Host.directory(self.world) / f"{machine_id}{suffix}").unlink(missing_ok=True)
        self.world.log.add("hosts", "destroy", host.name, 0, mutating=True)

    def reboot_soon(self, host: Host) -> None:
        """``systemctl reboot``: the command's answer still gets out."""

        async def soon() -> None:
            await self.world.clock.takes(0.1)
            await self.reboot(host.machine.id)

        self._spawn(soon(), f"reboot {host.name}")

    def power_off_soon(self, host: Host) -> None:
        async def soon() -> None:
            await self.world.clock.takes(0.1)
            await self.power_off(host.machine.id)

        self._spawn(soon(), f"poweroff {host.name}")

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self.world.spawn(work, name)

    def _publish(self, host: Host) -> None:
        for ip in _addresses(host.machine):
            self.world.publish(ip, SSH_PORT, host.state.port)

    def _unpublish(self, host: Host) -> None:
        for ip in _addresses(host.machine):
            self.world.unpublish(ip, SSH_PORT)

    # -- questions of the other parts ------------------------------------------------------------------------------
    def firewall_allows(
        self, machine_id: str, chain: Literal["INPUT", "FORWARD"], protocol: Protocol_, port: int
    ) -> bool:
        return self.verdict(machine_id, chain, protocol, port) == "ACCEPT"

    def verdict(self, machine_id: str, chain: str, protocol: str, port: int, source: str | None = None) -> str:
        """ACCEPT, DROP or "REJECT kind" for a NEW packet that reaches this machine; DROP where it is off."""
        host = self._hosts.get(machine_id)
        if host is None or not host.state.powered:
            return "DROP"
        # what is forwarded is traffic of pods, which K3s' policy chains have marked as allowed when they were there
        packet = (
            Packet(protocol, port, source, host.machine.private_ip)
            if chain == "INPUT"
            else Packet(protocol, port, source, mark=0x20000)
        )
        return host.firewall.filter.verdict(chain, packet)

    def machine_at(self, ip: str) -> Machine | None:
        host = self.host_at(ip)
        return host.machine if host else None

    def host_at(self, ip: str) -> Host | None:
        """The powered-on machine with this address."""
        return next((h for h in self._hosts.values() if h.state.powered and ip in _addresses(h.machine)), None)

    def host(self, machine_id: str) -> Host:
        """The machine, on or off. Raises KeyError."""
        return self._hosts[machine_id]

    def journal(self, machine_id: str, unit: str, line: str) -> None:
        host = self._hosts.get(machine_id)
        if host is not None:
            host.log(unit, line)

    def folder(self, machine_id: str) -> Path:
        return Host.directory(self.world) / machine_id

    def disk(self, machine_id: str) -> tuple[int, int]:
        return self._hosts[machine_id].disk()

    def iscsi_ready(self, machine_id: str) -> bool:
        """Whether iSCSI volumes can be mounted there: open-iscsi installed, iscsid running, iscsi_tcp loaded."""
        host = self._hosts.get(machine_id)
        if host is None or not host.state.powered or "open-iscsi" not in host.state.packages:
            return False
        unit = host.unit("iscsid")
        return unit is not None and unit.active == "active" and "iscsi_tcp" in host.state.modules


def _addresses(machine: Machine) -> list[str]:
    return [ip for ip in (machine.private_ip, machine.public_ip) if ip]
