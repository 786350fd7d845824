"""The lab's process: builds the world, starts the parts, says where they are, and serves until told to stop."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import importlib
import json
import logging
import os
import secrets
import signal
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from aiohttp import web

from hybridlab.lab.control import control_app
from hybridlab.lab.directory import LabDirectory, write_private
from hybridlab.lab.net import remember_port, remembered_port, serve_on_loopback
from hybridlab.lab.world import Clock, Faults, RequestLog, World

log = logging.getLogger(__name__)

CLASSES: Mapping[str, tuple[str, str]] = {
    "registry": ("hybridlab.lab.registry", "RegistryPart"),
    "s3": ("hybridlab.lab.s3", "S3Part"),
    "kube": ("hybridlab.lab.kube", "KubePart"),  # before the machines, whose K3s tells it when it starts
    "hosts": ("hybridlab.lab.hosts", "HostsPart"),
    "oracle": ("hybridlab.lab.oracle", "OraclePart"),
}
START_DEADLINE_S = 20.0
STOP_DEADLINE_S = 10.0
CATCH_UP_SPEED = 1e6
K3S_DEADLINE_S = 5.0


class Part(Protocol):
    async def start(self, world: World) -> None: ...
    async def stop(self) -> None: ...


class LabServer:
    """One lab. ``started`` is Unix time; ``parts`` those that run, in the order they started."""

    def __init__(self, folder: LabDirectory, *, speed: float) -> None:
        self.folder = folder
        self.started = time.time()
        self.parts: dict[str, Part] = {}
        self.stopping = asyncio.Event()
        self.control = ""
        self.world = World(folder.path, Clock(speed), Faults(), RequestLog(folder.requests_file))
        self._saved: dict[str, Any] = self.world.load("settings") or {}
        self.world.operator_ip = self._saved.get("operator_ip", self.world.operator_ip)

    async def start(self, names: Sequence[str], allowance: str | None, compose: Path | None = None) -> None:
        """Start the parts one after another. When one fails the error passes; ``stop`` stops what was begun."""
        allowance = allowance or self._saved.get("allowance")
        self._remember(allowance=allowance)
        self.world.endpoints["cloudflare"] = {"token_file": str(self._tunnel_token())}
        with self._time_standing_still():
            for name in names:
                begun = time.monotonic()
                part = _build(name, allowance, compose)
                self.parts[name] = part  # before it starts: what it has begun must be stopped too
                await asyncio.wait_for(part.start(self.world), START_DEADLINE_S)
                log.info("%s started in %.2f s", name, time.monotonic() - begun)
            if {"hosts", "kube"} <= set(self.parts):
                await self._k3s_again(self.parts["hosts"])

    @contextlib.contextmanager
    def _time_standing_still(self) -> Iterator[None]:
        """What happens meanwhile takes none of the lab's time: one that was stopped was frozen, nothing boots."""
        clock, speed = self.world.clock, self.world.clock.speed
        clock.speed = CATCH_UP_SPEED
        try:
            yield
        finally:
            clock.speed = speed

    async def _k3s_again(self, hosts: Any) -> None:
        """Wait until the K3s server that ran when the lab stopped answers: its clients must find it from the start."""
        running = (hosts.host(machine.id).k3s for machine in self.world.machines())
        if not any(service and service.role == "server" for service in running):
            return
        end = time.monotonic() + K3S_DEADLINE_S
        while "kube" not in self.world.endpoints and time.monotonic() < end:
            await asyncio.sleep(0.02)
        if "kube" not in self.world.endpoints:
            log.warning("K3s ran when the lab stopped, and doesn't answer now")

    async def stop(self) -> None:
        """Stop the parts in reverse order; one that fails doesn't keep the others."""
        for name, part in reversed(tuple(self.parts.items())):
            try:
                await asyncio.wait_for(part.stop(), STOP_DEADLINE_S)
            except Exception:  # the edge of the process: the other parts must still be stopped
                log.exception("%s did not stop cleanly", name)
        await self.world.cancel_tasks()
        self.world.log.close()

    def announce(self) -> None:
        """Write lab.json: from now on the lab can be found."""
        self.folder.write_status(
            {
                "pid": os.getpid(),
                "started": self.started,
                "speed": self.world.clock.speed,
                "control": self.control,
                "operator_ip": self.world.operator_ip,
                "endpoints": self.world.endpoints,
            }
        )

    def move_operator(self, ip: str) -> None:
        """The person at the keyboard now comes from another address."""
        self.world.operator_ip = ip
        self._remember(operator_ip=ip)
        self.announce()
        log.info("the operator moved to %s", ip)

    def _remember(self, **values: Any) -> None:
        self._saved |= values
        self.world.save("settings", self._saved)

    def _tunnel_token(self) -> Any:
        """A tunnel token as Cloudflare's dashboard gives it out: base64 of account tag, tunnel id, secret."""
        path = self.folder.path / "cloudflare-token"
        if not path.exists():
            token = {
                "a": secrets.token_hex(16),
                "t": str(uuid.uuid4()),
                "s": base64.b64encode(secrets.token_bytes(32)).decode(),
            }
            text = json.dumps(token, separators=(",", ":"))
            write_private(path, base64.b64encode(text.encode()).decode() + "\n")
        return path


def _build(name: str, allowance: str | None, compose: Path | None) -> Part:
    module, cls = CLASSES[name]
    found = getattr(importlib.import_module(module), cls)
    options: dict[str, Any] = {}
    if name == "oracle" and allowance:
        options["allowance"] = allowance
    if name == "hosts" and compose:
        options["compose_file"] = compose
    part: Part = found(**options)
    return part


async def serve(
    folder: LabDirectory, *, speed: float, allowance: str | None, compose: Path | None = None, parts: Sequence[str]
) -> int:
    """Run the lab of this folder, whose lock the caller holds, until it is told to stop. Returns the exit status."""
    folder.status_file.unlink(missing_ok=True)  # of a lab that crashed
    lab = LabServer(folder, speed=speed)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lab.stopping.set)
    runner = web.AppRunner(control_app(lab), access_log=None, shutdown_timeout=1.0)
    try:
        begin = asyncio.ensure_future(lab.start(parts, allowance, compose))
        stop = asyncio.ensure_future(lab.stopping.wait())
        await asyncio.wait((begin, stop), return_when=asyncio.FIRST_COMPLETED)
        if not begin.done():
            begin.cancel()
            await asyncio.gather(begin, return_exceptions=True)
            return 0
        begin.result()
        port = await serve_on_loopback(runner, preferred=remembered_port(lab.world, "control"))
        remember_port(lab.world, "control", port)
        lab.control = f"http://127.0.0.1:{port}"
        lab.announce()
        log.info("the lab is up: %s, parts %s, speed %g", lab.control, ", ".join(lab.parts), speed)
        await stop
    except Exception:  # the edge of the process: whatever it was belongs into the log
        log.exception("the lab could not start")
        return 4
    finally:
        folder.status_file.unlink(missing_ok=True)
        await lab.stop()
        await runner.cleanup()
        log.info("the lab has stopped")
    return 0
