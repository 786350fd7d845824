"""sshd of a lab machine: keys, commands, SFTP. One listener a machine, on a loopback port."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import posixpath
from collections.abc import AsyncIterator
from typing import Any, BinaryIO, cast

import asyncssh

from hybridlab.lab.hosts import shell
from hybridlab.lab.hosts.call import Call, Discard
from hybridlab.lab.hosts.files import User, link_text
from hybridlab.lab.hosts.host import Host

GULP = 8 * 1024 * 1024


class Door(asyncssh.SSHServer):
    """Lets in the machine's one user with one of its keys, and nobody else."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._conn: asyncssh.SSHServerConnection | None = None
        text = host.files.text(f"{host.files.home(host.user)}/.ssh/authorized_keys", "")
        self._keys = [asyncssh.import_public_key(line) for line in text.splitlines() if line.strip()]

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        host = self._host
        if host.world.faults.fires("ssh-refuse", host.name):
            host.world.log.add("hosts", "connect", host.name, 503, mutating=False, detail="fault ssh-refuse")
            conn.abort()
            return
        self._conn = conn
        host.connections.add(conn)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._conn is not None:
            self._host.connections.discard(self._conn)

    def begin_auth(self, username: str) -> bool:
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        return username == self._host.user.name and key in self._keys


class _Input:
    """Standard input, read from the connection all at once and given out as asked for.

    asyncssh grants the client a whole window (2 MiB) after every resumed read, however little was read, so that reading
    in small pieces would let it fill the lab's memory.
    """

    def __init__(self, reader: asyncssh.SSHReader[bytes]) -> None:
        self._reader = reader
        self._kept = b""
        self._at = 0

    async def read(self, size: int) -> bytes:
        if self._at >= len(self._kept):
            self._kept, self._at = await self._reader.read(GULP), 0
        piece = self._kept[self._at : self._at + size]
        self._at += len(piece)
        return piece


class _Output:
    def __init__(self, writer: asyncssh.SSHWriter[bytes]) -> None:
        self._writer = writer

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()


async def serve_command(host: Host, process: asyncssh.SSHServerProcess[bytes]) -> None:
    """Run one exec request and send its exit status."""
    text = process.command
    if text is None:
        process.stderr.write(b"This is a machine of the lab: it runs single commands and has no shell to log in to.\n")
        process.exit(1)
        return
    user = host.user
    call = Call(host, [], user, _Input(process.stdin), _Output(process.stdout), _Output(process.stderr), user)
    try:
        call.argv = shell.split(text)
    except shell.NotWords as error:
        host.world.log.add("hosts", "exec", f"{host.name}: (not a command)", 2, mutating=False, actor=user.name)
        await call.fail(
            f"the lab's machines have no shell and can't take {str(error)!r}: send a command and its arguments"
        )
        process.exit(2)
        return
    shown, secret = shell.masked(call.argv)
    dropped = host.world.faults.fires("ssh-drop", f"{host.name} {shown}")
    if dropped:
        call.stdout, call.stderr = Discard(), Discard()
    mutating = shell.is_mutating(call)
    status: int | None = None
    try:
        status = await shell.run(call)
    except (asyncssh.Error, ConnectionError, asyncio.IncompleteReadError):
        call.notes.append("connection lost")
    finally:
        if mutating:
            host.save()
        notes = [*call.notes, *(["secret in argv"] if secret else []), *(["fault ssh-drop"] if dropped else [])]
        code = 255 if status is None else status
        host.world.log.add(
            "hosts", "exec", f"{host.name}: {shown}", code, mutating=mutating, actor=user.name, detail=", ".join(notes)
        )
    if dropped:
        process.get_extra_info("connection").abort()
    elif status is not None:
        with contextlib.suppress(OSError):
            process.exit(status)


class Sftp(asyncssh.SFTPServer):
    """SFTP on the machine's own folder, with the rights of the user who logged in."""

    def __init__(self, host: Host, chan: asyncssh.SSHServerChannel[bytes]) -> None:
        super().__init__(chan)
        self._host = host
        self._files = host.files
        self._user: User = host.user
        self._home = host.files.home(host.user)
        self._open: dict[int, tuple[str, bool]] = {}

    def _text(self, path: bytes) -> str:
        return posixpath.join(self._home, os.fsdecode(path))

    def _log(self, verb: str, path: str, status: int = 0) -> None:
        self._host.world.log.add(
            "hosts", f"sftp-{verb}", f"{self._host.name}: {path}", status, mutating=True, actor=self._user.name
        )
        self._host.save()

    def _attrs(self, path: str, *, follow: bool = True) -> asyncssh.SFTPAttrs:
        found = self._files.stat(path, follow=follow, asker=self._user)
        seconds = found.mtime_ns // 10**9
        return asyncssh.SFTPAttrs(
            size=found.size, uid=found.uid, gid=found.gid, permissions=found.mode, atime=seconds, mtime=seconds
        )

    # -- files -----------------------------------------------------------------------------------------------------
    def open(self, path: bytes, pflags: int, attrs: asyncssh.SFTPAttrs) -> BinaryIO:
        name = self._text(path)
        mode = 0o644 if attrs.permissions is None else attrs.permissions & 0o777
        if not pflags & asyncssh.FXF_WRITE:
            file = self._files.open_read(name, asker=self._user)
            self._open[id(file)] = (name, False)
            return file
        exists = self._files.exists(name)
        if not exists and not pflags & asyncssh.FXF_CREAT:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        flags = "xb" if pflags & asyncssh.FXF_EXCL else "ab" if pflags & asyncssh.FXF_APPEND else "wb"
        if flags == "wb" and exists and not pflags & asyncssh.FXF_TRUNC:
            flags = "r+b"
        file = self._files.open_write(name, flags, asker=self._user, mode=mode)
        self._open[id(file)] = (name, True)
        return file

    def close(self, file_obj: object) -> None:
        name, written = self._open.pop(id(file_obj), ("", False))
        cast(BinaryIO, file_obj).close()
        if written:
            self._log("write", name)

    def fstat(self, file_obj: object) -> asyncssh.SFTPAttrs:
        cast(BinaryIO, file_obj).flush()
        return self._attrs(self._open[id(file_obj)][0])

    def fsetstat(self, file_obj: object, attrs: asyncssh.SFTPAttrs) -> None:
        cast(BinaryIO, file_obj).flush()
        self._set(self._open[id(file_obj)][0], attrs)

    # -- names -----------------------------------------------------------------------------------------------------
    def stat(self, path: bytes) -> asyncssh.SFTPAttrs:
        return self._attrs(self._text(path))

    def lstat(self, path: bytes) -> asyncssh.SFTPAttrs:
        return self._attrs(self._text(path), follow=False)

    def setstat(self, path: bytes, attrs: asyncssh.SFTPAttrs) -> None:
        self._set(self._text(path), attrs)
        self._log("setstat", self._text(path))

    def lsetstat(self, path: bytes, attrs: asyncssh.SFTPAttrs) -> None:
        self.setstat(path, attrs)

    def _set(self, name: str, attrs: asyncssh.SFTPAttrs) -> None:
        if attrs.permissions is not None:
            self._files.chmod(name, attrs.permissions & 0o7777, asker=self._user)
        if attrs.uid is not None and attrs.gid is not None:
            self._files.chown(name, attrs.uid, attrs.gid, asker=self._user)
        resolved = self._files.resolve(name, asker=self._user)
        if attrs.size is not None or attrs.mtime is not None:
            self._files.demand(self._user, resolved, "w")
        if attrs.size is not None:
            os.truncate(self._files.real(resolved), attrs.size)
        if attrs.mtime is not None:
            os.utime(self._files.real(resolved), (attrs.atime or attrs.mtime, attrs.mtime))

    async def scandir(self, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
        folder = self._text(path)
        for name in [".", "..", *self._files.listdir(folder, asker=self._user)]:
            attrs = self._attrs(posixpath.join(folder, name), follow=False)
            yield asyncssh.SFTPName(os.fsencode(name), attrs=attrs)

    def realpath(self, path: bytes) -> bytes:
        return os.fsencode(self._files.resolve(self._text(path), asker=self._user))

    def remove(self, path: bytes) -> None:
        self._files.remove(self._text(path), asker=self._user)
        self._log("remove", self._text(path))

    def mkdir(self, path: bytes, attrs: asyncssh.SFTPAttrs) -> None:
        mode = 0o755 if attrs.permissions is None else attrs.permissions & 0o777
        self._files.mkdir(self._text(path), asker=self._user, mode=mode)
        self._log("mkdir", self._text(path))

    def rmdir(self, path: bytes) -> None:
        self._files.rmdir(self._text(path), asker=self._user)
        self._log("rmdir", self._text(path))

    def rename(self, oldpath: bytes, newpath: bytes) -> None:
        if self._files.exists(self._text(newpath)):
            raise asyncssh.SFTPFailure("File already exists")
        self.posix_rename(oldpath, newpath)

    def posix_rename(self, oldpath: bytes, newpath: bytes) -> None:
        self._files.rename(self._text(oldpath), self._text(newpath), asker=self._user)
        self._log("rename", self._text(newpath))

    def readlink(self, path: bytes) -> bytes:
        found = self._files.stat(self._text(path), follow=False, asker=self._user)
        return os.fsencode(link_text(found.real))

    def symlink(self, oldpath: bytes, newpath: bytes) -> None:
        self._files.symlink(os.fsdecode(oldpath), self._text(newpath), asker=self._user)
        self._log("symlink", self._text(newpath))

    def link(self, oldpath: bytes, newpath: bytes) -> None:
        self._files.link(self._text(oldpath), self._text(newpath), asker=self._user)
        self._log("link", self._text(newpath))

    def statvfs(self, path: bytes) -> asyncssh.SFTPVFSAttrs:
        size, used = self._host.disk()
        free = max(0, size - used) // 4096
        return asyncssh.SFTPVFSAttrs(
            bsize=4096, frsize=4096, blocks=size // 4096, bfree=free, bavail=free, files=1 << 20, ffree=1 << 19,
            favail=1 << 19, fsid=0, flags=0, namemax=255,
        )  # fmt: skip


async def listen(host: Host) -> None:
    """Start the machine's sshd, on the port it had before where that is free."""

    async def on_process(process: asyncssh.SSHServerProcess[Any]) -> None:
        task = asyncio.current_task()
        if task is not None:
            host.commands.add(task)
            task.add_done_callback(host.commands.discard)
        await serve_command(host, process)

    async def start(port: int) -> asyncssh.SSHAcceptor:
        return await asyncssh.listen(
            "127.0.0.1",
            port,
            server_host_keys=[host.host_key()],
            server_factory=lambda: Door(host),
            process_factory=on_process,
            sftp_factory=lambda chan: Sftp(host, chan),
            encoding=None,
            password_auth=False,
            kbdint_auth=False,
            gss_auth=False,
            gss_kex=False,
            allow_scp=False,
            agent_forwarding=False,
            x11_forwarding=False,
            login_timeout=30,
        )

    try:
        host.acceptor = await start(host.state.port)
    except OSError:
        host.acceptor = await start(0)
    host.state.port = host.acceptor.get_port()
    host.save()


async def hang_up(host: Host) -> None:
    """Stop sshd, cut every connection and end every command, as a machine does that goes away."""
    if host.acceptor is not None:
        host.acceptor.close()
        host.acceptor = None
    for conn in list(host.connections):
        conn.abort()
    host.connections.clear()
    running = list(host.commands)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
