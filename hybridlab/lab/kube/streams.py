"""Logs and exec: what a kubelet would answer, over HTTP and websockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from aiohttp import WSMsgType, web

from hybridlab.lab.kube.errors import ApiError, bad_request
from hybridlab.lab.kube.store import Obj, Store
from hybridlab.lab.kube.wire import Target, flag, number

Write = Callable[[bytes], Awaitable[None]]
FOLLOW_EVERY_S = 0.2
STDIN, STDOUT, STDERR, ERROR, RESIZE, CLOSE = 0, 1, 2, 3, 4, 255
PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io")


class Runtime(Protocol):
    """What runs the pods."""

    def logs(
        self,
        namespace: str,
        pod: str,
        container: str | None = None,
        *,
        previous: bool = False,
        tail_lines: int | None = None,
        since_seconds: float | None = None,
        timestamps: bool = False,
        limit_bytes: int | None = None,
    ) -> str: ...

    async def exec(
        self,
        namespace: str,
        pod: str,
        container: str | None,
        argv: Sequence[str],
        stdin: AsyncIterator[bytes] | None,
        stdout: Write,
        stderr: Write,
    ) -> int: ...


class Streams:
    def __init__(self, store: Store, runtime: Runtime) -> None:
        self._store = store
        self._runtime = runtime

    # -- logs -------------------------------------------------------------------------------------------------------
    async def logs(self, request: web.Request, target: Target) -> web.StreamResponse:
        query = request.query
        seconds = number(query, "sinceSeconds")

        def read(tail: int | None, limit: int | None) -> str:
            return self._runtime.logs(
                target.namespace or "",
                target.name or "",
                query.get("container") or None,
                previous=flag(query, "previous"),
                tail_lines=tail,
                since_seconds=seconds,
                timestamps=flag(query, "timestamps"),
                limit_bytes=limit,
            )

        text = read(number(query, "tailLines"), number(query, "limitBytes"))
        if not flag(query, "follow"):
            return web.Response(text=text, content_type="text/plain")
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):  # the reader went away
            await response.write(text.encode())
            await self._follow(response, target, query.get("container"), lambda: read(None, None))
            await response.write_eof()
        return response

    async def _follow(
        self, response: web.StreamResponse, target: Target, container: str | None, read: Callable[[], str]
    ) -> None:
        """Send what a container prints from now on, until it ends."""
        sent = len(read())
        while True:
            running = self._is_running(target, container)
            try:
                text = read()
            except ApiError:
                return  # the pod is gone
            if len(text) > sent:
                await response.write(text[sent:].encode())
            sent = len(text)
            if not running:
                return
            await asyncio.sleep(FOLLOW_EVERY_S)

    def _is_running(self, target: Target, container: str | None) -> bool:
        pod = self._store.get("pods", target.name or "", target.namespace)
        rows = ((pod or {}).get("status") or {}).get("containerStatuses") or ()
        return any("running" in row["state"] for row in rows if not container or row["name"] == container)

    # -- exec -------------------------------------------------------------------------------------------------------
    async def exec(self, request: web.Request, target: Target) -> web.StreamResponse:
        query = request.query
        self._store.must_get("pods", target.name or "", target.namespace)
        argv = query.getall("command", [])
        if not argv:
            raise bad_request("you must specify at least one command for the container")
        if request.headers.get("Upgrade", "").lower() != "websocket":
            raise bad_request("Upgrade request required")
        socket = web.WebSocketResponse(protocols=PROTOCOLS, max_msg_size=0, heartbeat=None)
        if not socket.can_prepare(request):
            raise bad_request("unable to upgrade: unable to negotiate protocol")
        await socket.prepare(request)
        incoming: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=64)
        reader = asyncio.create_task(_read(socket, incoming))
        runner = asyncio.create_task(self._run(socket, target, query.get("container"), argv, query, incoming))
        try:
            await asyncio.wait({reader, runner}, return_when=asyncio.FIRST_COMPLETED)
            if not runner.done() and socket.closed:
                runner.cancel()  # the client hung up
            with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                await runner
        finally:
            reader.cancel()
            runner.cancel()
            with contextlib.suppress(ConnectionError):
                await socket.close()
        return socket

    async def _run(
        self,
        socket: web.WebSocketResponse,
        target: Target,
        container: str | None,
        argv: Sequence[str],
        query: Mapping[str, str],
        incoming: asyncio.Queue[bytes | None],
    ) -> None:
        async def out(chunk: bytes) -> None:
            await socket.send_bytes(bytes([STDOUT]) + chunk)

        async def err(chunk: bytes) -> None:
            await socket.send_bytes(bytes([STDERR]) + chunk)

        async def chunks() -> AsyncIterator[bytes]:
            while (chunk := await incoming.get()) is not None:
                yield chunk

        stdin = chunks() if flag(query, "stdin") else None
        error_to = out if flag(query, "tty") else err
        try:
            code = await self._runtime.exec(
                target.namespace or "", target.name or "", container, argv, stdin, out, error_to
            )
            status = _exit_status(code)
        except ApiError as refusal:
            status = refusal.body()
        await socket.send_bytes(bytes([ERROR]) + json.dumps(status).encode())


async def _read(socket: web.WebSocketResponse, incoming: asyncio.Queue[bytes | None]) -> None:
    """Move stdin from the socket into a queue; None is its end."""
    async for message in socket:
        if message.type is not WSMsgType.BINARY or not message.data:
            continue
        channel, chunk = message.data[0], bytes(message.data[1:])
        if channel == STDIN and chunk:
            await incoming.put(chunk)
        elif channel == CLOSE and chunk[:1] == bytes([STDIN]):
            await incoming.put(None)
    await incoming.put(None)


def _exit_status(code: int) -> Obj:
    if code == 0:
        return {"metadata": {}, "status": "Success"}
    return {
        "metadata": {},
        "status": "Failure",
        "message": f"command terminated with non-zero exit code: exit status {code}",
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
    }
