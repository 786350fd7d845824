"""``SshHosts``: the plain calls that stages make."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import posixpath
import secrets
import shlex
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import asyncssh

from hybridlab.drivers.ssh.connections import Connections, Dial
from hybridlab.drivers.ssh.loop import LoopThread
from hybridlab.drivers.ssh.streams import Receive, copy_file
from hybridlab.drivers.ssh.trust import Key, KnownHosts
from hybridlab.errors import (
    AuthFailed,
    BadInput,
    CommandFailed,
    Conflict,
    DeadlineExceeded,
    HybridlabError,
    NotFound,
    Refused,
    Unreachable,
)
from hybridlab.models import CommandResult, HostAddress
from hybridlab.wait import Clock, SystemClock, wait_until

log = logging.getLogger(__name__)

SCRATCH = ".hybridlab-"
FREE_SPACE = "free space on the host (df -h; apt-get clean; journalctl --vacuum-size=100M), then run it again"
STREAM_TIMEOUT_S = 6 * 3600.0


class SshHosts:
    """Implements ``hybridlab.ports.Hosts``.

    ``dial`` maps a logical address to what is connected to; ``key`` is one for all hosts, or a function that tells a
    host's. A command in flight when the connection breaks is never run again: that
    raises Unreachable, and the next command reconnects. ``on_first_contact`` is told the host and its key's
    fingerprint when a host is seen for the first time. ``sudo_password`` is asked only where sudo wants one.
    """

    def __init__(
        self,
        dial: Dial,
        known_hosts: Path,
        key: Key = None,
        *,
        connect_timeout_s: float = 15.0,
        command_timeout_s: float = 300.0,
        on_first_contact: Callable[[HostAddress, str], None] | None = None,
        sudo_password: Callable[[HostAddress], str | None] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._known_hosts = KnownHosts(known_hosts)
        self._connect_timeout_s = connect_timeout_s
        self._clock: Clock = clock or SystemClock()
        self._connections = Connections(
            dial,
            self._known_hosts,
            key,
            connect_timeout_s,
            command_timeout_s,
            on_first_contact,
            sudo_password,
        )
        self._loop = LoopThread()
        self._finalizer = weakref.finalize(self, self._loop.stop)

    def run(
        self,
        host: HostAddress,
        argv: Sequence[str],
        *,
        stdin: bytes | None = None,
        sudo: bool = False,
        timeout_s: float | None = None,
        check: bool = True,
    ) -> CommandResult:
        """Run one command to its end. Raises CommandFailed on a status other than 0 unless ``check`` is off."""
        found = self._loop.run(self._connections.run(host, argv, stdin, sudo, timeout_s))
        result = _result(found)
        if check:
            _check(host, argv, result)
        return result

    def run_all(
        self, hosts: Sequence[HostAddress], argv: Sequence[str], *, sudo: bool = False, timeout_s: float | None = None
    ) -> tuple[CommandResult | HybridlabError, ...]:
        """Run a command on all hosts at once, statuses unchecked; in a host's place stands what went wrong there."""

        async def one(host: HostAddress) -> CommandResult | HybridlabError:
            try:
                return _result(await self._connections.run(host, argv, None, sudo, timeout_s))
            except HybridlabError as error:
                return error

        async def everyone() -> tuple[CommandResult | HybridlabError, ...]:
            return tuple(await asyncio.gather(*map(one, hosts)))

        return self._loop.run(everyone())

    def put(
        self, host: HostAddress, data: bytes | Path, remote_path: str, *, mode: int = 0o644, sudo: bool = False
    ) -> bool:
        """Write a file whole and atomically; returns whether anything changed (content, mode, with sudo the owner).

        Missing parent folders are made; with ``sudo`` the file belongs to root. The upload is verified by SHA-256.
        """
        return self._loop.run(self._put(host, data, remote_path, mode, sudo))

    def get(self, host: HostAddress, remote_path: str, *, sudo: bool = False) -> bytes:
        """Read a file. Raises NotFound."""
        argv = ["cat", "--", remote_path]
        status, stdout, stderr = self._loop.run(self._connections.run(host, argv, None, sudo))
        if status and b"No such file" in stderr:
            raise NotFound("no such file", status=status, where=f"{host.name}:{remote_path}")
        _check(host, argv, _result((status, b"", stderr)))
        return stdout

    def stream(
        self,
        host: HostAddress,
        argv: Sequence[str],
        *,
        stdin: BinaryIO | Iterable[bytes] | None = None,
        stdout: Receive | BinaryIO | None = None,
        stderr: Receive | None = None,
        sudo: bool = False,
        timeout_s: float | None = None,
        check: bool = True,
    ) -> CommandResult:
        """Run a command with input and output passed through in pieces, never held whole.

        ``stdin`` is a file or an iterable of bytes, ``stdout`` a file or a function; the result's stdout is empty, its
        stderr the last 64 KiB. An exception of the input or of the receiver ends the command and is raised as it is.
        """
        receive = stdout if callable(stdout) or stdout is None else stdout.write
        limit = STREAM_TIMEOUT_S if timeout_s is None else timeout_s
        work = self._connections.stream(host, argv, stdin, receive, stderr, sudo, limit)
        status, kept = self._loop.run(work)
        result = _result((status, b"", kept))
        if check:
            _check(host, argv, result)
        return result

    def wait_for_ssh(self, host: HostAddress, deadline_s: float) -> None:
        """Wait until the host takes our key and runs a command.

        A refused key is tried again too: a new VM gets its keys some seconds after its sshd is up. Raises
        DeadlineExceeded, or AuthFailed where that was the last answer; a changed host key is raised at once.
        """
        last: list[HybridlabError] = []

        def look() -> str:
            last.clear()
            try:
                self._loop.run(self._connections.drop(host))
                self.run(host, ["true"], timeout_s=self._connect_timeout_s)
            except (Unreachable, AuthFailed, DeadlineExceeded) as error:
                if isinstance(error, AuthFailed) and error.code == "host-key-changed":
                    raise
                last.append(error)
                return error.why or error.what
            return "up"

        try:
            wait_until(
                look,
                lambda seen: seen == "up",
                what=f"SSH on {host.name} ({host.address})",
                deadline_s=deadline_s,
                clock=self._clock,
                interval_s=0.2,
                interval_max_s=2.0,
            )
        except DeadlineExceeded:
            if last and isinstance(last[0], AuthFailed):
                raise last[0] from None
            raise

    def interrupt(self) -> None:
        """End the work of all other threads that live now: what they wait for here raises Interrupted."""
        self._loop.interrupt()

    def forget(self, host: HostAddress) -> None:
        """Drop what is pinned for an address, after the machine there was replaced on purpose."""
        self._loop.run(self._connections.drop(host))
        self._known_hosts.forget(host.address, host.port)

    def close(self) -> None:
        """Hang up everywhere. The object may be used again afterwards."""
        if self._loop.started:
            self._loop.run(self._hang_up())
            self._loop.stop()

    async def _hang_up(self) -> None:
        links = self._connections.links
        conns = [link.conn for link in links.values() if link.conn is not None]
        links.clear()
        for conn in conns:
            conn.close()
        with contextlib.suppress(TimeoutError, asyncssh.Error, OSError):
            await asyncio.wait_for(asyncio.gather(*(conn.wait_closed() for conn in conns)), 3)

    def __enter__(self) -> SshHosts:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- files -----------------------------------------------------------------------------------------------------
    async def _put(self, host: HostAddress, data: bytes | Path, path: str, mode: int, sudo: bool) -> bool:
        wanted = await asyncio.to_thread(_sha256, data)
        if await self._is_so(host, path, wanted, mode, sudo):
            return False
        folder = posixpath.dirname(path) or "."
        if not sudo and (await self._connections.run(host, ["test", "-d", folder]))[0]:
            await self._must(host, ["mkdir", "-p", "--", folder])
        scratch = posixpath.join("/tmp" if sudo else folder, SCRATCH + secrets.token_hex(8))
        beside = posixpath.join(folder, SCRATCH + secrets.token_hex(8))
        try:
            await self._upload(host, data, scratch, 0o600 if sudo else mode)
            await self._must(host, ["sha256sum", "--", scratch], expect=wanted)
            if sudo:
                owner = ["-o", "root", "-g", "root"]
                await self._must(host, ["install", "-D", "-m", f"{mode:04o}", *owner, scratch, beside], sudo=True)
                await self._must(host, ["mv", "-f", "-T", beside, path], sudo=True)
                await self._must(host, ["rm", "-f", "--", scratch])
            else:
                await self._must(host, ["mv", "-f", "-T", scratch, path])
        except HybridlabError:
            with contextlib.suppress(HybridlabError):
                await self._connections.run(host, ["rm", "-f", "--", scratch])
                if sudo:
                    await self._connections.run(host, ["rm", "-f", "--", beside], sudo=True)
            raise
        log.info("%s: wrote %s", host.name, path)
        return True

    async def _is_so(self, host: HostAddress, path: str, sha256: str, mode: int, sudo: bool) -> bool:
        """Whether the file is there already, with this content and mode, with sudo also root's."""
        (found, listing, _), (_, sums, _) = await asyncio.gather(
            self._connections.run(host, ["stat", "-L", "-c", "%a %u", "--", path], None, sudo),
            self._connections.run(host, ["sha256sum", "--", path], None, sudo),
        )
        if found or not _text(sums).lstrip("\\").startswith(sha256):
            return False
        has_mode, _, owner = _text(listing).strip().partition(" ")
        return int(has_mode, 8) == mode and (not sudo or owner == "0")

    async def _upload(self, host: HostAddress, data: bytes | Path, scratch: str, mode: int) -> None:
        link, conn = await self._connections.connected(host)
        where = f"{host.name}:{scratch}"
        try:
            async with link.sessions, conn.start_sftp_client() as sftp:
                async with sftp.open(scratch, "xb", asyncssh.SFTPAttrs(permissions=mode)) as remote:
                    await copy_file(data, remote)
                await sftp.chmod(scratch, mode)
        except asyncssh.SFTPNoSuchFile as error:
            raise NotFound("the folder to write to is not there", where=where, why=error.reason) from error
        except asyncssh.SFTPError as error:
            full = "space" in error.reason.lower() or error.code == asyncssh.FX_NO_SPACE_ON_FILESYSTEM
            raise (Conflict if full else Refused)(
                "the host's disk is full" if full else "the host did not take the file",
                code=str(error.code),
                where=where,
                why=error.reason,
                next_move=FREE_SPACE if full else "write it with sudo, or elsewhere",
            ) from error
        except (OSError, asyncssh.Error) as error:
            raise Unreachable("the connection broke during an upload", where=where, why=str(error)) from error

    async def _must(self, host: HostAddress, argv: Sequence[str], *, sudo: bool = False, expect: str = "") -> None:
        status, stdout, stderr = await self._connections.run(host, argv, None, sudo)
        _check(host, argv, _result((status, b"", stderr)))
        if expect and not _text(stdout).lstrip("\\").startswith(expect):
            raise Conflict("the uploaded file arrived damaged", where=host.name, why="its SHA-256 is another")


def _sha256(data: bytes | Path) -> str:
    if isinstance(data, bytes):
        return hashlib.sha256(data).hexdigest()
    try:
        with data.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise BadInput("the file to upload can't be read", where=str(data), why=why) from error


def _check(host: HostAddress, argv: Sequence[str], result: CommandResult) -> None:
    if result.exit_status:
        full = "No space left on device" in result.stderr
        raise CommandFailed(
            "the host's disk is full" if full else "the command failed",
            exit_status=result.exit_status,
            stderr=result.stderr,
            where=f"{host.name}: {shlex.join(argv)}",
            next_move=FREE_SPACE if full else "",
        )


def _result(found: tuple[int, bytes, bytes]) -> CommandResult:
    return CommandResult(found[0], _text(found[1]), _text(found[2]))


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
