"""Input and output of a command passed through in pieces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import BinaryIO

import asyncssh

CHUNK = 64 * 1024
GULP = 8 * 1024 * 1024
"""How much is read at once: all there is. asyncssh grants the sender a whole window (2 MiB) after every resumed read,
however little was read, so that reading in small pieces lets a fast sender fill the memory."""
STDERR_KEPT = 64 * 1024
Receive = Callable[[bytes], object]


async def feed(
    process: asyncssh.SSHClientProcess[bytes], first: bytes, source: BinaryIO | Iterable[bytes] | None
) -> None:
    try:
        if first:
            process.stdin.write(first)
        async for piece in _pieces(source):
            process.stdin.write(piece)
            await process.stdin.drain()
        process.stdin.write_eof()
    except (BrokenPipeError, asyncssh.ConnectionLost):
        return  # the command stopped reading: its exit status says why


async def _pieces(source: BinaryIO | Iterable[bytes] | None) -> AsyncIterator[bytes]:
    """Pieces of an input, read in another thread so that a slow source does not hold up the loop."""
    if source is None:
        return
    if hasattr(source, "read"):
        while piece := await asyncio.to_thread(source.read, CHUNK):
            yield piece
        return
    walker = iter(source)
    while (piece := await asyncio.to_thread(next, walker, None)) is not None:
        yield piece


async def drain(reader: asyncssh.SSHReader[bytes], receive: Receive | None) -> None:
    while data := await reader.read(GULP):
        if receive is not None:
            await asyncio.to_thread(_hand_over, data, receive)


def _hand_over(data: bytes, receive: Receive) -> None:
    for start in range(0, len(data), CHUNK):
        receive(data[start : start + CHUNK])


async def keep(reader: asyncssh.SSHReader[bytes], kept: bytearray, receive: Receive | None) -> None:
    while piece := await reader.read(GULP):
        kept += piece
        del kept[:-STDERR_KEPT]
        if receive is not None:
            await asyncio.to_thread(receive, piece)


async def copy_file(source: bytes | Path, remote: asyncssh.SFTPClientFile) -> None:
    if isinstance(source, bytes):
        await remote.write(source)
        return
    with source.open("rb") as file:
        while piece := await asyncio.to_thread(file.read, 1024 * 1024):
            await remote.write(piece)
