"""Disk space held back for the last words of a run whose disk is full."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

NOTEBOOK, RECORD = "notebook", "record"
SIZES = {NOTEBOOK: 2_000_000, RECORD: 200_000}
"""Bytes held for the notebook's last save, and for the run's own record and report."""


class Spare:
    """Files without a name, so that the system itself takes them back when the process is killed."""

    def __init__(self) -> None:
        self._held: dict[str, IO[bytes]] = {}

    def hold(self, folder: Path, sizes: Mapping[str, int] = SIZES) -> None:
        """Take the space. Raises OSError where there is no room for it."""
        for name, size in sizes.items():
            file = self._held[name] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - held until it is freed
            file.write(bytes(size))
            file.flush()

    def free(self, *names: str) -> bool:
        """Give these back (all without names); returns whether there was anything to give."""
        files = [self._held.pop(name) for name in names or tuple(self._held) if name in self._held]
        for file in files:
            file.close()
        return bool(files)
