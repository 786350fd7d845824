"""What lies in the volumes of the lab's Docker host: a few megabytes that depend on names alone, hard cases included.

Hard cases, where the lab's own file system can hold them: hard links, symbolic links, sparse files, names that are not
UTF-8, extended attributes, owners that no user here has.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Callable

from hybridlab.lab.hosts.files import Files, User

MTIME_NS = 1_760_000_000_123_456_789
KIB, MIB = 1024, 1024**2


def noise(seed: str, size: int) -> bytes:
    """Bytes that depend on the seed alone and do not compress."""
    return hashlib.shake_128(seed.encode("utf-8", "surrogateescape")).digest(size)


class Filler:
    """Writes into one volume as one owner."""

    def __init__(self, files: Files, folder: str, uid: int, gid: int, mode: int = 0o755) -> None:
        self.files, self.folder = files, folder
        self.uid, self.gid = uid, gid
        files.makedirs(folder)
        files.set_owner(files.resolve(folder), uid, gid, mode)

    def path(self, name: str) -> str:
        return f"{self.folder}/{name}"

    def file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        path = self.path(name)
        self._parents(name)
        with self.files.open_write(path) as file:
            file.write(data)
        self._done(path, mode)

    def noise(self, name: str, size: int, mode: int = 0o644) -> None:
        self.file(name, noise(f"{self.folder} {name}", size), mode)

    def sparse(self, name: str, size: int, mode: int = 0o644) -> None:
        """A file with data at its begin and in the middle, holes elsewhere."""
        self._parents(name)
        with self.files.open_write(self.path(name)) as file:
            file.write(noise(name, 16 * KIB))
            file.seek(size // 2)
            file.write(noise(name + "2", 16 * KIB))
            file.truncate(size)
        self._done(self.path(name), mode)

    def hard_link(self, old: str, new: str) -> None:
        self._parents(new)
        self.files.link(self.path(old), self.path(new))

    def symlink(self, target: str, name: str) -> None:
        self._parents(name)
        self.files.symlink(target, self.path(name))
        self.files.owners[self.path(name)] = [self.uid, self.gid, 0o777]
        os.utime(self.files.real(self.path(name)), ns=(MTIME_NS, MTIME_NS), follow_symlinks=False)

    def xattr(self, name: str, key: str, value: bytes) -> None:
        if hasattr(os, "setxattr"):
            with contextlib.suppress(OSError):  # not every file system keeps them
                os.setxattr(self.files.real(self.path(name)), key, value)

    def _parents(self, name: str) -> None:
        parts = name.split("/")[:-1]
        for count in range(1, len(parts) + 1):
            folder = self.path("/".join(parts[:count]))
            if not self.files.exists(folder):
                self.files.mkdir(folder)
                self.files.set_owner(folder, self.uid, self.gid, 0o755)

    def _done(self, path: str, mode: int) -> None:
        self.files.set_owner(path, self.uid, self.gid, mode)
        os.utime(self.files.real(path), ns=(MTIME_NS, MTIME_NS))


def _mariadb(files: Files, folder: str) -> None:
    fill = Filler(files, folder, 999, 999, 0o750)
    fill.sparse("ibdata1", 12 * MIB, 0o660)
    fill.noise("ib_logfile0", 256 * KIB, 0o660)
    fill.file("mariadb_upgrade_info", b"11.8.3-MariaDB", 0o660)
    for table in ("archive_blob", "access", "log_action", "log_visit", "option", "site", "user"):
        fill.noise(f"matomo/matomo_{table}.ibd", 96 * KIB, 0o660)
        fill.noise(f"matomo/matomo_{table}.frm", 3 * KIB, 0o660)


def _postgres(files: Files, folder: str) -> None:
    fill = Filler(files, folder, 70, 70, 0o700)
    fill.file("PG_VERSION", b"16\n", 0o600)
    fill.noise("global/pg_control", 8 * KIB, 0o600)
    for number in range(24):
        fill.noise(f"base/16384/{16385 + number}", 8 * KIB * (1 + number % 6), 0o600)
    fill.noise("pg_wal/000000010000000000000001", 256 * KIB, 0o600)
    fill.symlink("../base/16384", "pg_tblspc/16384")


def _redis(files: Files, folder: str) -> None:
    fill = Filler(files, folder, 999, 1000)
    fill.file("dump.rdb", b"REDIS0012" + noise(folder, 40 * KIB), 0o600)


def _mastodon(files: Files, folder: str) -> None:
    fill = Filler(files, folder, 991, 991)
    for number in range(30):
        fill.noise(f"media_attachments/files/113/{number:03}/original/{number:08x}.webp", 4 * KIB * (1 + number % 5))
    fill.noise("media_attachments/files/114/000/original/holiday.mp4", 6 * MIB)  # over 5 MiB: a multipart upload
    fill.hard_link("media_attachments/files/113/001/original/00000001.webp", "cache/preview_cards/00000001.webp")
    fill.symlink("media_attachments/files/113", "latest")
    fill.file("accounts/avatars/Zoë — 写真.txt", b"a name beyond ASCII\n")
    fill.xattr("accounts/avatars/Zoë — 写真.txt", "user.hybridlab.kept", b"\x00\xffyes")
    fill.sparse("cache/index.db", 8 * MIB)
    if sys.platform == "linux":  # other systems refuse the name
        fill.file("media_attachments/caf\udce9.jpg", noise("cafe", 3 * KIB))


def _matomo(files: Files, folder: str) -> None:
    fill = Filler(files, folder, 33, 33)
    fill.file("config/config.ini.php", b'; <?php exit; ?>\n[database]\nhost = "matomo-db"\n', 0o640)
    for number in range(12):
        fill.noise(f"tmp/cache/tracker/matomocache_{number}.php", 2 * KIB, 0o644)
    fill.noise("misc/DBIP-City-Lite.mmdb", 512 * KIB)


def _plain(files: Files, folder: str, owner: int = 1000) -> None:
    fill = Filler(files, folder, owner, owner)
    fill.noise("data.sqlitedb", 128 * KIB, 0o640)
    fill.file("settings.ini", b"[server]\nname = home\n")
    fill.noise("files/virtualserver_1/icon_1", 6 * KIB)
    fill.symlink("settings.ini", "current")


def _teamspeak(files: Files, folder: str) -> None:
    _plain(files, folder, 9987)


KINDS: dict[str, Callable[[Files, str], None]] = {
    "mariadb": _mariadb,
    "mysql": _mariadb,
    "postgres": _postgres,
    "redis": _redis,
    "mastodon": _mastodon,
    "matomo": _matomo,
    "teamspeak": _teamspeak,
}


def _kind(image: str) -> Callable[[Files, str], None]:
    repository = image.split("@")[0].rsplit("/", 1)[-1].split(":")[0]
    return KINDS.get(repository, _plain)


def seed_volume(files: Files, folder: str, image: str) -> None:
    """Fill a new volume as the service of this image would have."""
    _kind(image)(files, folder)
    files.set_owner(files.resolve(folder.rsplit("/", 1)[0]), 0, 0, 0o701)


def seed_bind(files: Files, path: str, image: str, user: User, data: bytes | None) -> None:
    """Fill what is bind-mounted: a folder as the service would have, a single file (by its name) with ``data``."""
    if data is None and "." not in path.rsplit("/", 1)[-1]:
        _kind(image)(files, path)
        return
    files.put(path, "# a file of the user's own\n", 0o644, user)
    if data is not None:
        files.write(path, data)
