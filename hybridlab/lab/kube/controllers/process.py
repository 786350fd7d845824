"""Running one real command for a container: streams pumped in pieces, never whole in memory, killed when cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable

from hybridlab.lab.kube.controllers.commands import Command

Write = Callable[[bytes], Awaitable[None]]

CHUNK = 256 * 1024
_KILL_AFTER_S = 2.0


async def run(command: Command, stdin: AsyncIterator[bytes] | None, stdout: Write, stderr: Write) -> int:
    """Run to the end and return the exit status (128 + signal where one ended it). ``stdin`` None is an empty one."""
    process = await asyncio.create_subprocess_exec(
        *command.argv,
        stdin=asyncio.subprocess.PIPE if stdin is not None else asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=command.directory,
        env=dict(command.environment),
        limit=CHUNK,
        start_new_session=True,
    )
    feeder = asyncio.ensure_future(_feed(process, stdin)) if stdin is not None else None
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        await asyncio.gather(_pump(process.stdout, stdout), _pump(process.stderr, stderr))
        code = await process.wait()
    except BaseException:
        await _end(process)
        raise
    finally:
        if feeder is not None:
            feeder.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await feeder
    return code if code >= 0 else 128 - code


async def _pump(reader: asyncio.StreamReader, write: Write) -> None:
    while chunk := await reader.read(CHUNK):
        await write(chunk)


async def _feed(process: asyncio.subprocess.Process, chunks: AsyncIterator[bytes]) -> None:
    writer = process.stdin
    assert writer is not None
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it stopped reading: its exit status says why
        async for chunk in chunks:
            writer.write(chunk)
            await writer.drain()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        writer.close()
        await writer.wait_closed()


async def _end(process: asyncio.subprocess.Process) -> None:
    """Terminate the process and what it started; kill them when they don't go."""
    if process.returncode is not None:
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), _KILL_AFTER_S)
            return
