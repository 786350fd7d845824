"""Exec over a websocket: against a small server that behaves as each test says."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from aiohttp import WSMsgType, web

from hybridlab.drivers import _kube_exec
from hybridlab.drivers._kube_http import refusal
from hybridlab.errors import DeadlineExceeded, NotFound, Refused, Unreachable
from hybridlab.models import ExecResult

Behave = Callable[[web.WebSocketResponse], Awaitable[None]]
SUCCESS = b"\x03" + json.dumps({"status": "Success"}).encode()


def failure(status: int) -> bytes:
    causes = [{"reason": "ExitCode", "message": str(status)}]
    return (
        b"\x03" + json.dumps({"status": "Failure", "reason": "NonZeroExitCode", "details": {"causes": causes}}).encode()
    )


class Server:
    """Serves one websocket behaviour on a loopback port, in a thread of its own."""

    def __init__(self) -> None:
        self.behave: Behave | None = None
        self.protocols: tuple[str, ...] = ("v5.channel.k8s.io", "v4.channel.k8s.io")
        self.query: list[tuple[str, str]] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.port: int = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(5)

    async def _start(self) -> int:
        application = web.Application()
        application.router.add_get("/exec", self._handle)
        self._runner = web.AppRunner(application, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port: int = self._runner.addresses[0][1]
        return port

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.query = list(request.query.items())
        if self.behave is None:
            return web.json_response({"message": 'pods "x" not found', "reason": "NotFound"}, status=404)
        socket = web.WebSocketResponse(protocols=self.protocols, max_msg_size=0)
        await socket.prepare(request)
        await self.behave(socket)
        await socket.close()
        return socket

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def exec(self, *, timeout_s: float = 10, **options: Any) -> ExecResult:
        target = _kube_exec.Target(f"ws://127.0.0.1:{self.port}/exec?a=b", {"X": "y"}, {}, "pod a/b")
        options = {"stdin": None, "stdout": None, **options}
        return _kube_exec.run(target, timeout_s=timeout_s, translate=lambda s, b: refusal(s, b, "pod a/b"), **options)


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


@pytest.fixture
def server(running: Server) -> Server:
    running.behave, running.protocols = None, ("v5.channel.k8s.io", "v4.channel.k8s.io")
    return running


def says(*messages: bytes) -> Behave:
    async def behave(socket: web.WebSocketResponse) -> None:
        for message in messages:
            await socket.send_bytes(message)

    return behave


async def until_closed(socket: web.WebSocketResponse) -> bytes:
    """All of stdin, until its end is told (v5)."""
    had = bytearray()
    async for message in socket:
        if message.type == WSMsgType.BINARY and message.data[:1] == b"\x00":
            had += message.data[1:]
        elif message.type == WSMsgType.BINARY and message.data == b"\xff\x00":
            break
    return bytes(had)


def test_output_and_status(server: Server) -> None:
    server.behave = says(b"\x01a\xff\x00", b"\x02oops", b"\x01b", b"\x01", failure(3))
    assert server.exec() == ExecResult(3, b"a\xff\x00b", "oops")


def test_output_goes_to_the_function_given(server: Server) -> None:
    server.behave = says(b"\x01a", b"\x01b", SUCCESS)
    pieces: list[bytes] = []
    assert server.exec(stdout=pieces.append) == ExecResult(0, b"", "")
    assert b"".join(pieces) == b"ab"


def test_an_end_without_a_status_is_no_success(server: Server) -> None:
    server.behave = says(b"\x01half of the out")
    with pytest.raises(Unreachable, match="without an exit status"):
        server.exec()


def test_a_command_that_could_not_start(server: Server) -> None:
    status = {
        "status": "Failure",
        "reason": "InternalError",
        "code": 500,
        "message": "executable file not found in $PATH",
    }
    server.behave = says(b"\x03" + json.dumps(status).encode())
    with pytest.raises(Refused, match="executable file not found"):
        server.exec()


def test_a_pod_that_is_not_there(server: Server) -> None:
    with pytest.raises(NotFound, match='pods "x" not found'):
        server.exec()


def test_nobody_listens() -> None:
    target = _kube_exec.Target("ws://127.0.0.1:9/exec", {}, {}, "pod a/b")
    with pytest.raises(Unreachable):
        _kube_exec.run(target, stdin=None, stdout=None, timeout_s=2, translate=lambda s, b: refusal(s, b, ""))


def test_the_connection_is_cut(server: Server) -> None:
    async def behave(socket: web.WebSocketResponse) -> None:
        await socket.send_bytes(b"\x01x")
        transport = socket._req.transport if socket._req else None
        assert transport
        transport.abort()

    server.behave = behave
    with pytest.raises(Unreachable):
        server.exec()


def test_the_deadline_holds(server: Server) -> None:
    release = asyncio.Event()

    async def behave(socket: web.WebSocketResponse) -> None:
        await asyncio.wait_for(release.wait(), 5)

    server.behave = behave
    with pytest.raises(DeadlineExceeded, match=r"within 0\.3 s"):
        server.exec(timeout_s=0.3)
    server._loop.call_soon_threadsafe(release.set)


def test_stdin_is_binary_and_its_end_is_told(server: Server) -> None:
    data = bytes(range(256)) * 1024
    had: list[bytes] = []

    async def behave(socket: web.WebSocketResponse) -> None:
        had.append(await until_closed(socket))
        await socket.send_bytes(SUCCESS)

    server.behave = behave
    assert server.exec(stdin=iter([data, b"", data])).exit_status == 0
    assert had == [data * 2]


def test_stdin_ends_by_itself_where_the_server_knows_no_v5(server: Server) -> None:
    async def behave(socket: web.WebSocketResponse) -> None:
        message = await socket.receive()
        await socket.send_bytes(b"\x01" + message.data[1:])
        await socket.send_bytes(SUCCESS)
        assert (await socket.receive()).type in (WSMsgType.CLOSE, WSMsgType.CLOSED, WSMsgType.CLOSING)

    server.behave, server.protocols = behave, ("v4.channel.k8s.io",)
    assert server.exec(stdin=iter([b"tar"])).stdout == b"tar"


def test_both_directions_at_once_never_wait_for_each_other(server: Server) -> None:
    """The server writes all before it reads anything; both amounts are far beyond what sockets hold."""
    size = 24 * 1024 * 1024

    async def behave(socket: web.WebSocketResponse) -> None:
        for _ in range(size // 65536):
            await socket.send_bytes(b"\x01" + bytes(65536))
            await socket.ping(b"still there?")
        assert len(await until_closed(socket)) == size
        await socket.send_bytes(SUCCESS)

    server.behave = behave
    had = 0

    def count(piece: bytes) -> None:
        nonlocal had
        had += len(piece)

    pieces = (bytes(1024 * 1024) for _ in range(size // (1024 * 1024)))
    assert server.exec(stdin=pieces, stdout=count, timeout_s=30).exit_status == 0
    assert had == size


def test_a_command_may_end_without_reading_its_input(server: Server) -> None:
    server.behave = says(failure(1))
    endless = (bytes(65536) for _ in iter(int, 1))
    assert server.exec(stdin=endless).exit_status == 1


def test_too_much_output_for_memory_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_kube_exec, "MAX_CAPTURE", 1000)
    server.behave = says(*[b"\x01" + bytes(600)] * 3, SUCCESS)
    with pytest.raises(Refused, match="stdout function"):
        server.exec()


def test_query() -> None:
    assert _kube_exec.query(["sh", "-c", "a b"], "web", stdin=True) == [
        ("command", "sh"),
        ("command", "-c"),
        ("command", "a b"),
        ("container", "web"),
        ("stdin", "true"),
        ("stdout", "true"),
        ("stderr", "true"),
        ("tty", "false"),
    ]


def test_a_process_with_more_than_a_thousand_open_files(server: Server) -> None:
    server.behave = says(b"\x01yes", SUCCESS)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 1500
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"this user may open {hard} files only")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted) if soft != resource.RLIM_INFINITY else soft, hard))
    held: list[int] = []
    try:
        while not held or held[-1] < 1100:
            held.append(os.open(os.devnull, os.O_RDONLY))
        assert server.exec().stdout == b"yes"
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
