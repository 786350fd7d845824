"""Commands in pods that the lab answers from what it knows: a database that loads a dump, a probe of a Service.

A probe is answered by the Service's ports and ready endpoints, never by a socket: containers are not really run.
"""

from __future__ import annotations

import json
import posixpath
import urllib.parse
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from hybridlab.lab import databases
from hybridlab.lab.kube.controllers.commands import Mount
from hybridlab.lab.kube.controllers.images import normalised
from hybridlab.lab.kube.controllers.objects import ENDPOINTS, SERVICE, Obj, namespace_of, spec_of
from hybridlab.lab.kube.controllers.process import Write
from hybridlab.lab.kube.controllers.work import Context

LOADED = "lab-loaded.sql"
HELPER = "node_helper.py"
QUIT = b"\n\\q\n"  # what ends a client's input where the connection can't
CANNOT_RUN = 127
FAULT = "unhealthy"
MOST = 64 * 1024 * 1024
DISK_NOTE = "lab: answered from the machine's disk"
NOTE = "lab: answered from the Service and its endpoints"


class StandIns:
    """Answers commands in pods; ``answer`` gives None for those that are really run, or refused, elsewhere."""

    def __init__(self, context: Context) -> None:
        self._context = context
        text = 'a Service answers a health check 503; matches "NAMESPACE/SERVICE:PORT/PATH"'
        context.world.faults.register(FAULT, text)

    async def answer(
        self,
        pod: Obj,
        image: str,
        argv: Sequence[str],
        mounts: Sequence[Mount],
        stdin: AsyncIterator[bytes] | None,
        stdout: Write,
        stderr: Write,
    ) -> int | None:
        kind = databases.kind_of(normalised(image))
        if list(argv[:2]) == ["sh", "-c"] and kind is not None:
            return await self._load(kind, argv, mounts, stdin, stderr)
        if len(argv) > 3 and argv[0].endswith("python3") and posixpath.basename(argv[1]) == HELPER:
            if argv[2] == "fetch":
                await stdout(json.dumps(self._fetch(pod, argv[3])).encode() + b"\n")
                return 0
            if argv[2] == "probe":
                rows = [self._probe(pod, target) for target in argv[3:] if not target.startswith("-")]
                await stdout(json.dumps(rows).encode() + b"\n")
                return 0
            if argv[2] == "room":
                await stdout(json.dumps(self._room(pod, argv[3], mounts)).encode() + b"\n")
                return 0
        return None

    # -- disks -------------------------------------------------------------------------------------------------------
    def _room(self, pod: Obj, path: str, mounts: Sequence[Mount]) -> dict[str, Any]:
        """What the machine's disk has free, not the one that the lab is on; ``held`` is what really lies there."""
        hosts = self._context.world.hosts
        machine = hosts.machine_at(str(pod.get("status", {}).get("hostIP", "")))
        size, used = hosts.disk(machine.id) if machine else (0, 0)
        folder = next((m.real for m in mounts if m.path == path), None)
        files = [p.lstat() for p in folder.rglob("*") if p.is_file() and not p.is_symlink()] if folder else []
        held = sum(min(info.st_size, info.st_blocks * 512) for info in files)
        return {"device": 1, "total": size, "free": max(0, size - used), "held": held, "note": DISK_NOTE}

    # -- databases ---------------------------------------------------------------------------------------------------
    async def _load(
        self,
        kind: databases.Kind,
        argv: Sequence[str],
        mounts: Sequence[Mount],
        stdin: AsyncIterator[bytes] | None,
        stderr: Write,
    ) -> int:
        """Take a dump as a database would, and leave it in the data folder, where it can be looked at."""
        try:
            program, _ = databases.program(argv, kind)
        except databases.NotKnown as error:
            await stderr(f"{error}\n".encode())
            return CANNOT_RUN
        folder = next((m.real for m in mounts if kind.folder.startswith(m.path.rstrip("/"))), None)
        if program != kind.load or folder is None:
            await stderr(f"lab: {program} is not run here: only loading a dump is\n".encode())
            return CANNOT_RUN
        text = b""
        if stdin is not None:
            async for piece in stdin:
                text += piece
                if text.endswith(QUIT) or len(text) > MOST:
                    break
        problem = databases.check_dump(kind, text)
        if problem:
            await stderr(f"{problem}\n".encode())
            return 1
        (folder / LOADED).write_bytes(text.removesuffix(QUIT))
        return 0

    # -- Services ----------------------------------------------------------------------------------------------------
    def _fetch(self, pod: Obj, url: str) -> dict[str, Any]:
        parts = urllib.parse.urlsplit(url)
        row: dict[str, Any] = {"url": url, "status": 0, "ms": 1.0, "note": NOTE}
        state, where = self._reach(pod, parts.hostname or "", parts.port or 80, "TCP")
        if state != "open":
            return {**row, "error": state}
        sick = self._context.world.faults.fires(FAULT, f"{where}{parts.path or '/'}")
        return {**row, "status": 503 if sick else 200}

    def _probe(self, pod: Obj, target: str) -> dict[str, Any]:
        address, _, kind = target.rpartition("/")
        host, _, port = address.rpartition(":")
        state, where = self._reach(pod, host, int(port), kind.upper())
        if state == "open" and self._context.world.faults.fires(FAULT, where):
            state = "Connection refused"
        row = {"target": target, "size": 0, "ms": 1.0, "note": NOTE}
        return {**row, "state": "open"} if state == "open" else {**row, "state": "refused", "error": state}

    def _reach(self, pod: Obj, host: str, port: int, protocol: str) -> tuple[str, str]:
        """``open``, or why not, as a program in the pod would be told; and NAMESPACE/SERVICE:PORT."""
        name, _, rest = host.partition(".")
        namespace = rest.split(".")[0] or namespace_of(pod)
        where = f"{namespace}/{name}:{port}"
        service = self._context.get(SERVICE, name, namespace)
        if service is None:
            return "Name or service not known", where
        ports: list[Mapping[str, Any]] = spec_of(service).get("ports") or []
        headless = spec_of(service).get("clusterIP") == "None"
        wanted = next((p for p in ports if p["port"] == port and p.get("protocol", "TCP") == protocol), None)
        if wanted is None:
            return "Connection refused", where
        endpoints = self._context.get(ENDPOINTS, name, namespace) or {}
        ready = any(subset.get("addresses") for subset in endpoints.get("subsets") or [])
        if not ready:
            return "Name or service not known" if headless else "Connection refused", where
        return "open", where
