"""What a command prints on the Docker host, as an iterator of pieces bounded in memory, with progress in bytes."""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Iterator, Sequence

from hybridlab.errors import CommandFailed, HybridlabError
from hybridlab.models import HostAddress
from hybridlab.ports import Context

PIECES = 64  # of up to 64 KiB between the two streams
EVERY_S = 2.0
DEADLINE_S = 24 * 3600.0
EXIT_CHANGED = 3  # the helper: done, but files changed or vanished while they were read


class Outflow:
    """The output of a command on the Docker host; iterate it once, inside ``with``.

    The SSH stream runs in a thread of its own; its error is raised where the pieces are read. After the last piece:
    ``sent`` bytes, ``sha256`` of all, ``head`` and ``tail`` (the first and last 512 bytes), and ``changed`` where the
    helper said that files changed while it read them.
    """

    def __init__(self, ctx: Context, host: HostAddress, argv: Sequence[str], *, what: str, sudo: bool, total: int = 0):
        self._ctx, self._host, self._argv, self._sudo = ctx, host, list(argv), sudo
        self._what, self._total = what, total
        self._pieces: queue.Queue[bytes | None] = queue.Queue(PIECES)
        self._error: HybridlabError | None = None
        self._stopped = threading.Event()
        self._sha = hashlib.sha256()
        self._told = ctx.clock.now()
        self._thread = threading.Thread(target=self._pump, daemon=True)
        self.sent = 0
        self.head = self.tail = b""
        self.changed: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        return self._sha.hexdigest()

    def _pump(self) -> None:
        hosts, sudo = self._ctx.docker_hosts, self._sudo
        try:
            hosts.stream(self._host, self._argv, stdout=self._put, sudo=sudo, timeout_s=DEADLINE_S)
        except CommandFailed as error:
            if error.exit_status == EXIT_CHANGED:
                self.changed = ((error.stderr.strip().splitlines()[-1:] or ["a file changed while it was read"])[0],)
            else:
                self._error = error
        except HybridlabError as error:
            self._error = error
        self._put(None)

    def _put(self, piece: bytes | None) -> None:
        while not self._stopped.is_set():
            try:
                self._pieces.put(piece, timeout=0.5)
            except queue.Full:
                continue
            return

    def __enter__(self) -> Outflow:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopped.set()
        self._thread.join(timeout=30)

    def __iter__(self) -> Iterator[bytes]:
        while (piece := self._pieces.get()) is not None:
            self._sha.update(piece)
            self.sent += len(piece)
            self.head = self.head if len(self.head) >= 512 else (self.head + piece)[:512]
            self.tail = (self.tail + piece)[-512:]
            self._tell()
            yield piece
        if self._error is not None:
            raise self._error

    def _tell(self) -> None:
        now = self._ctx.clock.now()
        if now - self._told >= EVERY_S:
            self._told = now
            of = f" of at most {self._total / 1e6:,.0f} MB" if self._total else ""
            self._ctx.say(f"{self._what}: {self.sent / 1e6:,.0f} MB{of}")


def framed(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Each piece after its length, then a length of 0: for the helper's ``receive``, which must see the end itself."""
    for piece in pieces:
        yield b"%d\n" % len(piece)
        yield piece
    yield b"0\n"
