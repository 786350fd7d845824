"""Running a command in a pod over one websocket, in constant memory and without dead ends.

The channel protocol: the first byte of a message names the stream (0 stdin, 1 stdout, 2 stderr, 3 the outcome as a
Status object); ``v5.channel.k8s.io`` adds 255, which closes the stream that its second byte names
(https://kubernetes.io/blog/2024/08/20/websockets-transition/). One thread does both directions: what can be read is
read first, so a command that writes while it is fed never blocks both sides.
"""

from __future__ import annotations

import json
import selectors
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hybridlab.errors import DeadlineExceeded, DriverError, Refused, Unreachable
from hybridlab.models import ExecResult

V5 = "v5.channel.k8s.io"
PROTOCOLS = (V5, "v4.channel.k8s.io")
CHUNK = 64 * 1024
LAST_WORDS_S = 1.0  # servers close the connection at once after the outcome
MAX_CAPTURE = 16 * 1024 * 1024
_STDIN, _STDOUT, _STDERR, _OUTCOME, _CLOSE = 0, 1, 2, 3, 255


@dataclass(frozen=True)
class Target:
    """Where to connect: a wss:// or ws:// address, headers, and TLS options as websocket-client takes them."""

    url: str
    headers: Mapping[str, str]
    tls: Mapping[str, Any]
    where: str  # for messages: namespace/pod


def run(
    target: Target,
    *,
    stdin: Iterator[bytes] | None,
    stdout: Callable[[bytes], None] | None,
    timeout_s: float,
    translate: Callable[[int, bytes], DriverError],
) -> ExecResult:
    """Run to the end; ``translate`` makes an error of a refused handshake's status and body.

    Raises Unreachable when the connection ends without the command's exit status, DeadlineExceeded, Refused when the
    command could not be started, and what ``translate`` returns.
    """
    import websocket

    socket: Any = websocket.WebSocket(sslopt=dict(target.tls), skip_utf8_validation=True)
    socket.settimeout(min(10.0, timeout_s))
    try:
        socket.connect(
            target.url, header=[f"{k}: {v}" for k, v in target.headers.items()], subprotocols=list(PROTOCOLS)
        )
    except websocket.WebSocketBadStatusException as error:
        raise translate(int(error.status_code), error.resp_body or b"") from error
    except (websocket.WebSocketException, OSError) as error:
        raise Unreachable("no connection for exec", where=target.where, why=str(error)) from error
    try:
        return _Session(socket, target.where, stdin, stdout, time.monotonic() + timeout_s, timeout_s).converse()
    except (websocket.WebSocketException, OSError) as error:
        raise Unreachable(
            "the connection broke during exec",
            where=target.where,
            why=str(error) or type(error).__name__,
            next_move="look at the pod before running the command again",
        ) from error
    finally:
        socket.shutdown()


def _ready(sock: Any, timeout_s: float, *, sending: bool = False) -> tuple[bool, bool]:
    """Whether the socket can be read and, if wanted, written. Not select(), which ends at descriptor 1023: a notebook
    server or a long batch has more."""
    with selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_READ | (selectors.EVENT_WRITE if sending else 0))
        events = sum(mask for _, mask in selector.select(timeout_s))
    return bool(events & selectors.EVENT_READ), bool(events & selectors.EVENT_WRITE)


class _Session:
    """One conversation: what is still to be sent, what came, and whether the outcome is known."""

    def __init__(
        self,
        socket: Any,
        where: str,
        stdin: Iterator[bytes] | None,
        stdout: Callable[[bytes], None] | None,
        end: float,
        timeout_s: float,
    ) -> None:
        self._ws = socket
        self._where = where
        self._stdin = stdin
        self._sink = stdout
        self._end = end
        self._timeout_s = timeout_s
        self._v5 = socket.subprotocol == V5
        self._outgoing: deque[memoryview] = deque()
        self._kept = {_STDOUT: bytearray(), _STDERR: bytearray()}
        self._outcome = bytearray()
        self._channel = -1
        self._open = True

    def converse(self) -> ExecResult:
        while self._open:
            readable, writable = self._wait()
            if readable:
                self._receive()
            elif writable:
                self._send()
        return self._result()

    def _wait(self) -> tuple[bool, bool]:
        left = self._end - time.monotonic()
        if left <= 0 and not self._outcome:
            hint = "" if self._v5 else "; this server cannot close stdin (no v5.channel.k8s.io): end the stream itself"
            raise DeadlineExceeded(
                f"the command did not end within {self._timeout_s:g} s", where=self._where, why=f"still running{hint}"
            )
        sock = self._ws.sock
        if isinstance(sock, ssl.SSLSocket) and sock.pending():
            return True, False  # decrypted already: select would not see it
        if self._outcome:  # the command has ended: only what is on its way already counts now
            self._open, _ = _ready(sock, max(0.0, min(left, LAST_WORDS_S)))
            return self._open, False
        return _ready(sock, min(left, 5.0), sending=bool(self._outgoing) or self._stdin is not None)

    # -- receiving -------------------------------------------------------------------------------------------------
    def _receive(self) -> None:
        import websocket

        self._ws.settimeout(max(0.1, self._end - time.monotonic()))
        frame = self._ws.recv_frame()
        opcode, data = frame.opcode, frame.data
        if opcode == websocket.ABNF.OPCODE_CLOSE:
            self._open = False
        elif opcode == websocket.ABNF.OPCODE_PING:
            self._queue(data, websocket.ABNF.OPCODE_PONG)
        elif opcode == websocket.ABNF.OPCODE_CONT:
            self._take(data)
        elif opcode in (websocket.ABNF.OPCODE_BINARY, websocket.ABNF.OPCODE_TEXT) and data:
            self._channel = data[0]
            self._take(data[1:])

    def _take(self, data: bytes) -> None:
        if self._channel == _OUTCOME:
            self._outcome += data
        elif self._channel == _STDOUT and self._sink is not None:
            if data:
                self._sink(data)
        elif self._channel in self._kept:
            kept = self._kept[self._channel]
            kept += data
            if len(kept) > MAX_CAPTURE:
                if self._channel == _STDOUT:
                    raise Refused(
                        f"the command wrote more than {MAX_CAPTURE >> 20} MiB",
                        where=self._where,
                        next_move="pass a stdout function, which gets the output in pieces",
                    )
                del kept[: len(kept) - MAX_CAPTURE // 2]

    # -- sending ---------------------------------------------------------------------------------------------------
    def _queue(self, payload: bytes, opcode: int) -> None:
        import websocket

        self._outgoing.append(memoryview(websocket.ABNF.create_frame(payload, opcode).format()))

    def _send(self) -> None:
        if not self._outgoing:
            self._next_input()
        if not self._outgoing:
            return
        view = self._outgoing[0]
        self._ws.sock.settimeout(0)
        try:
            sent = self._ws.sock.send(view)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError):
            # TLS must be given the very same bytes again, and select says writable at once: don't spin
            _ready(self._ws.sock, 0.005)
            return
        except (BrokenPipeError, ConnectionResetError):
            # a command may end without reading its input; its outcome may still be waiting to be read
            self._outgoing.clear()
            self._stdin = None
            return
        if sent == len(view):
            self._outgoing.popleft()
        else:
            self._outgoing[0] = view[sent:]

    def _next_input(self) -> None:
        import websocket

        if self._stdin is None:
            return
        piece = next(self._stdin, None)
        if piece is None:
            self._stdin = None
            if self._v5:
                self._queue(bytes([_CLOSE, _STDIN]), websocket.ABNF.OPCODE_BINARY)
            return
        for start in range(0, len(piece), CHUNK):
            self._queue(bytes([_STDIN]) + piece[start : start + CHUNK], websocket.ABNF.OPCODE_BINARY)

    # -- the outcome -----------------------------------------------------------------------------------------------
    def _result(self) -> ExecResult:
        if not self._outcome:
            raise Unreachable(
                "exec ended without an exit status",
                where=self._where,
                why="the connection was closed before the outcome came (a dead kubelet answers so)",
                next_move="look at the pod and its node before running the command again",
            )
        stdout = bytes(self._kept[_STDOUT])
        stderr = self._kept[_STDERR].decode(errors="replace")
        return ExecResult(exit_status(bytes(self._outcome), self._where), stdout, stderr)


def exit_status(outcome: bytes, where: str) -> int:
    """The command's own exit status from the Status object on the outcome channel.

    Raises Refused when it says that the command was never started.
    """
    try:
        status = json.loads(outcome)
    except ValueError as error:
        raise Refused("exec ended with an outcome nobody can read", where=where, why=repr(outcome[:200])) from error
    if status.get("status") == "Success":
        return 0
    for cause in (status.get("details") or {}).get("causes") or ():
        if cause.get("reason") == "ExitCode":
            return int(cause["message"])
    raise Refused(
        "the command could not be run",
        status=int(status.get("code") or 0),
        code=str(status.get("reason", "")),
        where=where,
        why=str(status.get("message", "")),
    )


def query(argv: Sequence[str], container: str | None, *, stdin: bool) -> list[tuple[str, str]]:
    """The query of an exec request; parameters named container and command as the API wants them."""
    pairs = [("command", word) for word in argv]
    if container:
        pairs.append(("container", container))
    return [*pairs, ("stdin", str(stdin).lower()), ("stdout", "true"), ("stderr", "true"), ("tty", "false")]
