"""What containers printed: a file per container and restart in the CRI's line format, and reading them."""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from hybridlab.lab.kube.controllers.objects import micro_timestamp, seconds_of
from hybridlab.lab.kube.controllers.work import Context


class PodLogs:
    """Log files of pods, under the lab's directory ``pods/<uid>/logs/<container>/<restart>.log``."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def _path(self, uid: str, container: str, restart: int) -> Path:
        return self._context.world.directory / "pods" / uid / "logs" / container / f"{restart}.log"

    def write(self, uid: str, container: str, restart: int, text: str) -> None:
        """Add whole lines of text."""
        with self.sink(uid, container, restart) as sink:
            sink.feed(text.encode() + b"\n")

    def sink(self, uid: str, container: str, restart: int) -> LogSink:
        path = self._path(uid, container, restart)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        old = path.parent / f"{restart - 2}.log"  # as the kubelet: this one and the one before are kept
        old.unlink(missing_ok=True)
        return LogSink(path.open("ab"), self._context)

    def read(
        self,
        uid: str,
        container: str,
        restart: int,
        *,
        tail_lines: int | None = None,
        since: float = 0.0,
        timestamps: bool = False,
        limit_bytes: int | None = None,
    ) -> str:
        """Lines printed since a Unix time, the last ``tail_lines`` of them, at most ``limit_bytes``."""
        lines: Iterator[str] | deque[str] = self._lines(self._path(uid, container, restart), since, timestamps)
        if tail_lines is not None:
            lines = deque(lines, maxlen=max(tail_lines, 0))
        text = "".join(lines)
        return text if limit_bytes is None else text.encode()[:limit_bytes].decode(errors="ignore")

    def _lines(self, path: Path, since: float, timestamps: bool) -> Iterator[str]:
        if not path.exists():
            return
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                stamp, _, rest = line.partition(" ")
                text = rest.split(" ", 2)[2] if rest.count(" ") >= 2 else rest
                if not since or seconds_of(stamp) >= since:
                    yield f"{stamp} {text}" if timestamps else text

    def exists(self, uid: str, container: str, restart: int) -> bool:
        return self._path(uid, container, restart).exists()

    def forget(self, uid: str) -> None:
        shutil.rmtree(self._context.world.directory / "pods" / uid, ignore_errors=True)


class LogSink:
    """Turns chunks into time-stamped lines; a line without its end is kept until the end comes or the sink closes."""

    _LONGEST = 16 * 1024

    def __init__(self, file: BinaryIO, context: Context) -> None:
        self._file = file
        self._context = context
        self._rest = {"stdout": b"", "stderr": b""}

    def feed(self, chunk: bytes, stream: str = "stdout") -> None:
        *lines, rest = (self._rest[stream] + chunk).split(b"\n")
        for line in lines:
            self._line(line, stream)
        while len(rest) > self._LONGEST:
            self._line(rest[: self._LONGEST], stream)
            rest = rest[self._LONGEST :]
        self._rest[stream] = rest
        self._file.flush()

    def _line(self, line: bytes, stream: str) -> None:
        stamp = micro_timestamp(self._context.now())
        self._file.write(f"{stamp} {stream} F ".encode() + line + b"\n")

    def __enter__(self) -> LogSink:
        return self

    def __exit__(self, *error: object) -> None:
        for stream, rest in self._rest.items():
            if rest:
                self._line(rest, stream)
        self._file.close()
