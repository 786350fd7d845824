"""A connection a host, and commands over it."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import asyncssh

from hybridlab.drivers.ssh.streams import Receive, drain, feed, keep
from hybridlab.drivers.ssh.trust import Key, KnownHosts, Trust, load_key
from hybridlab.errors import AuthFailed, DeadlineExceeded, Unreachable
from hybridlab.models import HostAddress

Dial = Callable[[str, int], tuple[str, int]]

SESSIONS = 8  # sshd's MaxSessions is 10 by default
OPEN_PAUSES_S = (0.02, 0.05, 0.1, 0.2, 0.5)
LOST = "the connection broke while the command ran: whether it took effect is unknown"


@dataclass
class Link:
    """A host's connection, made on first use and again after a loss."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    sessions: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(SESSIONS))
    conn: asyncssh.SSHClientConnection | None = None
    needs_password: bool | None = None  # for sudo; None: not asked yet


@dataclass
class Connections:
    """All hosts' connections; lives in one event loop."""

    dial: Dial
    known_hosts: KnownHosts
    key: Key
    connect_timeout_s: float
    command_timeout_s: float
    on_first_contact: Callable[[HostAddress, str], None] | None
    sudo_password: Callable[[HostAddress], str | None] | None
    links: dict[HostAddress, Link] = field(default_factory=dict)

    async def drop(self, host: HostAddress) -> None:
        link = self.links.pop(host, None)
        if link is not None and link.conn is not None:
            link.conn.abort()

    async def connected(self, host: HostAddress) -> tuple[Link, asyncssh.SSHClientConnection]:
        link = self.links.setdefault(host, Link())
        async with link.lock:
            if link.conn is None or link.conn.is_closed():
                link.conn = await self._connect(host)
            return link, link.conn

    async def _connect(self, host: HostAddress) -> asyncssh.SSHClientConnection:
        where = f"{host.user}@{host.address}:{host.port}"
        key = load_key(self.key(host) if callable(self.key) else self.key)
        reach = f"check that the machine is on and that port {host.port} is open from here"
        try:
            address, port = await asyncio.to_thread(self.dial, host.address, host.port)
        except Unreachable as error:
            raise Unreachable("no SSH connection", where=where, why=error.why, next_move=reach) from error
        trust = Trust(self.known_hosts, host, self.on_first_contact)
        options: dict[str, Any] = {}
        if key is not None:
            options = {"client_keys": [key], "agent_path": None}
        if trust.algorithms:
            options["server_host_key_algs"] = trust.algorithms
        try:
            return await asyncssh.connect(
                address,
                port,
                username=host.user,
                client_factory=lambda: trust,
                known_hosts=([], [], []),
                config=None,
                preferred_auth="publickey",
                connect_timeout=self.connect_timeout_s,
                login_timeout=self.connect_timeout_s,
                keepalive_interval=10,
                keepalive_count_max=3,
                **options,
            )
        except asyncssh.HostKeyNotVerifiable as error:
            raise AuthFailed(
                "the host's key is not the one we know",
                code="host-key-changed",
                where=where,
                why=trust.mismatch or str(error),
                next_move="if the machine was reinstalled on purpose, remove its line from "
                f"{self.known_hosts.path}; if not, somebody may be in between: do not connect",
            ) from error
        except asyncssh.PermissionDenied as error:
            raise AuthFailed(
                "the host refused our key",
                code="permission-denied",
                where=where,
                why=error.reason + (f" (we offered {key.get_fingerprint()})" if key is not None else ""),
                next_move=f"check that {host.user} is the right user and that our public key is in its authorized_keys "
                "(bootstrap.ssh_user, bootstrap.ssh_key_file; for one host nodes[].user, nodes[].key_file)",
            ) from error
        except (OSError, asyncssh.Error) as error:
            raise Unreachable(
                "no SSH connection",
                where=where,
                why=str(error) or type(error).__name__,
                next_move=reach,
            ) from error

    # -- sudo ------------------------------------------------------------------------------------------------------
    async def _command(self, host: HostAddress, link: Link, argv: Sequence[str], sudo: bool) -> tuple[str, bytes]:
        """The command line, and what must go to its input first (sudo's password)."""
        if not sudo:
            return shlex.join(argv), b""
        if link.needs_password is None and self.sudo_password is not None and link.conn is not None:
            async with link.sessions:
                status, _, stderr = await self._exec(host, link.conn, "sudo -n true", b"", self.connect_timeout_s)
            link.needs_password = bool(status) and wants_password(stderr)
            if link.needs_password:
                await self._try_password(host, link)
        password = self.sudo_password(host) if link.needs_password and self.sudo_password is not None else None
        if password is None:
            return shlex.join(["sudo", "-n", *argv]), b""
        # -k: ask even when sudo remembers us, so that the password never ends up in the command's own input
        return shlex.join(["sudo", "-k", "-S", "-p", "", *argv]), password.encode() + b"\n"

    async def _try_password(self, host: HostAddress, link: Link) -> None:
        """Try the password once: every later command would be refused after seconds of PAM's delay."""
        password = self.sudo_password(host) if self.sudo_password is not None else None
        if password is None or link.conn is None:
            return
        first = password.encode() + b"\n"
        async with link.sessions:
            found = await self._exec(host, link.conn, "sudo -k -S -p '' true", first, self.connect_timeout_s)
        if found[0]:
            link.needs_password = None
            checked_sudo(host, True, found)

    @asynccontextmanager
    async def session(
        self, host: HostAddress, argv: Sequence[str], sudo: bool
    ) -> AsyncIterator[tuple[asyncssh.SSHClientConnection, str, bytes]]:
        """A connection with room for one more command: (connection, command line, first input)."""
        link, conn = await self.connected(host)
        command, first = await self._command(host, link, argv, sudo)
        async with link.sessions:
            yield conn, command, first

    # -- commands --------------------------------------------------------------------------------------------------
    async def run(
        self,
        host: HostAddress,
        argv: Sequence[str],
        stdin: bytes | None = None,
        sudo: bool = False,
        timeout_s: float | None = None,
    ) -> tuple[int, bytes, bytes]:
        """Exit status, stdout, stderr. Raises Unreachable when the answer was lost; the command is not run again."""
        async with self.session(host, argv, sudo) as (conn, command, first):
            limit = self.command_timeout_s if timeout_s is None else timeout_s
            found = await self._exec(host, conn, command, first + (stdin or b""), limit)
        return checked_sudo(host, sudo, found)

    async def _exec(
        self, host: HostAddress, conn: asyncssh.SSHClientConnection, command: str, stdin: bytes, timeout_s: float
    ) -> tuple[int, bytes, bytes]:
        try:
            async with asyncio.timeout(timeout_s):
                process = await _open(host, conn, command, input=stdin)
                result = await process.wait(check=False)
        except TimeoutError as error:
            raise _too_long(host, command, timeout_s) from error
        except (OSError, asyncssh.Error) as error:
            raise Unreachable(LOST, where=f"{host.name}: {command}", why=str(error)) from error
        status = _status(host, command, result.exit_status, result.exit_signal)
        return status, _bytes(result.stdout), _bytes(result.stderr)

    async def stream(
        self,
        host: HostAddress,
        argv: Sequence[str],
        stdin: BinaryIO | Iterable[bytes] | None,
        stdout: Receive | None,
        stderr: Receive | None,
        sudo: bool,
        timeout_s: float,
    ) -> tuple[int, bytes]:
        """Exit status and the last 64 KiB of stderr. What the input or a receiver raises ends the command."""
        kept = bytearray()
        async with self.session(host, argv, sudo) as (conn, command, first):
            try:
                async with asyncio.timeout(timeout_s), await _open(host, conn, command) as process:
                    await _together(
                        feed(process, first, stdin),
                        drain(process.stdout, stdout),
                        keep(process.stderr, kept, stderr),
                    )
                    await process.wait_closed()
            except TimeoutError as error:
                raise _too_long(host, command, timeout_s) from error
            except asyncssh.Error as error:
                raise Unreachable(LOST, where=f"{host.name}: {command}", why=str(error)) from error
            status = _status(host, command, process.exit_status, process.exit_signal)
        return checked_sudo(host, sudo, (status, b"", bytes(kept)))[::2]


async def _open(
    host: HostAddress, conn: asyncssh.SSHClientConnection, command: str, **options: Any
) -> asyncssh.SSHClientProcess[bytes]:
    """Begin a command. sshd counts a session that has just ended for a moment more: one it refuses is asked for again.

    Nothing ran where a session was refused, so that asking again is safe.
    """
    for pause_s in (*OPEN_PAUSES_S, 0.0):
        try:
            return await conn.create_process(command, encoding=None, **options)
        except asyncssh.ChannelOpenError as error:
            if not pause_s or conn.is_closed():
                raise Unreachable("no session on the host", where=host.name, why=error.reason) from error
            await asyncio.sleep(pause_s)
    raise AssertionError("the last pause ends the loop")


async def _together(*works: Any) -> None:
    """Run coroutines at once; the first exception cancels the others and is raised as it is."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


SUDO_SAYS_NO = ("is not in the sudoers file", "may not run sudo", "is not allowed to execute")


def wants_password(stderr: bytes) -> bool:
    return any(line.startswith(b"sudo:") and b"password" in line for line in stderr.splitlines())


def checked_sudo(host: HostAddress, sudo: bool, found: tuple[int, bytes, bytes]) -> tuple[int, bytes, bytes]:
    """Raises AuthFailed where sudo did not run the command for want of a password."""
    if sudo and found[0] == 1 and wants_password(found[2]):
        raise AuthFailed(
            "sudo wants a password, or another one",
            code="sudo-password",
            where=f"{host.user}@{host.address}",
            why=found[2].decode("utf-8", "replace").strip(),
            next_move="give it in HYBRIDLAB_SUDO_PASSWORD or in a file (bootstrap.sudo_password_file), "
            "or allow NOPASSWD for this user",
        )
    said = found[2].decode("utf-8", "replace").strip() if sudo and found[0] in (1, 127) else ""
    if any(words in said for words in SUDO_SAYS_NO):
        raise AuthFailed(
            "sudo does not let this user be root",
            code="sudo-refused",
            where=f"{host.user}@{host.address}",
            why=said,
            next_move=f"add {host.user} to the group sudo, or log in as another user (bootstrap.ssh_user)",
        )
    if found[0] == 127 and said.endswith("sudo: command not found"):
        raise AuthFailed(
            "there is no sudo on the host",
            code="sudo-missing",
            where=f"{host.user}@{host.address}",
            why=said,
            next_move="install sudo on the host (apt-get install sudo)",
        )
    return found


def _status(host: HostAddress, command: str, status: int | None, signal: Any) -> int:
    if signal is not None:
        return 128
    if status is None or status < 0:
        raise Unreachable(LOST, where=f"{host.name}: {command}", next_move="look at the host again before repeating it")
    return status


def _too_long(host: HostAddress, command: str, limit_s: float) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"the command did not end within {limit_s:g} s",
        where=f"{host.name}: {command}",
        why="it may still be running",
        next_move="look at the host before repeating it",
    )


def _bytes(value: bytes | str | None) -> bytes:
    return value.encode() if isinstance(value, str) else value or b""
