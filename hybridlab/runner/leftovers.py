"""What a killed process can't take away itself: folders of kernels' sockets, and half-written files.

Locks and kernels need nothing: the system lets go of a lock, and a kernel ends within a second of its parent.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)

PREFIX = "hl-"
LOCK = "lock"
SCRATCH = re.compile(r"\..+\.[0-9a-f]{8}")
"""A file that write_atomic (hybridlab.ledger) was writing."""
SCRATCH_AGE_S = 60.0
"""Nobody writes a file for so long: an older one belongs to nobody."""


class OwnFolder:
    """A folder in the system's place for temporary ones that is known to be in use while its process lives."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
        new = self.path / f"{LOCK}.new"
        self._fd = os.open(new, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        new.rename(self.path / LOCK)  # whoever sees it by this name finds it locked

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._fd)


def sweep(root: Path, cluster: str) -> None:
    """Remove what killed runs left behind. To be called by who holds the cluster's lock."""
    for folder in _abandoned(Path(tempfile.gettempdir())):
        log.info("removing %s, left by a run that was killed", folder)
        shutil.rmtree(folder, ignore_errors=True)
    for place in (root / "state" / cluster, *(root / "runs").glob(f"*-{cluster}*")):
        for path in place.rglob(".*"):
            with suppress(OSError):
                if SCRATCH.fullmatch(path.name) and time.time() - path.lstat().st_mtime > SCRATCH_AGE_S:
                    path.unlink()


def _abandoned(place: Path) -> Iterator[Path]:
    for folder in place.glob(f"{PREFIX}*"):
        with suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            fd = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # refused while its process lives
                yield folder
            finally:
                os.close(fd)
