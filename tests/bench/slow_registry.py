"""The lab's registry behind a network that takes its time; run as a program it prints its address.

    python tests/bench/slow_registry.py FOLDER SECONDS

Every request waits SECONDS before it is passed on. A process of its own, so that serving costs the client nothing.
It ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from hybridlab.lab.registry import RegistryPart  # noqa: E402 - found by the line above
from hybridlab.lab.world import Clock, Faults, RequestLog, World  # noqa: E402

HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "content-encoding"}


@contextmanager
def slow_registry(folder: Path, latency_s: float) -> Iterator[str]:
    """Base URL of a slow registry in another process, for as long as the block runs."""
    words = [sys.executable, str(Path(__file__).resolve()), str(folder), str(latency_s)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            base = server.stdout.readline().strip()
            if not base:
                raise SystemExit("the slow registry did not start")
            yield base
        finally:
            server.communicate(timeout=30)  # closes its standard input, which ends it


async def serve(folder: Path, latency_s: float) -> None:
    world = World(folder, Clock(1), Faults(), RequestLog(folder / "requests.jsonl"))
    part = RegistryPart(pull_limit=1_000_000)
    await part.start(world)
    behind = world.endpoints["registry"]["endpoint"]
    async with aiohttp.ClientSession(auto_decompress=False, connector=aiohttp.TCPConnector(limit=0)) as session:

        async def handle(request: web.BaseRequest) -> web.Response:
            await asyncio.sleep(latency_s)
            headers = CIMultiDict((k, v) for k, v in request.headers.items() if k.lower() not in HOP)
            address = URL(f"{behind}{request.path_qs}", encoded=True)
            async with session.request(request.method, address, headers=headers, allow_redirects=False) as answer:
                found = {name: value for name, value in answer.headers.items() if name.lower() not in HOP}
                if "WWW-Authenticate" in found:  # tokens come the same slow way
                    found["WWW-Authenticate"] = found["WWW-Authenticate"].replace(behind, base)
                return web.Response(status=answer.status, headers=found, body=await answer.read())

        runner = web.ServerRunner(web.Server(handle, access_log=None), shutdown_timeout=1.0)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        base = f"http://127.0.0.1:{runner.addresses[0][1]}"
        print(base, flush=True)
        await asyncio.to_thread(sys.stdin.read)
        await runner.cleanup()
    await part.stop()
    world.log.close()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), float(sys.argv[2])))
