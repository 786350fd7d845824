"""The lab's K3s: answers the hosts when K3s starts, stops or is removed on one of them."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any, Literal

from hybridlab.lab.kube.cluster import DATASTORE, CannotStart, Cluster
from hybridlab.lab.kube.node_join import RETRY_S, Server, pods_can_talk, refusal
from hybridlab.lab.world import K3sService, Machine, World

SERVER_START_S = 2.0
JOIN_S = 1.0


class KubePart:
    """Implements ``hybridlab.lab.world.Kube``: at most one server, any number of agents.

    A cluster's data belong to the machine its server runs on: another machine that starts a server starts a new one.
    """

    def __init__(self) -> None:
        self._world: World
        self._cluster: Cluster | None = None
        self._changed = asyncio.Event()  # set, and replaced, whenever a server starts or stops
        self._agents: dict[str, asyncio.Task[None]] = {}
        self._turn = asyncio.Lock()  # starting takes time, and a machine may go away meanwhile
        self._saved: dict[str, Any] = {}

    async def start(self, world: World) -> None:
        """Remember where the API listened; it listens again once the hosts report a running server."""
        self._world = world
        world.kube = self
        self._saved = world.load("kube") or {}

    async def stop(self) -> None:
        """End everything; the clusters' data stay."""
        for machine_id in list(self._agents):
            await self._cancel_agent(machine_id)
        await self._stop_server()

    # -- what the hosts tell ----------------------------------------------------------------------------------------
    async def service_started(self, machine: Machine, service: K3sService) -> None:
        """K3s starts: a server returns once it answers (or has failed, and its journal says why), an agent at once."""
        async with self._turn:
            await self._stopped(machine.id)
            if service.role == "server":
                await self._start_server(machine, service)
                return
            task = asyncio.get_running_loop().create_task(self._run_agent(machine, service), name=f"k3s {machine.name}")
            task.add_done_callback(self._report)
            self._agents[machine.id] = task

    async def service_stopped(self, machine_id: str) -> None:
        async with self._turn:
            await self._stopped(machine_id)

    async def _stopped(self, machine_id: str) -> None:
        await self._cancel_agent(machine_id)
        if self._cluster and self._cluster.machine.id == machine_id:
            await self._stop_server()
        elif self._cluster:
            await self._cluster.controllers.node_lost(machine_id)

    async def uninstalled(self, machine_id: str, role: Literal["server", "agent"]) -> None:
        async with self._turn:
            await self._stopped(machine_id)
            if role == "server":
                shutil.rmtree(self._folder(machine_id), ignore_errors=True)
                datastore = self._world.hosts.folder(machine_id) / DATASTORE
                shutil.rmtree(datastore.parent, ignore_errors=True)

    def traffic_ok(self, source_ip: str, dest_ip: str) -> bool:
        source, dest = self._world.hosts.machine_at(source_ip), self._world.hosts.machine_at(dest_ip)
        if source is None or dest is None:
            return False
        settings = self._cluster.settings if self._cluster else {}
        return pods_can_talk(self._world, source, dest, settings) and pods_can_talk(self._world, dest, source, settings)

    # -- servers ----------------------------------------------------------------------------------------------------
    def _folder(self, machine_id: str) -> Path:
        return self._world.directory / "kube" / machine_id.replace("/", "_")

    async def _start_server(self, machine: Machine, service: K3sService) -> None:
        await self._world.clock.takes(SERVER_START_S)
        if self._cluster:
            other = self._cluster.machine.name
            line = f"starting kubernetes: the lab runs one server, and {other} is it; join this machine as an agent"
            self._journal(machine, "k3s", "fatal", line)
            return
        folder = self._folder(machine.id)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            cluster = Cluster(self._world, machine, service, folder, int(self._saved.get("port") or 0))
        except CannotStart as error:
            self._journal(machine, "k3s", "fatal", str(error))
            return
        self._cluster = cluster
        await cluster.start()
        self._saved = {"port": cluster.port}
        self._world.save("kube", self._saved)
        self._world.endpoints["kube"] = {"port": cluster.port}
        self._journal(machine, "k3s", "info", "k3s is up and running")
        self._signal()

    async def _stop_server(self) -> None:
        cluster, self._cluster = self._cluster, None
        if cluster:
            self._world.endpoints.pop("kube", None)
            self._signal()
            await cluster.stop()

    def _signal(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    # -- agents -----------------------------------------------------------------------------------------------------
    async def _run_agent(self, machine: Machine, service: K3sService) -> None:
        """Try until the server is convinced; begin again when it goes away."""
        while True:
            cluster, changed = self._cluster, self._changed
            server = Server(cluster.machine, cluster.logical_port, cluster.credentials) if cluster else None
            why = refusal(self._world, machine, service.settings, server)
            if why or cluster is None:
                self._journal(machine, "k3s-agent", "error", why)
                await self._world.clock.takes(RETRY_S)
                continue
            await self._world.clock.takes(JOIN_S)
            if cluster is not self._cluster:
                continue
            await cluster.controllers.node_joined(machine, service)
            self._journal(machine, "k3s-agent", "info", "k3s agent is up and running")
            await changed.wait()

    async def _cancel_agent(self, machine_id: str) -> None:
        task = self._agents.pop(machine_id, None)
        if task:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _report(self, task: asyncio.Task[None]) -> None:
        """Log what ended an agent that should have gone on for ever."""
        error = None if task.cancelled() else task.exception()
        if error:
            self._world.log.add("kube", "task-failed", task.get_name(), 500, mutating=False, detail=repr(error))

    def _journal(self, machine: Machine, unit: str, level: str, message: str) -> None:
        text = message.replace("\\", "\\\\").replace('"', '\\"')
        self._world.hosts.journal(machine.id, unit, f'level={level} msg="{text}"')
