"""Room on a machine's disk: what files take that have a length and no blocks, and writes that end where it is full."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Self

if TYPE_CHECKING:
    from hybridlab.lab.hosts.host import Host

IMAGE_BYTES = 2 * 1024**3  # what an image takes before anything is written
TIGHT_BYTES = 4 * 1024**3
"""With more room than this nobody counts: a lab's machine has no way to write so much."""
FILLER = "/var/log/filler"


def used_bytes(host: Host) -> int:
    """What is in use: the image, what was written, and the files that were given a length by fallocate."""
    used, reserved = IMAGE_BYTES, host.state.reserved
    for path in host.files.walk("/"):
        info = host.files.real(path).lstat()
        used += max(info.st_blocks * 512, min(reserved.get(path, 0), info.st_size))
    return used


def size_bytes(host: Host) -> int:
    """The boot volume without what ext4 keeps for itself."""
    return int(host.machine.boot_volume_gb * 1024**3 * 0.97)


def room(host: Host) -> int | None:
    """How many bytes can still be written; None where there is plenty."""
    if size_bytes(host) - IMAGE_BYTES - sum(host.state.reserved.values()) > TIGHT_BYTES:
        return None
    return max(0, size_bytes(host) - used_bytes(host))


def reserve(host: Host, path: str, size: int) -> None:
    """Give a file a length, as fallocate does; it takes that much room and no blocks of the disk the lab is on."""
    resolved = host.files.resolve(path)
    os.truncate(host.files.real(resolved), size)
    host.state.reserved = {p: s for p, s in host.state.reserved.items() if host.files.exists(p)} | {resolved: size}


def fill(host: Host, left: int) -> str:
    """Write a file that leaves so many bytes; removing it makes room again."""
    with contextlib.suppress(FileNotFoundError):
        host.files.remove(FILLER)
    takes = max(0, size_bytes(host) - used_bytes(host) - left)
    host.files.put(FILLER, "")
    reserve(host, FILLER, takes)
    host.save()
    return f"{host.name}: {FILLER} takes {takes / 1024**3:.1f} GiB, {left} bytes are left; rm it to make room"


def fill_named(hosts: Mapping[str, Host], match: str) -> str:
    """The fault ``disk-full``: ``HOST`` or ``HOST BYTES``. Raises LookupError."""
    name, _, left = match.partition(" ")
    host = next((h for h in hosts.values() if h.name == name), None)
    if host is None or (left and not left.isdigit()):
        raise LookupError(
            f"match {match!r} is no HOST or HOST BYTES; hosts: {', '.join(h.name for h in hosts.values())}"
        )
    return fill(host, int(left or 0))


class Bounded:
    """A file open for writing on a disk with so much room: what goes beyond fails, after the part that fits."""

    def __init__(self, file: BinaryIO, left: int, path: str) -> None:
        self._file, self._left, self._path = file, left, path
        self._end = os.fstat(file.fileno()).st_size

    def write(self, data: bytes | bytearray | memoryview) -> int:
        view = memoryview(data).cast("B")
        end = self._file.tell() + len(view)
        grows = max(0, end - self._end)
        if grows > self._left:
            self._file.write(view[: max(0, len(view) - (grows - self._left))])
            self._end += self._left
            self._left = 0
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._path)
        self._left -= grows
        self._end = max(self._end, end)
        return self._file.write(view)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
