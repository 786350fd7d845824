#!/usr/bin/env python3
"""hybridlab node helper: what must run on a node or in a pod. Plain Python 3.8 or later, standard library only.

Subcommands: facts, bench, listen, probe, fetch, archive, extract, digest, room, receive, write, wait. Results are JSON
on standard output, progress and problems JSON lines on standard error (progress at most once a second).

Exit status: 0 done; 2 wrong usage; 3 done, but files changed or vanished while they were read; 4 failed.
"""

from __future__ import annotations

import argparse
import base64
import concurrent.futures
import contextlib
import errno
import hashlib
import http.client
import json
import multiprocessing
import os
import platform
import select
import signal
import socket
import stat
import sys
import tarfile
import time
import urllib.parse
import zlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, BinaryIO, Callable, Dict, Iterator, List, Optional, Tuple

CHUNK = 1024 * 1024
BLOCK = 512
END_NAME = ".hybridlab-end"
PART_NAME = b".hybridlab-part"
RESUME_NAME = b".hybridlab-resume"  # a large file that broke off; beside it what it is of, in NOTE_NAME
NOTE_NAME = b".hybridlab-resume.json"
RESUME_BYTES = 8 * 1024 * 1024  # smaller files are sent again
NOT_DATA = b"lost+found"  # at the top of a directory that is a file system of its own; nobody's data
SAME = "HYBRIDLAB.same"
FROM = "HYBRIDLAB.from"  # the data start here: what is before was checked to be the same on both sides
XATTR = "SCHILY.xattr."
EXIT_CHANGED, EXIT_FAILED = 3, 4


class Failed(Exception):
    """The subcommand can't go on; the text says why."""


class Report:
    """JSON lines on standard error: progress once a second, problems at once."""

    def __init__(self) -> None:
        self.files = 0
        self.bytes = 0
        self.problems = 0
        self._began = self._last = time.monotonic()

    def event(self, event: str, **fields: Any) -> None:
        sys.stderr.write(json.dumps({"event": event, **fields}) + "\n")
        sys.stderr.flush()

    def problem(self, event: str, path: bytes, why: str = "") -> None:
        self.problems += 1
        self.event(event, why=why, **path_fields(path))

    def moved(self, count: int) -> None:
        self.bytes += count
        now = time.monotonic()
        if now - self._last >= 1.0:
            self._last = now
            self.event("progress", files=self.files, bytes=self.bytes, seconds=round(now - self._began, 3))


def path_fields(path: bytes) -> Dict[str, str]:
    """A path for JSON: as text, or in base64 where it is not UTF-8."""
    try:
        return {"path": path.decode("utf-8")}
    except UnicodeDecodeError:
        return {"path": path.decode("utf-8", "replace"), "path_b64": base64.b64encode(path).decode("ascii")}


# -- owners ------------------------------------------------------------------------------------------------------------
class Owners:
    """Owners and modes kept beside the files, for a process that may not give files away (like fakeroot's save file).

    The file is JSON: path relative to the directory ("." is itself) → [uid, gid, mode].
    """

    def __init__(self, path: Optional[str]) -> None:
        self.path = path
        self.table: Dict[str, List[int]] = {}
        if path and os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                self.table = json.load(file)

    @property
    def active(self) -> bool:
        return self.path is not None

    def of(self, rel: bytes, info: os.stat_result) -> Tuple[int, int, int]:
        known = self.table.get(os.fsdecode(rel))
        if known and not stat.S_ISLNK(info.st_mode):
            return known[0], known[1], known[2]
        if known:
            return known[0], known[1], stat.S_IMODE(info.st_mode)
        return info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode)

    def save(self) -> None:
        if self.path:
            with open(self.path + ".tmp", "w", encoding="utf-8") as file:
                json.dump(self.table, file)
            os.replace(self.path + ".tmp", self.path)


def xattrs_of(path: bytes) -> Dict[str, bytes]:
    if not hasattr(os, "listxattr"):
        return {}
    found: Dict[str, bytes] = {}
    try:
        for name in sorted(os.listxattr(path, follow_symlinks=False)):
            if not name.startswith("security.selinux"):
                found[name] = os.getxattr(path, name, follow_symlinks=False)
    except OSError:
        return found
    return found


# -- walking -----------------------------------------------------------------------------------------------------------
def walk(root: bytes, report: Report) -> Iterator[Tuple[bytes, os.stat_result]]:
    """Everything below a directory as (relative path, lstat), ordered by name, parents first; "." is the directory.

    A directory that changes between listing and leaving it is reported as changed. Of a single file (see ``folder_of``)
    there is only its own name, and no ".".
    """

    def below(rel: bytes, info: os.stat_result) -> Iterator[Tuple[bytes, os.stat_result]]:
        yield rel, info
        if not stat.S_ISDIR(info.st_mode):
            return
        full = os.path.join(root, rel)
        try:
            names = sorted(os.listdir(full))
        except OSError as error:
            report.problem("unreadable", rel, error.strerror or "")
            return
        for name in names:
            if rel == b"." and name == NOT_DATA:
                continue
            child = name if rel == b"." else rel + b"/" + name
            try:
                child_info = os.lstat(os.path.join(root, child))
            except OSError as error:
                report.problem("vanished", child, error.strerror or "")
                continue
            for pair in below(child, child_info):
                yield pair
        try:
            if os.lstat(full).st_mtime_ns != info.st_mtime_ns:
                report.problem("changed", rel, "entries were added or removed")
        except OSError as error:
            report.problem("vanished", rel, error.strerror or "")

    try:
        top = os.lstat(root)
    except OSError as error:
        raise Failed("%s: %s" % (os.fsdecode(root), error.strerror)) from error
    if stat.S_ISREG(top.st_mode):
        return iter([(os.path.basename(root), top)])
    if not stat.S_ISDIR(top.st_mode):
        raise Failed("%s: not a directory or a regular file" % os.fsdecode(root))
    return below(b".", top)


def folder_of(root: bytes) -> bytes:
    """What the relative paths of ``walk`` start from: the directory itself, or the one that a single file is in."""
    return os.path.dirname(root) if stat.S_ISREG(mode_at(root)) else root


def segments(fd: int, size: int) -> List[Tuple[int, int]]:
    """The parts of a file that hold data, as (offset, length)."""
    if not hasattr(os, "SEEK_DATA"):
        return [(0, size)]
    found: List[Tuple[int, int]] = []
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
            end = min(size, os.lseek(fd, start, os.SEEK_HOLE))
        except OSError as error:
            if error.errno == errno.ENXIO:
                break
            return [(0, size)]
        if start >= size:
            break
        found.append((start, end - start))
        at = end
    return found


# -- archive -----------------------------------------------------------------------------------------------------------
def load_have(path: Optional[str]) -> Dict[bytes, Dict[str, Any]]:
    """What the other side has already: the lines ``digest`` printed there."""
    have: Dict[bytes, Dict[str, Any]] = {}
    if path:
        with open(path, encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                if row.get("type") in ("file", "part") and "hardlink_of" not in row:
                    key = base64.b64decode(row["path_b64"]) if "path_b64" in row else row["path"].encode("utf-8")
                    have[key] = row
    return have


class Archiver:
    """Writes a pax tar to a stream: numeric owners, nanoseconds, xattrs, links, holes, names of any bytes."""

    def __init__(self, root: bytes, out: BinaryIO, owners: Owners, have: Dict[bytes, Dict[str, Any]]) -> None:
        self.walked = root
        self.root = folder_of(root)
        self.out = out
        self.owners = owners
        self.have = have
        self.report = Report()
        self._links: Dict[Tuple[int, int], List[Any]] = {}  # inode → [first path, links left]

    def run(self) -> int:
        for rel, info in walk(self.walked, self.report):
            self.report.files += 1
            self._entry(rel, info)
        report = self.report
        summary = json.dumps({"files": report.files, "bytes": report.bytes, "problems": report.problems}).encode()
        end = tarfile.TarInfo(END_NAME)
        end.size = len(summary)
        self._header(end)
        self._write(summary + b"\0" * (-len(summary) % BLOCK))
        self._write(b"\0" * BLOCK * 2)
        self.out.flush()
        report.event("done", files=report.files, bytes=report.bytes, problems=report.problems)
        return EXIT_CHANGED if report.problems else 0

    def _write(self, data: bytes) -> None:
        self.out.write(data)

    def _header(self, entry: tarfile.TarInfo) -> None:
        self._write(entry.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))

    def _entry(self, rel: bytes, info: os.stat_result) -> None:
        full = os.path.join(self.root, rel)
        uid, gid, mode = self.owners.of(rel, info)
        entry = tarfile.TarInfo(rel.decode("utf-8", "surrogateescape"))
        entry.uid, entry.gid, entry.mode = uid, gid, mode
        pax: Dict[str, str] = {"mtime": "%d.%09d" % divmod(info.st_mtime_ns, 10**9)}
        for name, value in xattrs_of(full).items():
            pax[XATTR + name] = value.decode("utf-8", "surrogateescape")
        entry.pax_headers = pax
        if stat.S_ISDIR(info.st_mode):
            entry.type = tarfile.DIRTYPE
            self._header(entry)
        elif stat.S_ISLNK(info.st_mode):
            entry.type = tarfile.SYMTYPE
            entry.linkname = os.readlink(full).decode("utf-8", "surrogateescape")
            self._header(entry)
        elif stat.S_ISREG(info.st_mode):
            first = self._first_link(rel, info)
            if first is not None:
                entry.type = tarfile.LNKTYPE
                entry.linkname = first.decode("utf-8", "surrogateescape")
                self._header(entry)
            else:
                self._file(rel, full, info, entry)
        elif stat.S_ISFIFO(info.st_mode):
            entry.type = tarfile.FIFOTYPE
            self._header(entry)
        else:
            self.report.event("skipped", why="a socket or device", **path_fields(rel))

    def _first_link(self, rel: bytes, info: os.stat_result) -> Optional[bytes]:
        if info.st_nlink < 2:
            return None
        key = (info.st_dev, info.st_ino)
        known = self._links.get(key)
        if known is None:
            self._links[key] = [rel, info.st_nlink - 1]
            return None
        known[1] -= 1
        if known[1] == 0:
            del self._links[key]
        first: bytes = known[0]
        return first

    def _is_there(self, rel: bytes, info: os.stat_result) -> bool:
        row = self.have.get(rel)
        uid, gid, mode = self.owners.of(rel, info)
        return (
            row is not None
            and row["type"] == "file"
            and (
                (row["size"], row["mtime_ns"], row["uid"], row["gid"], row["mode"])
                == (info.st_size, info.st_mtime_ns, uid, gid, mode)
            )
        )

    def _start(self, rel: bytes, fd: int, info: os.stat_result) -> int:
        """How much of a file the other side has from a copy that broke off: 0 unless its checksum is ours so far."""
        row = self.have.get(rel)
        if row is None or row["type"] != "part" or (row["of"], row["mtime_ns"]) != (info.st_size, info.st_mtime_ns):
            return 0
        length = int(row["size"])
        if not 0 < length <= info.st_size or hash_part(fd, length) != row["sha256"]:
            return 0
        self.report.event("resumed", at=length, of=info.st_size, **path_fields(rel))
        return length

    def _file(self, rel: bytes, full: bytes, info: os.stat_result, entry: tarfile.TarInfo) -> None:
        if self._is_there(rel, info):
            entry.pax_headers = {**entry.pax_headers, SAME: "1"}
            self._header(entry)
            return
        try:
            fd = os.open(full, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        except OSError as error:
            self.report.problem("vanished" if error.errno == errno.ENOENT else "unreadable", rel, error.strerror or "")
            return
        try:
            before = os.fstat(fd)
            size = before.st_size
            sparse = before.st_blocks * 512 < size if hasattr(before, "st_blocks") else False
            parts = segments(fd, size) if sparse else [(0, size)]
            prefix = b""
            if parts != [(0, size)] and size:
                prefix = sparse_header(entry, parts, size)
            elif size:
                start = self._start(rel, fd, before)
                parts = [(start, size - start)]
                entry.pax_headers = {**entry.pax_headers, FROM: str(start)} if start else entry.pax_headers
            entry.size = len(prefix) + sum(length for _, length in parts)
            self._header(entry)
            self._write(prefix)
            short = False
            for offset, length in parts:
                short = not self._copy(fd, offset, length) or short
            self._write(b"\0" * (-entry.size % BLOCK))
            after = os.fstat(fd)
            if short or (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size):
                self.report.problem("changed", rel, "written to while it was read")
        finally:
            os.close(fd)

    def _copy(self, fd: int, offset: int, length: int) -> bool:
        """Copy a part of a file; zeros stand for what is gone. Returns whether it was all there."""
        while length:
            data = os.pread(fd, min(CHUNK, length), offset)
            if not data:
                while length:
                    gap = min(CHUNK, length)
                    self._write(b"\0" * gap)
                    length -= gap
                return False
            self._write(data)
            self.report.moved(len(data))
            offset += len(data)
            length -= len(data)
        return True


def sparse_header(entry: tarfile.TarInfo, parts: List[Tuple[int, int]], size: int) -> bytes:
    """Turn an entry into GNU's sparse format 1.0; returns the map that precedes the data."""
    if not parts or sum(parts[-1]) < size:
        parts = [*parts, (size, 0)]  # or other tars would drop the hole at the end
    numbers = [len(parts)] + [number for part in parts for number in part]
    text = "".join("%d\n" % number for number in numbers).encode("ascii")
    entry.pax_headers = {
        **entry.pax_headers,
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": entry.name,
        "GNU.sparse.realsize": str(size),
    }
    entry.name = "GNUSparseFile.0/data"  # short and ASCII: a pax "path" would win over GNU.sparse.name
    return text + b"\0" * (-len(text) % BLOCK)


# -- extract -----------------------------------------------------------------------------------------------------------
class Extractor:
    """Reads such a tar from a stream into a directory. Files that are equal already are left alone."""

    def __init__(self, root: bytes, source: BinaryIO, owners: Owners, clean: bool) -> None:
        self.root = root
        self.source = source
        self.owners = owners
        self.clean = clean
        self.report = Report()
        self.written = 0
        self.same = 0
        self.removed = 0
        self._open_dirs: List[Tuple[bytes, int, int]] = []  # name, time and mode, which are set when it is left
        self._expected: Dict[bytes, set[bytes]] = {}  # names to keep, of the open directories
        self._checked: Optional[bytes] = None
        self._is_root = hasattr(os, "geteuid") and os.geteuid() == 0

    def run(self) -> int:
        os.makedirs(self.root, exist_ok=True)
        ended = False
        try:
            with tarfile.open(
                fileobj=self.source, mode="r|", encoding="utf-8", errors="surrogateescape", bufsize=CHUNK
            ) as tar:
                for entry in tar:
                    tar.members = []  # type: ignore[attr-defined]  # or it would remember every one of them
                    if entry.name == END_NAME:
                        ended = True
                        continue
                    self.report.files += 1
                    self._entry(tar, entry)
        except tarfile.TarError as error:
            raise Failed("the stream is damaged: %s" % error) from error
        self._leave_until(None)
        self.owners.save()
        if not ended:
            raise Failed("the stream ended early")
        while self.source.read(CHUNK):
            pass
        report = self.report
        report.event(
            "done", files=report.files, bytes=report.bytes, problems=report.problems,
            written=self.written, same=self.same, removed=self.removed,
        )  # fmt: skip
        return EXIT_CHANGED if report.problems else 0

    def _safe(self, name: bytes) -> bytes:
        """The full path of a name in the archive. Raises Failed when it would leave the directory."""
        parts = name.split(b"/")
        if name.startswith(b"/") or b".." in parts or b"\0" in name or b"" in parts[:-1]:
            raise Failed("refused: %r leads out of the directory" % name)
        parent = b"/".join(parts[:-1])
        if parent != self._checked:
            at = self.root
            for part in parts[:-1]:
                at = os.path.join(at, part)
                if os.path.islink(at):
                    raise Failed("refused: %r goes through a symbolic link" % name)
            self._checked = parent
        return os.path.join(self.root, name)

    def _entry(self, tar: tarfile.TarFile, entry: tarfile.TarInfo) -> None:
        rel = entry.name.encode("utf-8", "surrogateescape").rstrip(b"/") or b"."
        full = self._safe(rel)
        parent = b"." if b"/" not in rel else rel.rsplit(b"/", 1)[0]
        if rel != b".":
            self._leave_until(parent)
            self._expected.setdefault(parent, set()).add(rel.rsplit(b"/", 1)[-1])
        mtime_ns = nanoseconds(entry.pax_headers.get("mtime", str(entry.mtime)))
        if entry.isdir():
            self._make_dir(full)
            self._finish(rel, full, entry)
            self._open_dirs.append((rel, mtime_ns, entry.mode))
            self._expected.setdefault(rel, set())
            return
        if entry.pax_headers.get(SAME):
            if not os.path.lexists(full):
                raise Failed("%r was said to be here already, and is not" % rel)
            self.same += 1
            return
        if entry.issym():
            target = entry.linkname.encode("utf-8", "surrogateescape")
            if not os.path.islink(full) or os.readlink(full) != target:
                self._clear(full)
                os.symlink(target, full)
                self.written += 1
            else:
                self.same += 1
        elif entry.islnk():
            self._hard_link(rel, full, entry)
            return
        elif entry.isreg():
            self._file(tar, rel, full, entry)
        elif entry.isfifo():
            if not stat.S_ISFIFO(mode_at(full)):
                self._clear(full)
                os.mkfifo(full)
        else:
            self.report.problem("skipped", rel, "not a kind of file this can write")
            return
        self._finish(rel, full, entry)
        os.utime(full, ns=(mtime_ns, mtime_ns), follow_symlinks=False)

    def _leave_until(self, parent: Optional[bytes]) -> None:
        """Finish the directories that the walk has left: extra entries go with --clean, then their times are set."""
        while self._open_dirs and self._open_dirs[-1][0] != parent:
            rel, mtime_ns, mode = self._open_dirs.pop()
            full = os.path.join(self.root, rel)
            wanted = self._expected.pop(rel, set())
            if self.clean:
                for name in sorted(os.listdir(full)):
                    if name not in wanted and (rel, name) != (b".", NOT_DATA):
                        self._clear(os.path.join(full, name))
                        self.removed += 1
            os.chmod(full, self._mode(mode, 0o700))
            os.utime(full, ns=(mtime_ns, mtime_ns))
        if parent is not None and not self._open_dirs and parent != b".":
            raise Failed("refused: the archive names %r before its parents" % parent)

    def _make_dir(self, full: bytes) -> None:
        if stat.S_ISDIR(mode_at(full)):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(full, PART_NAME))  # of a run that was killed
            return
        self._clear(full)
        os.mkdir(full)
        self._checked = None

    def _clear(self, full: bytes) -> None:
        mode = mode_at(full)
        if stat.S_ISDIR(mode):
            for name in os.listdir(full):
                self._clear(os.path.join(full, name))
            os.rmdir(full)
            self._checked = None
        elif mode:
            os.unlink(full)
        rel = os.path.relpath(full, self.root)
        self.owners.table.pop(os.fsdecode(rel), None)

    def _hard_link(self, rel: bytes, full: bytes, entry: tarfile.TarInfo) -> None:
        target_rel = entry.linkname.encode("utf-8", "surrogateescape")
        target = self._safe(target_rel)
        self._checked = None
        if not stat.S_ISREG(mode_at(target)):
            raise Failed("refused: %r is linked to %r, which is no file here" % (rel, target_rel))
        if stat.S_ISREG(mode_at(full)) and os.path.samefile(full, target):
            self.same += 1
        else:
            self._clear(full)
            os.link(target, full)
            self.written += 1
        known = self.owners.table.get(os.fsdecode(target_rel))
        if known:
            self.owners.table[os.fsdecode(rel)] = list(known)

    def _finish(self, rel: bytes, full: bytes, entry: tarfile.TarInfo) -> None:
        """Owner, mode and extended attributes."""
        if self.owners.active:
            self.owners.table[os.fsdecode(rel)] = [entry.uid, entry.gid, entry.mode & 0o7777]
        elif self._is_root or (entry.uid, entry.gid) != (os.lstat(full).st_uid, os.lstat(full).st_gid):
            try:
                os.chown(full, entry.uid, entry.gid, follow_symlinks=False)
            except OSError as error:
                self.report.problem("owner-lost", rel, error.strerror or "")
        if not entry.issym():
            # a directory must be open to ourselves until it is left
            os.chmod(full, entry.mode & 0o777 | 0o700 if entry.isdir() else self._mode(entry.mode, 0o600))
        self._xattrs(rel, full, entry)

    def _mode(self, mode: int, floor: int) -> int:
        """The mode to set: the archive's, or with an owners file one that leaves the file to ourselves."""
        return mode & 0o777 | floor if self.owners.active else mode & 0o7777

    def _xattrs(self, rel: bytes, full: bytes, entry: tarfile.TarInfo) -> None:
        if not hasattr(os, "setxattr"):
            return
        wanted = {
            key[len(XATTR) :]: value.encode("utf-8", "surrogateescape")
            for key, value in entry.pax_headers.items()
            if key.startswith(XATTR)
        }
        there = xattrs_of(full)
        try:
            for name in set(there) - set(wanted):
                if name.startswith("user."):
                    os.removexattr(full, name, follow_symlinks=False)
            for name, value in wanted.items():
                if there.get(name) != value:
                    os.setxattr(full, name, value, follow_symlinks=False)
        except OSError as error:
            self.report.problem("xattr-lost", rel, error.strerror or "")

    def _file(self, tar: tarfile.TarFile, rel: bytes, full: bytes, entry: tarfile.TarInfo) -> None:
        reader = tar.extractfile(entry)
        if reader is None:
            raise Failed("%r has no data" % rel)
        holes = entry.sparse is not None
        done = int(entry.pax_headers.get(FROM, "0"))
        size = done + entry.size
        resumable = size >= RESUME_BYTES and not holes
        scratch = os.path.join(os.path.dirname(full), RESUME_NAME if resumable else PART_NAME)
        # a hard link is always written anew: writing through it would change its siblings
        info = os.lstat(full) if os.path.lexists(full) else None
        equal = info is not None and stat.S_ISREG(info.st_mode) and info.st_nlink == 1 and info.st_size == size
        equal = equal and not done
        old = open(full, "rb") if equal else None  # noqa: SIM115  # closed below, like the ones that follow
        new: Optional[BinaryIO] = self._go_on(scratch, done) if done else None
        whole = False
        try:
            while True:
                data = reader.read(CHUNK)
                if not data:
                    break
                self.report.moved(len(data))
                if new is None and (old is None or old.read(len(data)) != data):
                    new = self._begin(scratch, rel, entry, size, resumable)
                    self._prefix(new, full, done)
                if new is not None:
                    write_sparse(new, data, done, holes=holes)
                done += len(data)
            if done != size:
                raise Failed("the stream ended inside %r" % rel)
            if new is None and not equal:
                new = open(scratch, "wb")  # noqa: SIM115
            if new is None:
                self.same += 1
                return
            new.truncate(size)
            new.close()
            self._clear(full)
            os.rename(scratch, full)
            whole = True
            self.written += 1
        finally:
            if old is not None:
                old.close()
            if new is not None:
                new.close()
                # what there is of a large file stays: a later copy goes on from there
                for name in (NOTE_NAME,) if whole else () if resumable else (PART_NAME,):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(os.path.join(os.path.dirname(full), name))

    @staticmethod
    def _begin(scratch: bytes, rel: bytes, entry: tarfile.TarInfo, size: int, resumable: bool) -> BinaryIO:
        new = open(scratch, "wb")  # noqa: SIM115  # closed by the caller
        if resumable:
            mtime_ns = nanoseconds(entry.pax_headers.get("mtime", str(entry.mtime)))
            note = {"name": base64.b64encode(os.path.basename(rel)).decode("ascii"), "of": size, "mtime_ns": mtime_ns}
            with open(os.path.join(os.path.dirname(scratch), NOTE_NAME), "w", encoding="ascii") as file:
                json.dump(note, file)
        return new

    @staticmethod
    def _go_on(scratch: bytes, start: int) -> BinaryIO:
        """What is there of a file that broke off. Raises Failed when it is shorter than was said."""
        if not stat.S_ISREG(mode_at(scratch)) or os.lstat(scratch).st_size < start:
            raise Failed("%r was said to hold %d bytes, and does not" % (scratch, start))
        new = open(scratch, "r+b")  # noqa: SIM115  # closed by the caller
        new.seek(start)
        new.truncate(start)
        return new

    @staticmethod
    def _prefix(new: BinaryIO, full: bytes, length: int) -> None:
        """Copy what was equal so far from the old file."""
        if not length:
            return
        with open(full, "rb") as old:
            while length:
                data = old.read(min(CHUNK, length))
                new.write(data)
                length -= len(data)


def write_sparse(file: BinaryIO, data: bytes, offset: int, *, holes: bool) -> None:
    """Write data, leaving holes for pages of zeros where the source had holes."""
    if not holes:
        file.seek(offset)
        file.write(data)
        return
    page = 4096
    for start in range(0, len(data), page):
        piece = data[start : start + page]
        if piece.count(0) != len(piece):
            file.seek(offset + start)
            file.write(piece)


def mode_at(path: bytes) -> int:
    try:
        return os.lstat(path).st_mode
    except FileNotFoundError:
        return 0


def nanoseconds(text: str) -> int:
    whole, _, part = text.partition(".")
    sign = -1 if whole.startswith("-") else 1
    return int(whole) * 10**9 + sign * int((part + "000000000")[:9])


# -- digest ------------------------------------------------------------------------------------------------------------
KINDS = ((stat.S_ISDIR, "dir"), (stat.S_ISREG, "file"), (stat.S_ISLNK, "link"), (stat.S_ISFIFO, "fifo"))


def digest(root: bytes, owners: Owners, quick: bool) -> int:
    """One JSON line an entry, then a summary with one SHA-256 over all lines (their times left out)."""
    report = Report()
    overall = hashlib.sha256()
    links: Dict[Tuple[int, int], bytes] = {}
    base = folder_of(root)
    size = 0
    for rel, info in walk(root, report):
        if quick and os.path.basename(rel) in (RESUME_NAME, NOTE_NAME):
            if os.path.basename(rel) == RESUME_NAME:
                part_row(base, rel, info, report)
            continue
        kind = next((name for check, name in KINDS if check(info.st_mode)), None)
        if kind is None:
            continue
        full = os.path.join(base, rel)
        uid, gid, mode = owners.of(rel, info)
        row: Dict[str, Any] = {**path_fields(rel), "type": kind, "mode": mode, "uid": uid, "gid": gid}
        try:
            if kind == "link":
                row["target"] = path_fields(os.readlink(full)).get("path_b64") or os.fsdecode(os.readlink(full))
            if kind == "file":
                row["size"] = info.st_size
                report.files += 1
                size += min(info.st_size, info.st_blocks * 512 if hasattr(info, "st_blocks") else info.st_size)
                key = (info.st_dev, info.st_ino)
                if info.st_nlink > 1 and key in links:
                    row["hardlink_of"] = os.fsdecode(links[key])
                else:
                    links.update({key: rel} if info.st_nlink > 1 else {})
                    if not quick:
                        row["sha256"] = hash_file(full, rel, report)
        except OSError as error:
            report.problem("vanished" if error.errno == errno.ENOENT else "unreadable", rel, error.strerror or "")
            continue
        found = xattrs_of(full)
        if found:
            text = json.dumps({name: value.hex() for name, value in found.items()}, sort_keys=True)
            row["xattrs_sha256"] = hashlib.sha256(text.encode()).hexdigest()
        overall.update(json.dumps(row, sort_keys=True).encode() + b"\n")
        row["mtime_ns"] = info.st_mtime_ns
        sys.stdout.write(json.dumps(row) + "\n")
    summary = {"summary": True, "files": report.files, "bytes": report.bytes, "size": size}
    summary["problems"] = report.problems
    sys.stdout.write(json.dumps({**summary, "sha256": None if quick else overall.hexdigest()}) + "\n")
    return EXIT_CHANGED if report.problems else 0


def part_row(base: bytes, rel: bytes, info: os.stat_result, report: Report) -> None:
    """Print what there is of a large file that broke off, with its checksum; nothing where its note is not whole."""
    folder = os.path.dirname(rel)
    try:
        with open(os.path.join(base, folder, NOTE_NAME), encoding="ascii") as file:
            note = json.load(file)
        name = os.path.join(folder, base64.b64decode(note["name"]))
        sha256 = hash_file(os.path.join(base, rel), rel, report)
    except (OSError, ValueError, KeyError):
        return
    row = {**path_fields(name), "type": "part", "size": info.st_size, "of": note["of"], "mtime_ns": note["mtime_ns"]}
    sys.stdout.write(json.dumps({**row, "sha256": sha256}) + "\n")


def hash_part(fd: int, length: int) -> str:
    """The SHA-256 of the first bytes of a file."""
    sha, at = hashlib.sha256(), 0
    while at < length:
        data = os.pread(fd, min(CHUNK, length - at), at)
        if not data:
            break
        sha.update(data)
        at += len(data)
    return sha.hexdigest()


def room(root: bytes) -> Dict[str, Any]:
    """What the file system of a directory has left for files, and what lies in the directory, holes left out."""
    held = 0
    for _, info in walk(root, Report()):
        if stat.S_ISREG(info.st_mode):
            held += min(info.st_size, info.st_blocks * 512)
    disk = os.statvfs(root)
    return {
        "device": os.lstat(root).st_dev,
        "total": disk.f_blocks * disk.f_frsize,
        "free": disk.f_bavail * disk.f_frsize,
        "held": held,
    }


def hash_file(full: bytes, rel: bytes, report: Report) -> str:
    sha = hashlib.sha256()
    with open(full, "rb") as file:
        before = os.fstat(file.fileno())
        while True:
            data = file.read(CHUNK)
            if not data:
                break
            sha.update(data)
            report.moved(len(data))
        after = os.fstat(file.fileno())
    if (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size):
        report.problem("changed", rel, "written to while it was read")
    return sha.hexdigest()


def receive(path: str, source: BinaryIO, mode: int) -> int:
    """A stream into a file, which is there whole or not at all; print its size and SHA-256.

    The stream is pieces, each after a line with its length, and ends with a length of 0: an exec over WebSocket may be
    unable to say that its input ended.
    """
    sha = hashlib.sha256()
    report = Report()
    scratch = os.path.join(os.path.dirname(path), os.fsdecode(PART_NAME))
    try:
        with open(scratch, "wb") as file:
            os.chmod(scratch, mode)
            for data in pieces_of(source):
                file.write(data)
                sha.update(data)
                report.moved(len(data))
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(scratch)
    print(json.dumps({"path": path, "size": report.bytes, "sha256": sha.hexdigest()}))
    return 0


def pieces_of(source: BinaryIO) -> Iterator[bytes]:
    while True:
        head = source.readline(24)
        if not head.strip().isdigit():
            raise Failed("the stream ended early")
        length = int(head)
        if not length:
            return
        while length:
            data = source.read(min(CHUNK, length))
            if not data:
                raise Failed("the stream ended early")
            length -= len(data)
            yield data


def write_file(path: str, size: int, seed: int) -> int:
    """Write bytes that depend on the seed alone; print their SHA-256."""
    sha = hashlib.sha256()
    report = Report()
    with open(path, "wb") as file:
        for number in range(0, size, CHUNK):
            block = hashlib.shake_128(b"%d %d" % (seed, number)).digest(min(CHUNK, size - number))
            file.write(block)
            sha.update(block)
            report.moved(len(block))
        file.flush()
        os.fsync(file.fileno())
    print(json.dumps({"path": path, "size": size, "sha256": sha.hexdigest()}))
    return 0


# -- facts -------------------------------------------------------------------------------------------------------------
def cpu_count() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def first_line(path: str, key: str) -> str:
    """The value of the first ``key: value`` line of a file, or ""."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                name, _, value = line.partition(":")
                if name.strip() == key:
                    return value.strip()
    except OSError:
        pass
    return ""


def steal_and_total() -> Tuple[int, int]:
    try:
        with open("/proc/stat", encoding="ascii") as file:
            numbers = [int(word) for word in file.readline().split()[1:]]
    except (OSError, ValueError):
        return 0, 0
    return (numbers[7] if len(numbers) > 7 else 0), sum(numbers[:8])


def pressure() -> Optional[int]:
    """Microseconds that some task waited for a CPU since boot; None where the kernel does not say."""
    try:
        with open("/proc/pressure/cpu", encoding="ascii") as file:
            return int(file.readline().rsplit("total=", 1)[1])
    except (OSError, ValueError, IndexError):
        return None


def facts() -> Dict[str, Any]:
    steal, total = steal_and_total()
    memory = first_line("/proc/meminfo", "MemTotal").split()
    model = first_line("/proc/cpuinfo", "model name") or first_line("/proc/cpuinfo", "CPU part") or platform.processor()
    return {
        "hostname": platform.node(),
        "machine": platform.machine(),
        "cpu_model": model,
        "cpus": cpu_count(),
        "memory_bytes": int(memory[0]) * 1024 if memory else None,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "steal_share": round(steal / total, 6) if total else None,
        "cpu_pressure_us": pressure(),
    }


# -- bench -------------------------------------------------------------------------------------------------------------
def measure(seconds: float, work: Callable[[], int]) -> Dict[str, Any]:
    """Repeat ``work`` (which returns how much it did) for a time; rates by wall clock, in ten intervals."""
    intervals: List[float] = []
    cpu_began, began = time.process_time(), time.monotonic()
    done = interval_done = 0
    interval_began = began
    while True:
        done_now = work()
        done += done_now
        interval_done += done_now
        now = time.monotonic()
        if now - interval_began >= seconds / 10:
            intervals.append(interval_done / (now - interval_began))
            interval_began, interval_done = now, 0
        if now - began >= seconds:
            break
    wall, cpu = time.monotonic() - began, time.process_time() - cpu_began
    return {"done": done, "wall_s": wall, "cpu_s": cpu, "intervals": intervals}


def hashing() -> Callable[[], int]:
    block = bytes(range(256)) * 1024

    def work() -> int:
        hashlib.sha256(block).digest()
        return len(block)

    return work


def compressing() -> Callable[[], int]:
    text = b"".join(b"%d %s\n" % (n, hashlib.sha256(b"%d" % n).hexdigest().encode()) for n in range(1500))

    def work() -> int:
        zlib.compress(text, 6)
        return len(text)

    return work


def copying() -> Callable[[], int]:
    size = 20 * 1024 * 1024
    source, target = bytearray(b"\x5a") * size, bytearray(size)

    def work() -> int:
        memoryview(target)[:] = source
        return size

    return work


def rate(found: Dict[str, Any], unit: str, scale: float, cpus: int = 1) -> Dict[str, Any]:
    share = found["cpu_s"] / (found["wall_s"] * cpus)
    return {
        "rate": round(found["done"] / found["wall_s"] / scale, 3),
        "unit": unit,
        "wall_s": round(found["wall_s"], 4),
        "cpu_s": round(found["cpu_s"], 4),
        "cpu_share": round(min(1.0, share), 4),
        "intervals": [round(value / scale, 3) for value in found["intervals"]],
    }


def hash_worker(seconds: float, answer: Any) -> None:
    answer.send(measure(seconds, hashing()))
    answer.close()


def all_cores(seconds: float) -> Dict[str, Any]:
    """The hashing of one core, on every core at once."""
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    context: Any = multiprocessing.get_context(method)
    workers = []
    for _ in range(cpu_count()):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=hash_worker, args=(seconds, theirs))
        process.start()
        theirs.close()
        workers.append((process, ours))
    results = [ours.recv() for _, ours in workers]
    for process, _ in workers:
        process.join()
    return {
        "done": sum(r["done"] / r["wall_s"] for r in results) * max(r["wall_s"] for r in results),
        "wall_s": max(r["wall_s"] for r in results),
        "cpu_s": sum(r["cpu_s"] for r in results),
        "intervals": [sum(values) for values in zip(*(r["intervals"] for r in results))],  # noqa: B905  # no strict= in Python 3.8,
    }


def syncing(folder: str, seconds: float) -> Dict[str, Any]:
    """Writes of 4 KiB, each made durable; the file stays under 8 MiB and is removed."""
    path = os.path.join(folder, ".hybridlab-bench-%d" % os.getpid())
    sync = getattr(os, "fdatasync", os.fsync)
    block = os.urandom(4096)
    latencies: List[float] = []
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:

        def work() -> int:
            began = time.monotonic()
            os.pwrite(fd, block, (len(latencies) % 2048) * 4096)
            sync(fd)
            latencies.append(time.monotonic() - began)
            return 1

        found = rate(measure(seconds, work), "syncs/s", 1.0)
    finally:
        os.close(fd)
        os.unlink(path)
    latencies.sort()
    found["p99_ms"] = round(latencies[min(len(latencies) - 1, int(len(latencies) * 0.99))] * 1000, 3)
    del found["cpu_share"]  # waiting for the disk is not a lack of CPU
    return found


def bench(rounds: int, seconds: float, folder: str) -> Dict[str, Any]:
    """Rates by wall clock of each class, one dict a round; CPU share below 1 means the CPU was taken away."""
    results = []
    steal, total = steal_and_total()
    waited, began = pressure(), time.monotonic()
    report = Report()
    for number in range(rounds):
        results.append(
            {
                "cpu_single": rate(measure(seconds, hashing()), "MB/s", 1e6),
                "cpu_all": rate(all_cores(seconds), "MB/s", 1e6, cpu_count()),
                "compress": rate(measure(seconds, compressing()), "MB/s", 1e6),
                "memory": rate(measure(seconds, copying()), "MB/s", 1e6),
                "fsync": syncing(folder, seconds),
            }
        )
        report.event("round", number=number + 1, of=rounds)
    steal_after, total_after = steal_and_total()
    waited_after, passed = pressure(), time.monotonic() - began
    ticks = total_after - total
    return {
        "facts": facts(),
        "seconds": seconds,
        "rounds": results,
        "steal_share": round(max(0, steal_after - steal) / ticks, 6) if ticks > 0 else None,
        "pressure_share": None
        if waited is None or waited_after is None
        else round(max(0, waited_after - waited) / 1e6 / passed, 6),
    }


# -- listen and probe --------------------------------------------------------------------------------------------------
def listen(tcp: List[int], udp: List[int], seconds: float, until_eof: bool) -> int:
    """Echo on ports until the time is over; the first line tells which ports could be taken."""
    sockets: Dict[int, Tuple[str, socket.socket]] = {}
    taken: List[str] = []
    for kind, ports in (("tcp", tcp), ("udp", udp)):
        for port in ports:
            made = socket.socket(socket.AF_INET, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1 if kind == "tcp" else 0)
            try:
                made.bind(("0.0.0.0", port))
                if kind == "tcp":
                    made.listen(16)
            except OSError:
                taken.append("%d/%s" % (port, kind))
                made.close()
                continue
            sockets[made.fileno()] = (kind, made)
    bound = ["%d/%s" % (made.getsockname()[1], kind) for kind, made in sockets.values()]
    print(json.dumps({"listening": bound, "in_use": taken}), flush=True)
    deadline = time.monotonic() + seconds
    watched = {**{fd: made for fd, (_, made) in sockets.items()}}
    if until_eof:
        watched[sys.stdin.fileno()] = sys.stdin  # type: ignore[assignment]
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            return 0
        ready, _, _ = select.select(list(watched), [], [], min(left, 0.5))
        for fd in ready:
            if fd not in watched:
                continue
            if fd in sockets:
                kind, made = sockets[fd]
                if kind == "udp":
                    data, peer = made.recvfrom(65535)
                    with contextlib.suppress(OSError):
                        made.sendto(data, peer)
                else:
                    conn, _ = made.accept()
                    watched[conn.fileno()] = conn
            elif watched[fd] is sys.stdin:
                if not os.read(fd, CHUNK):
                    return 0
            else:
                echo_some(watched, fd)


def echo_some(watched: Dict[int, socket.socket], fd: int) -> None:
    conn = watched[fd]
    try:
        data = conn.recv(65535)
        if data:
            conn.sendall(data)
            return
    except OSError:
        pass
    del watched[fd]
    conn.close()


def probe(target: str, size: int, timeout: float) -> Dict[str, Any]:
    """Try one HOST:PORT/tcp or /udp.

    States: echo (data came back whole), open (TCP connected, nothing echoed), silent (UDP, no answer), refused,
    rejected (a firewall said so: "No route to host"), filtered (no answer to a TCP connection), too-big.
    """
    address, _, kind = target.rpartition("/")
    host, _, port_text = address.rpartition(":")
    row: Dict[str, Any] = {"target": target, "size": size}
    began = time.monotonic()
    payload = (b"hybridlab" * (size // 9 + 1))[:size]
    try:
        if kind == "tcp":
            with socket.create_connection((host, int(port_text)), timeout) as conn:
                row["state"] = "open"
                conn.sendall(payload)
                got = b""
                while len(got) < size:
                    data = conn.recv(65535)
                    if not data:
                        break
                    got += data
                row["state"] = "echo" if got == payload else "open"
        else:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as conn:
                conn.settimeout(timeout)
                if sys.platform == "linux":
                    conn.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER, IP_PMTUDISC_DO: never in pieces
                conn.connect((host, int(port_text)))
                conn.send(payload)
                row["state"] = "silent"
                row["state"] = "echo" if conn.recv(65535) == payload else "open"
    except (socket.timeout, TimeoutError):
        row.setdefault("state", "filtered")
    except ConnectionRefusedError:
        row["state"] = "refused"
    except OSError as error:
        if error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EPERM, errno.EACCES):
            row["state"] = "rejected"
        elif error.errno == errno.EMSGSIZE:
            row["state"] = "too-big"
        else:
            row.setdefault("state", "refused")
        row["error"] = error.strerror or str(error)
    row["ms"] = round((time.monotonic() - began) * 1000, 2)
    return row


def fetch(url: str, timeout: float) -> Dict[str, Any]:
    """GET a URL without following redirects: its status, or why there is none."""
    row: Dict[str, Any] = {"url": url, "status": 0}
    began = time.monotonic()
    parts = urllib.parse.urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    conn = kind(parts.hostname or "", parts.port, timeout=timeout)
    try:
        conn.request("GET", (parts.path or "/") + ("?" + parts.query if parts.query else ""))
        row["status"] = conn.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        row["error"] = getattr(error, "strerror", None) or str(error) or type(error).__name__
    finally:
        conn.close()
    row["ms"] = round((time.monotonic() - began) * 1000, 2)
    return row


def wait() -> int:
    """Do nothing until told to end: what a pod runs so that commands can be run in it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # process 1 would ignore it otherwise
    while True:
        time.sleep(3600)


# -- command line ------------------------------------------------------------------------------------------------------
def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="node_helper.py")
    subs = top.add_subparsers(dest="command", required=True)
    subs.add_parser("facts")
    one = subs.add_parser("bench")
    one.add_argument("--rounds", type=int, default=1)
    one.add_argument("--seconds", type=float, default=1.0)
    one.add_argument("--dir", default="/tmp")
    one = subs.add_parser("listen")
    one.add_argument("--tcp", type=int, nargs="*", default=[])
    one.add_argument("--udp", type=int, nargs="*", default=[])
    one.add_argument("--seconds", type=float, default=10.0)
    one.add_argument("--until-eof", action="store_true", help="also end when standard input does")
    one = subs.add_parser("probe")
    one.add_argument("targets", nargs="+", metavar="HOST:PORT/tcp|udp")
    one.add_argument("--size", type=int, default=64)
    one.add_argument("--timeout", type=float, default=2.0)
    one = subs.add_parser("archive")
    one.add_argument("dir")
    one.add_argument(
        "--have", help="a file with the lines that digest printed on the other side: leave out what is equal"
    )
    one.add_argument("--owners", help="read owners and modes from this file")
    one = subs.add_parser("extract")
    one.add_argument("dir")
    one.add_argument("--clean", action="store_true", help="remove what the archive does not have")
    one.add_argument("--owners", help="keep owners and modes in this file instead of giving files away")
    one = subs.add_parser("digest")
    one.add_argument("dir")
    one.add_argument("--quick", action="store_true", help="do not read the files")
    one.add_argument("--owners", help="read owners and modes from this file")
    one = subs.add_parser("room")
    one.add_argument("dir")
    one = subs.add_parser("fetch")
    one.add_argument("url", metavar="http://HOST:PORT/PATH")
    one.add_argument("--timeout", type=float, default=5.0)
    one = subs.add_parser("receive")
    one.add_argument("file")
    one.add_argument("--mode", type=lambda text: int(text, 8), default=0o600, help="octal")
    subs.add_parser("wait")
    one = subs.add_parser("write")
    one.add_argument("file")
    one.add_argument("--size", type=int, required=True)
    one.add_argument("--seed", type=int, default=1)
    return top


def run(args: argparse.Namespace) -> int:
    if args.command == "facts":
        print(json.dumps(facts()))
    elif args.command == "bench":
        print(json.dumps(bench(args.rounds, args.seconds, args.dir)))
    elif args.command == "listen":
        return listen(args.tcp, args.udp, args.seconds, args.until_eof)
    elif args.command == "probe":
        with concurrent.futures.ThreadPoolExecutor(min(32, len(args.targets))) as pool:
            print(json.dumps(list(pool.map(lambda t: probe(t, args.size, args.timeout), args.targets))))
    elif args.command == "archive":
        archiver = Archiver(os.fsencode(args.dir), sys.stdout.buffer, Owners(args.owners), load_have(args.have))
        return archiver.run()
    elif args.command == "extract":
        return Extractor(os.fsencode(args.dir), sys.stdin.buffer, Owners(args.owners), args.clean).run()
    elif args.command == "digest":
        return digest(os.fsencode(args.dir), Owners(args.owners), args.quick)
    elif args.command == "room":
        print(json.dumps(room(os.fsencode(args.dir))))
    elif args.command == "fetch":
        print(json.dumps(fetch(args.url, args.timeout)))
    elif args.command == "receive":
        return receive(args.file, sys.stdin.buffer, args.mode)
    elif args.command == "wait":
        return wait()
    else:
        return write_file(args.file, args.size, args.seed)
    return 0


def main() -> int:
    try:
        return run(parser().parse_args())
    except Failed as error:
        why = str(error)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        why = "the reader went away"
    except OSError as error:
        why = "%s: %s" % (error.filename, error.strerror) if error.filename else str(error)
    sys.stderr.write(json.dumps({"event": "failed", "why": why}) + "\n")
    return EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
