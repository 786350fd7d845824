"""Listening on loopback. A part keeps its port over restarts of the lab where it can, so that what has the address
written down (a backup location, a kubeconfig) still finds it."""

from __future__ import annotations

from aiohttp import web

from hybridlab.lab.world import World

LOOPBACK = "127.0.0.1"


async def serve_on_loopback(runner: web.AppRunner | web.ServerRunner, *, preferred: int | None) -> int:
    """Serve on the preferred port, or where it is taken (or None) on any; returns the port. Sets the runner up."""
    await runner.setup()
    for port in (preferred, 0) if preferred else (0,):
        site = web.TCPSite(runner, LOOPBACK, port)
        try:
            await site.start()
        except OSError:
            if not port:
                raise
            continue
        bound = runner.addresses[-1]
        return int(bound[1])
    raise RuntimeError("unreachable: the last port asked for is 0")


def remembered_port(world: World, name: str) -> int | None:
    """The port this part had when the lab last ran."""
    saved = world.load("ports") or {}
    port = saved.get(name)
    return int(port) if port else None


def remember_port(world: World, name: str, port: int) -> None:
    saved = world.load("ports") or {}
    if saved.get(name) != port:
        world.save("ports", {**saved, name: port})
