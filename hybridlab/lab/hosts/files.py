"""A machine's file system: a folder, with the owners and modes an unprivileged process cannot give.

Paths are those of the machine ("/etc/hostname"), as text with surrogate escapes. Owners and modes live in a side
table; the real files always stay readable and writable for the lab itself. A path the table does not know belongs to
root (to the machine's user below its home) with the mode the real file has, since other parts of the lab write there
too.
"""

from __future__ import annotations

import errno
import os
import posixpath
import shutil
import stat as stat_
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, cast

from hybridlab.lab.hosts.space import Bounded

Want = Literal["r", "w", "x"]


@dataclass(frozen=True)
class User:
    name: str
    uid: int
    gid: int

    @property
    def is_root(self) -> bool:
        return self.uid == 0


ROOT = User("root", 0, 0)


@dataclass(frozen=True)
class Stat:
    """What stat(2) would say on the machine; ``mode`` has the type bits."""

    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    links: int
    real: Path

    @property
    def is_dir(self) -> bool:
        return stat_.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        return stat_.S_ISREG(self.mode)

    @property
    def is_link(self) -> bool:
        return stat_.S_ISLNK(self.mode)


def _fail(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)


def link_text(real: Path) -> str:
    """A symbolic link's text as it is: ``Path.readlink`` would tidy it up."""
    return os.readlink(real)  # noqa: PTH115


class Files:
    """One machine's files. Every method takes the user who asks and refuses what the kernel would refuse (OSError).

    ``room`` says how many bytes can still be written, None for plenty.
    """

    def __init__(
        self,
        root: Path,
        owners: dict[str, list[int]],
        user: User,
        room: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._room = room
        self.root = root
        self.owners = owners  # path → [uid, gid, mode]; saved with the machine's state
        self.user = user

    # -- paths -----------------------------------------------------------------------------------------------------
    def resolve(
        self, path: str, *, cwd: str = "/", follow: bool = True, asker: User = ROOT, parents_exist: bool = True
    ) -> str:
        """The path with ``.``, ``..`` and symbolic links gone; links stay inside the machine, as under chroot(2).

        The last component need not exist, and is followed only with ``follow``. Directories on the way must be
        searchable for ``asker``, and exist unless ``parents_exist`` is off.
        """
        if "\0" in path:
            raise _fail(errno.EINVAL, path)
        todo = [part for part in posixpath.join(cwd, path).split("/") if part and part != "."]
        done: list[str] = []
        links = 0
        while todo:
            part = todo.pop(0)
            if part == "..":
                done = done[:-1]
                continue
            here = "/" + "/".join(done)
            if not self._allowed(asker, here, "x"):
                raise _fail(errno.EACCES, path)
            real = self.real("/" + "/".join([*done, part]))
            if real.is_symlink() and (todo or follow):
                links += 1
                if links > 40:
                    raise _fail(errno.ELOOP, path)
                target = link_text(real)
                if target.startswith("/"):
                    done = []
                todo = [piece for piece in target.split("/") if piece and piece != "."] + todo
                continue
            if todo and not real.is_dir() and (parents_exist or real.exists()):
                raise _fail(errno.ENOTDIR if real.exists() else errno.ENOENT, path)
            done.append(part)
        return "/" + "/".join(done)

    def real(self, resolved: str) -> Path:
        return self.root / resolved.lstrip("/") if resolved != "/" else self.root

    # -- looking ---------------------------------------------------------------------------------------------------
    def owner(self, resolved: str) -> tuple[int, int]:
        known = self.owners.get(resolved)
        if known:
            return known[0], known[1]
        home = self.home(self.user)
        if resolved == home or resolved.startswith(home + "/"):
            return self.user.uid, self.user.gid
        return 0, 0

    @staticmethod
    def home(user: User) -> str:
        return "/root" if user.is_root else f"/home/{user.name}"

    def stat(self, path: str, *, cwd: str = "/", follow: bool = True, asker: User = ROOT) -> Stat:
        resolved = self.resolve(path, cwd=cwd, follow=follow, asker=asker)
        real = self.real(resolved)
        try:
            info = real.lstat()
        except OSError as error:
            raise _fail(error.errno or errno.EIO, path) from error
        uid, gid = self.owner(resolved)
        known = self.owners.get(resolved)
        mode = info.st_mode
        if known and not stat_.S_ISLNK(mode):
            mode = stat_.S_IFMT(mode) | known[2]
        return Stat(mode, uid, gid, info.st_size, info.st_mtime_ns, info.st_nlink, real)

    def exists(self, path: str, *, cwd: str = "/") -> bool:
        try:
            self.stat(path, cwd=cwd)
        except OSError:
            return False
        return True

    def _allowed(self, asker: User, resolved: str, want: Want) -> bool:
        if asker.is_root:
            return True
        try:
            mode = self.real(resolved).lstat().st_mode
        except OSError:
            return want == "x"  # what is missing is reported as missing, by whoever looks at it
        known = self.owners.get(resolved)
        if known:
            mode = known[2]
        uid, gid = self.owner(resolved)
        bit = {"r": 4, "w": 2, "x": 1}[want]
        shift = 6 if uid == asker.uid else 3 if gid == asker.gid else 0
        return bool(mode >> shift & bit)

    def demand(self, asker: User, resolved: str, want: Want) -> None:
        if not self._allowed(asker, resolved, want):
            raise _fail(errno.EACCES, resolved)

    def listdir(self, path: str, *, cwd: str = "/", asker: User = ROOT) -> list[str]:
        resolved = self.resolve(path, cwd=cwd, asker=asker)
        self.demand(asker, resolved, "r")
        try:
            return sorted(entry.name for entry in self.real(resolved).iterdir())
        except OSError as error:
            raise _fail(error.errno or errno.EIO, path) from error

    def walk(self, resolved: str) -> Iterator[str]:
        """The path and everything below it, parents first, links not followed."""
        yield resolved
        real = self.real(resolved)
        if real.is_dir() and not real.is_symlink():
            for name in sorted(entry.name for entry in real.iterdir()):
                yield from self.walk(resolved.rstrip("/") + "/" + name)

    # -- reading and writing ---------------------------------------------------------------------------------------
    def open_read(self, path: str, *, cwd: str = "/", asker: User = ROOT) -> BinaryIO:
        found = self.stat(path, cwd=cwd, asker=asker)
        self.demand(asker, self.resolve(path, cwd=cwd), "r")
        if found.is_dir:
            raise _fail(errno.EISDIR, path)
        return found.real.open("rb")

    def read(self, path: str, *, cwd: str = "/", asker: User = ROOT) -> bytes:
        with self.open_read(path, cwd=cwd, asker=asker) as file:
            return file.read()

    def text(self, path: str, default: str | None = None) -> str:
        """A file as text, for the lab's own use; ``default`` where it is missing."""
        if default is not None and not self.exists(path):
            return default
        return self.read(path).decode("utf-8", "surrogateescape")

    def open_write(
        self, path: str, flags: str = "wb", *, cwd: str = "/", asker: User = ROOT, mode: int = 0o644
    ) -> BinaryIO:
        """Open for writing with Python's binary ``flags`` (wb, ab, xb, r+b); a new file belongs to ``asker``."""
        resolved = self.resolve(path, cwd=cwd, asker=asker)
        real = self.real(resolved)
        new = not real.exists()
        if new:
            if flags.startswith("r"):
                raise _fail(errno.ENOENT, path)
            self._demand_parent(asker, resolved, path)
        else:
            if real.is_dir():
                raise _fail(errno.EISDIR, path)
            if "x" in flags:
                raise _fail(errno.EEXIST, path)
            self.demand(asker, resolved, "w")
        file = real.open(flags)
        if new:
            self.set_owner(resolved, asker.uid, asker.gid, mode)
        left = self._room()
        if left is not None:
            return cast(BinaryIO, Bounded(cast(BinaryIO, file), left, path))
        return cast(BinaryIO, file)

    def write(self, path: str, data: bytes, *, cwd: str = "/", asker: User = ROOT, mode: int = 0o644) -> None:
        with self.open_write(path, cwd=cwd, asker=asker, mode=mode) as file:
            file.write(data)

    def put(self, path: str, text: str, mode: int = 0o644, owner: User = ROOT) -> None:
        """Write a file for the lab itself: parents made, owner and mode set."""
        self.makedirs(posixpath.dirname(path))
        resolved = self.resolve(path)
        self.real(resolved).write_bytes(text.encode("utf-8", "surrogateescape"))
        self.set_owner(resolved, owner.uid, owner.gid, mode)

    def _demand_parent(self, asker: User, resolved: str, path: str) -> None:
        parent = posixpath.dirname(resolved)
        if not self.real(parent).is_dir():
            raise _fail(errno.ENOENT, path)
        self.demand(asker, parent, "w")
        self.demand(asker, parent, "x")

    def _demand_removal(self, asker: User, resolved: str, path: str) -> None:
        """Writing to the parent suffices, unless it is sticky and the entry somebody else's."""
        self._demand_parent(asker, resolved, path)
        parent = posixpath.dirname(resolved)
        sticky = self.stat(parent).mode & stat_.S_ISVTX
        if sticky and not asker.is_root and asker.uid not in (self.owner(resolved)[0], self.owner(parent)[0]):
            raise _fail(errno.EPERM, path)

    def set_owner(self, resolved: str, uid: int, gid: int, mode: int) -> None:
        """Record owner and mode (the lab's own rights are kept on the real file)."""
        real = self.real(resolved)
        if real.is_symlink():
            self.owners[resolved] = [uid, gid, 0o777]
            return
        floor = 0o700 if real.is_dir() else 0o600
        real.chmod(mode & 0o777 | floor)
        self.owners[resolved] = [uid, gid, mode & 0o7777]

    def chmod(self, path: str, mode: int, *, cwd: str = "/", asker: User = ROOT) -> None:
        resolved = self.resolve(path, cwd=cwd, asker=asker)
        found = self.stat(resolved)
        if not asker.is_root and asker.uid != found.uid:
            raise _fail(errno.EPERM, path)
        self.set_owner(resolved, found.uid, found.gid, mode)

    def chown(self, path: str, uid: int, gid: int, *, cwd: str = "/", asker: User = ROOT) -> None:
        resolved = self.resolve(path, cwd=cwd, asker=asker)
        found = self.stat(resolved)
        if not asker.is_root and (uid, gid) != (found.uid, found.gid):
            raise _fail(errno.EPERM, path)
        self.set_owner(resolved, uid, gid, found.mode & 0o7777)

    def mkdir(self, path: str, *, cwd: str = "/", asker: User = ROOT, mode: int = 0o755) -> None:
        resolved = self.resolve(path, cwd=cwd, asker=asker)
        if self.real(resolved).exists():
            raise _fail(errno.EEXIST, path)
        self._demand_parent(asker, resolved, path)
        self.real(resolved).mkdir()
        self.set_owner(resolved, asker.uid, asker.gid, mode)

    def makedirs(self, path: str, *, cwd: str = "/", asker: User = ROOT, mode: int = 0o755) -> None:
        resolved = self.resolve(path, cwd=cwd, asker=asker, parents_exist=False)
        if self.real(resolved).is_dir():
            return
        if resolved != "/":
            self.makedirs(posixpath.dirname(resolved), asker=asker)
        self.mkdir(resolved, asker=asker, mode=mode)

    def remove(self, path: str, *, cwd: str = "/", asker: User = ROOT) -> None:
        """Remove a file or link."""
        resolved = self.resolve(path, cwd=cwd, follow=False, asker=asker)
        if self.stat(resolved, follow=False).is_dir:
            raise _fail(errno.EISDIR, path)
        self._demand_removal(asker, resolved, path)
        self.real(resolved).unlink()
        self.owners.pop(resolved, None)

    def rmdir(self, path: str, *, cwd: str = "/", asker: User = ROOT) -> None:
        resolved = self.resolve(path, cwd=cwd, follow=False, asker=asker)
        if not self.stat(resolved, follow=False).is_dir:
            raise _fail(errno.ENOTDIR, path)
        self._demand_removal(asker, resolved, path)
        self.real(resolved).rmdir()
        self.owners.pop(resolved, None)

    def rmtree(self, path: str, *, cwd: str = "/", asker: User = ROOT) -> None:
        resolved = self.resolve(path, cwd=cwd, follow=False, asker=asker)
        self._demand_removal(asker, resolved, path)
        if self.real(resolved).is_dir() and not self.real(resolved).is_symlink():
            shutil.rmtree(os.fsencode(self.real(resolved)))  # bytes: names need not be UTF-8
        else:
            self.real(resolved).unlink()
        for known in [key for key in self.owners if key == resolved or key.startswith(resolved + "/")]:
            del self.owners[known]

    def rename(self, old: str, new: str, *, cwd: str = "/", asker: User = ROOT) -> None:
        source = self.resolve(old, cwd=cwd, follow=False, asker=asker)
        target = self.resolve(new, cwd=cwd, follow=False, asker=asker)
        found = self.stat(source, follow=False)
        self._demand_removal(asker, source, old)
        if self.exists(target):
            self._demand_removal(asker, target, new)
        else:
            self._demand_parent(asker, target, new)
        found.real.replace(self.real(target))
        self.owners.pop(target, None)
        for known in [key for key in self.owners if key == source or key.startswith(source + "/")]:
            self.owners[target + known[len(source) :]] = self.owners.pop(known)
        self.owners.setdefault(target, [found.uid, found.gid, found.mode & 0o7777])

    def symlink(self, target: str, path: str, *, cwd: str = "/", asker: User = ROOT) -> None:
        resolved = self.resolve(path, cwd=cwd, follow=False, asker=asker)
        self._demand_parent(asker, resolved, path)
        if os.path.lexists(self.real(resolved)):
            raise _fail(errno.EEXIST, path)
        self.real(resolved).symlink_to(target)
        self.owners[resolved] = [asker.uid, asker.gid, 0o777]

    def link(self, old: str, new: str, *, cwd: str = "/", asker: User = ROOT) -> None:
        source = self.resolve(old, cwd=cwd, asker=asker)
        target = self.resolve(new, cwd=cwd, follow=False, asker=asker)
        found = self.stat(source)
        self._demand_parent(asker, target, new)
        self.real(target).hardlink_to(found.real)
        self.owners[target] = [found.uid, found.gid, found.mode & 0o7777]

    # -- the side table for programs that really run ------------------------------------------------------------------
    def owners_below(self, resolved: str) -> dict[str, list[int]]:
        """Owners and modes of everything in a directory, keyed by the path relative to it ("." is itself)."""
        table: dict[str, list[int]] = {}
        for path in self.walk(resolved):
            found = self.stat(path, follow=False)
            key = "." if path == resolved else path[len(resolved.rstrip("/")) + 1 :]
            table[key] = [found.uid, found.gid, found.mode & 0o7777]
        return table

    def adopt_owners(self, resolved: str, table: dict[str, list[int]]) -> None:
        """Take over a table written by a program that ran in this directory."""
        prefix = resolved.rstrip("/")
        for known in [key for key in self.owners if key.startswith(prefix + "/")]:
            if not os.path.lexists(self.real(known)):
                del self.owners[known]
        for key, (uid, gid, mode) in table.items():
            path = resolved if key == "." else f"{prefix}/{key}"
            if os.path.lexists(self.real(path)):
                self.owners[path] = [uid, gid, mode]
