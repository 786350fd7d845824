"""The lab's control port: what ``hybridlab lab`` and the lab site ask. Loopback only, and not for browsers."""

from __future__ import annotations

import asyncio
import difflib
import ipaddress
import json
import os
import resource
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from aiohttp import web

from hybridlab.lab.directory import LabDirectory, read_requests, request_filter
from hybridlab.lab.world import World

LOCAL_NAMES = ("127.0.0.1", "localhost", "::1")
MAX_COUNT = 1000


class Controlled(Protocol):
    """What the control port may do with the lab."""

    world: World
    folder: LabDirectory
    started: float
    stopping: asyncio.Event

    @property
    def parts(self) -> Mapping[str, object]: ...
    def move_operator(self, ip: str) -> None: ...


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def control_app(lab: Controlled) -> web.Application:
    """GET /status, /dial, /faults, /log; POST /faults, /stop, /operator. Errors are JSON: {"error": text}."""
    routes = _Routes(lab)
    app = web.Application(middlewares=[_guard])
    app.add_routes(
        [
            web.get("/status", routes.status),
            web.get("/dial", routes.dial),
            web.get("/faults", routes.faults),
            web.post("/faults", routes.ask_fault),
            web.get("/log", routes.log),
            web.post("/stop", routes.stop),
            web.post("/operator", routes.operator),
        ]
    )
    return app


@web.middleware
async def _guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A web page that the user looks at can send requests to loopback too: it can't stop or change the lab."""
    host = urlsplit(f"//{request.headers.get('Host', '')}").hostname
    site = request.headers.get("Sec-Fetch-Site", "none")
    if host not in LOCAL_NAMES or "Origin" in request.headers or site != "none":
        return _error(403, "the control port answers programs on this machine only, no browsers")
    try:
        return await handler(request)
    except web.HTTPException as error:
        return _error(error.status, error.text or error.reason)


def _error(status: int, text: str) -> web.Response:
    return web.json_response({"error": text}, status=status)


class _Routes:
    def __init__(self, lab: Controlled) -> None:
        self._lab = lab
        self._world = lab.world

    async def status(self, _request: web.Request) -> web.Response:
        world, lab = self._world, self._lab
        return web.json_response(
            {
                "pid": os.getpid(),
                "parts": list(lab.parts),
                "counts": await self._counts(),
                "started": lab.started,
                "uptime_s": round(time.time() - lab.started, 1),
                "speed": world.clock.speed,
                "operator_ip": world.operator_ip,
                "faults": [asdict(fault) for fault in world.faults.active],
                "memory_mb": _memory_mb(),
                "endpoints": world.endpoints,
            }
        )

    async def _counts(self) -> dict[str, int]:
        """What the parts hold, as far as they count it: each may have a method ``counts()``."""
        found: dict[str, int] = {}
        if "hosts" in self._lab.parts:
            found["machines"] = len(self._world.machines())
        for part in self._lab.parts.values():
            counts = getattr(part, "counts", None)
            if counts is not None:
                found |= counts()
        return found

    async def dial(self, request: web.Request) -> web.Response:
        """What the operator gets when connecting to a logical address or a machine's name."""
        host = request.query.get("host", "")
        port = _number(request.query.get("port"), "port", 1, 65535)
        if not host:
            raise web.HTTPBadRequest(text="host is missing")
        if "hosts" not in self._lab.parts:
            raise web.HTTPConflict(text="this lab was started without the part hosts, so nothing can be dialled")
        address = host if _is_ip(host) else self._world.resolve(host)
        if address is None:
            return web.json_response({"state": "refused", "port": 0, "why": f"no machine is named {host!r}"})
        state, local = self._world.dial(address, port)
        return web.json_response({"state": state, "port": local})

    async def faults(self, _request: web.Request) -> web.Response:
        faults = self._world.faults
        return web.json_response({"known": faults.known, "active": [asdict(fault) for fault in faults.active]})

    async def ask_fault(self, request: web.Request) -> web.Response:
        body = await _body(request)
        name, match = str(body.get("name", "")), str(body.get("match") or "")
        count = _number(body.get("count", 1), "count", 1, MAX_COUNT)
        try:
            done = self._world.faults.ask(name, count, match)
        except KeyError:
            known = sorted(self._world.faults.known)
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise web.HTTPBadRequest(text=f"unknown fault {name!r}; {hint}known: {', '.join(known)}") from None
        except LookupError as error:
            raise web.HTTPBadRequest(text=f"{name}: {error.args[0]}") from error
        return web.json_response({"name": name, "count": count, "match": match, "done": done})

    async def log(self, request: web.Request) -> web.Response:
        query = request.query
        try:
            since = float(query["since"]) if query.get("since") else None
        except ValueError:
            raise web.HTTPBadRequest(text=f"since={query['since']!r} is not a Unix time in seconds") from None
        mutating = query.get("mutating", "").lower() in ("1", "true", "yes")
        keep = request_filter(since=since, part=query.get("part") or None, mutating=mutating)
        path = self._lab.folder.requests_file
        rows = await asyncio.to_thread(lambda: list(read_requests(path, keep)))
        return web.json_response({"rows": rows})

    async def stop(self, request: web.Request) -> web.Response:
        await _body(request)
        self._lab.stopping.set()
        return web.json_response({"stopping": True})

    async def operator(self, request: web.Request) -> web.Response:
        ip = str((await _body(request)).get("ip", ""))
        if not _is_ip(ip):
            raise web.HTTPBadRequest(text=f"{ip!r} is not an IP address")
        before = self._world.operator_ip
        self._lab.move_operator(ip)
        return web.json_response({"operator_ip": ip, "before": before})


async def _body(request: web.Request) -> dict[str, Any]:
    text = await request.text()
    try:
        found = json.loads(text or "{}")
    except ValueError:
        raise web.HTTPBadRequest(text="the body is not JSON") from None
    if not isinstance(found, dict):
        raise web.HTTPBadRequest(text="the body is not a JSON object")
    return found


def _number(given: Any, name: str, low: int, high: int) -> int:
    try:
        number = int(given)
    except (TypeError, ValueError):
        raise web.HTTPBadRequest(text=f"{name}={given!r} is not a number") from None
    if not low <= number <= high:
        raise web.HTTPBadRequest(text=f"{name}={number} is not between {low} and {high}")
    return number


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _memory_mb() -> float:
    """Resident memory of this process; where the system doesn't say it, the highest so far."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)
    except (OSError, IndexError, ValueError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)
