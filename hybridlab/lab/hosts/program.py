"""Programs that really run for a lab machine: started here, slowed to the machine's share of a CPU, streams pumped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Sequence
from typing import TypeVar

from hybridlab.lab.hosts.call import CHUNK, Sink, Source

PERIOD_S = 0.08


class Throttle:
    """Lets a process group run only a share of the time, by SIGSTOP and SIGCONT, as a hypervisor's cap would.

    In a thread of its own, so that a busy event loop does not bend the duty cycle.
    """

    def __init__(self, group: int, share: float) -> None:
        self._group = group
        self._share = share
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._cycle, name="hybridlab-throttle", daemon=True)
        self._thread.start()

    def _cycle(self) -> None:
        try:
            while not self._done.wait(PERIOD_S * self._share):
                os.killpg(self._group, signal.SIGSTOP)
                self._done.wait(PERIOD_S * (1 - self._share))
                os.killpg(self._group, signal.SIGCONT)
        except (ProcessLookupError, PermissionError):
            return  # it has ended

    def stop(self) -> None:
        self._done.set()
        self._thread.join()


async def run_program(
    argv: Sequence[str], stdin: Source, stdout: Sink, stderr: Sink, *, share: float = 1.0, cpus: int | None = None
) -> int:
    """Run a program to its end with its streams passed through in pieces; returns its exit status.

    ``share`` below 1 slows it; ``cpus`` confines it to so many CPUs, where the system can.
    """
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
        limit=CHUNK,
    )
    if cpus is not None and hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(ProcessLookupError):
            ours = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(process.pid, ours[:cpus])
    throttle = Throttle(process.pid, share) if share < 1 else None
    feed = asyncio.ensure_future(_feed(stdin, _there(process.stdin)))
    try:
        await asyncio.gather(_pass_on(_there(process.stdout), stdout), _pass_on(_there(process.stderr), stderr))
        return await process.wait()
    finally:
        feed.cancel()
        if throttle is not None:
            throttle.stop()
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


T = TypeVar("T")


def _there(stream: T | None) -> T:
    if stream is None:
        raise RuntimeError("a program was started without pipes")
    return stream


async def _feed(source: Source, writer: asyncio.StreamWriter) -> None:
    try:
        while piece := await source.read(CHUNK):
            writer.write(piece)
            await writer.drain()
    except (ConnectionError, OSError):
        pass  # the program stopped reading, or the client went away: the end of input says so
    finally:
        writer.close()


async def _pass_on(reader: asyncio.StreamReader, sink: Sink) -> None:
    while piece := await reader.read(CHUNK):
        await sink.write(piece)
