"""What a run does in its kernels before the first cell: imports nobody waits for, and output in pieces."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

PIECE = 1_000_000
"""Characters that a kernel sends as one message. It would send all that was printed in a fifth of a second as one, and
whoever receives that holds it several times over."""


def prepare() -> None:
    """Called by the kernel as it boots (``IPKernelApp.exec_lines``)."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "_flush_buffers"):  # ipykernel's, of the versions that have it; without it nothing is lost
            send_in_pieces(stream)
    __import__("hybridlab.cluster")


def send_in_pieces(stream: Any, piece: int = PIECE) -> None:
    """Let a kernel's stream send what was printed in messages of at most so many characters, in their order.

    Not by its ``write``: IPython puts that back after every cell.
    """
    flush_buffers = stream._flush_buffers

    def pieces() -> Iterator[tuple[Any, str]]:
        for parent, text in flush_buffers():
            for start in range(0, len(text), piece):
                yield parent, text[start : start + piece]

    stream._flush_buffers = pieces
