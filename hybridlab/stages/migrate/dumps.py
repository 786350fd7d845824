"""A database's own dump instead of its files: made by ``docker exec``, streamed into the new database or its claim.

Passwords are expanded inside the containers, from their own environment: no secret is in any argument of ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from hybridlab.compose import ClaimSource
from hybridlab.compose.names import label
from hybridlab.errors import CommandFailed, NotFound, Refused
from hybridlab.models import Json
from hybridlab.ports import Context
from hybridlab.stages.helperpod import MOUNT, Seat, digest_summary, pod_ready, running_helper
from hybridlab.stages.migrate.copying import mark_copied
from hybridlab.stages.migrate.dockerside import containers
from hybridlab.stages.migrate.streams import DEADLINE_S, Outflow, framed
from hybridlab.stages.objects import Obj

# as the official images do it: a value in the environment, or in the file that NAME_FILE names (a Docker secret)
_ROOT = (
    'f="${MARIADB_ROOT_PASSWORD_FILE:-$MYSQL_ROOT_PASSWORD_FILE}"; p="${MARIADB_ROOT_PASSWORD:-$MYSQL_ROOT_PASSWORD}"; '
    'export MYSQL_PWD="${p:-${f:+$(cat "$f")}}"; '
)
# a row grows when its bytes are escaped, so the limits that let it in (16 MB, 24 MB to dump) need not let it through;
# the server's own holds again from its next start
_PACKET = " --max-allowed-packet=1G"
_TAKES_ALL = ' --user=root --execute="SET GLOBAL max_allowed_packet=1073741824" && '
_WHOLE = f" --all-databases --single-transaction --routines --events --flush-privileges{_PACKET} --user=root"
_HEALTH = "/var/lib/mysql/.my-healthcheck.cnf"
# the dump brought the old account of the image's health check, and the new image has a password of its own in a file:
# without this the pod would never be Ready again
_HEALTHY = f"""{{ [ ! -f {_HEALTH} ] || for h in localhost 127.0.0.1 ::1; do \
sed -n "s/^password=\\(.*\\)/CREATE USER IF NOT EXISTS healthcheck@'$h'; \
SET PASSWORD FOR healthcheck@'$h' = PASSWORD('\\1');/p" {_HEALTH}; done | mariadb --user=root; }}"""
_ROLE = (
    'f="$POSTGRES_USER_FILE"; u="${POSTGRES_USER:-${f:+$(cat "$f")}}"; '
    'f="$POSTGRES_PASSWORD_FILE"; export PGPASSWORD="${POSTGRES_PASSWORD:-${f:+$(cat "$f")}}"; '
)


@dataclass(frozen=True)
class Tool:
    """How one kind of database is dumped and loaded; ``load`` empty: the dump is a file in the claim, named ``file``.

    ``folders``: where its images keep the data. ``head`` and ``tail`` must be in the first and last bytes of a whole
    dump. ``harmless``: errors of loading that say only that something is there already.
    """

    database: str
    images: tuple[str, ...]
    folders: tuple[str, ...]
    dump: str
    load: str = ""
    file: str = ""
    head: bytes = b""
    tail: bytes = b""
    harmless: str = r"(?!)"


TOOLS = (
    Tool(
        "PostgreSQL",
        ("postgres", "postgis", "pgvector", "timescaledb"),
        ("/var/lib/postgresql/data", "/var/lib/postgresql"),
        f'{_ROLE}exec pg_dumpall --clean --if-exists --username="${{u:-postgres}}"',
        f'{_ROLE}exec psql --quiet --username="${{u:-postgres}}" --dbname=postgres',
        head=b"PostgreSQL database cluster dump",
        tail=b"PostgreSQL database cluster dump complete",
        # --clean drops roles first, which can't work for the one that loads
        harmless=r'role "[^"]*" already exists|current user cannot be dropped|role "[^"]*" cannot be dropped',
    ),
    Tool(
        "MariaDB",
        ("mariadb",),
        ("/var/lib/mysql",),
        f"{_ROOT}exec mariadb-dump{_WHOLE}",
        f"{_ROOT}mariadb{_TAKES_ALL}mariadb{_PACKET} --user=root && {_HEALTHY}",
        tail=b"-- Dump completed",
    ),
    Tool(
        "MySQL",
        ("mysql", "percona", "percona-server"),
        ("/var/lib/mysql",),
        f"{_ROOT}exec mysqldump{_WHOLE}",
        f"{_ROOT}mysql{_TAKES_ALL}exec mysql{_PACKET} --user=root",
        tail=b"-- Dump completed",
    ),
    Tool("Redis", ("redis",), ("/data",), "exec redis-cli --rdb -", file="dump.rdb", head=b"REDIS"),
    Tool("Valkey", ("valkey",), ("/data",), "exec valkey-cli --rdb -", file="dump.rdb", head=b"REDIS"),
)


def tool_for(image: str) -> Tool | None:
    """The tool for an image, by the last part of its repository's name."""
    name = image.split("@")[0].rsplit("/", 1)[-1].split(":")[0]
    return next((tool for tool in TOOLS if name in tool.images), None)


def data_mount(workload: Obj, claim: str) -> str:
    """Where a workload's first container mounts a claim; empty where it does not."""
    spec = workload["spec"]["template"]["spec"]
    volumes = {
        v["name"] for v in spec.get("volumes", []) if v.get("persistentVolumeClaim", {}).get("claimName") == claim
    }
    mounts = spec["containers"][0].get("volumeMounts", [])
    return next((str(m["mountPath"]) for m in mounts if m["name"] in volumes), "")


def dump_into_claim(
    ctx: Context, claim: ClaimSource, service: str, project: str, tool: Tool, seat: Seat | None = None
) -> Mapping[str, Json]:
    """Put a dump into the claim as the file that the database reads when it starts; the claim must be at rest."""
    namespace = ctx.params.migrate.namespace
    pod = label(f"hybridlab-dump-{claim.name}")
    with (
        running_helper(ctx, namespace, pod, {claim.name: MOUNT}, seat=seat) as call,
        _outflow(ctx, claim, service, project, tool) as pieces,
    ):
        receive = ("receive", f"{MOUNT}/{tool.file}", "--mode=644")
        try:
            held = digest_summary(call(*receive, stdin=framed(iter(pieces)), timeout_s=DEADLINE_S))
        except CommandFailed as error:
            if "NOAUTH" in error.stderr:
                error.next_move = (
                    f"its password is in its command line only: give the container REDISCLI_AUTH in its environment, "
                    f"or set migrate.data.{service}.method to stop"
                )
            raise
    _whole(pieces, service, tool)
    if held["sha256"] != pieces.sha256:
        raise Refused(
            f"claim {claim.name} does not hold the dump of {service}", why="the checksums differ", next_move="try again"
        )
    mark_copied(ctx, claim, f"dump:{pieces.sha256}")
    return {"sha256": pieces.sha256, "bytes": pieces.sent, "database": tool.database}


def load_dump(
    ctx: Context, claim: ClaimSource, service: str, project: str, tool: Tool, label: str
) -> Mapping[str, Json]:
    """Stream a dump from the old database into the new one, which must be Ready; what it has of the same is replaced.

    ``label``: the value of app.kubernetes.io/name on the new database's pod. Raises Refused for a dump that is not
    whole and for errors of loading that matter.
    """
    namespace = ctx.params.migrate.namespace
    pods = ctx.kube.list("v1", "Pod", namespace, labels=f"app.kubernetes.io/name={label}")
    ready = next((p["metadata"]["name"] for p in pods if pod_ready(p)), None)
    if ready is None:
        raise NotFound(f"{service} has no Ready pod to load its dump into", where=f"namespace {namespace}")
    with _outflow(ctx, claim, service, project, tool) as pieces:
        argv = ["sh", "-c", tool.load]
        result = ctx.kube.exec(namespace, ready, argv, stdin=_until_quit(iter(pieces)), timeout_s=DEADLINE_S)
    _whole(pieces, service, tool)
    errors = [line for line in result.stderr.splitlines() if re.match(r".*\bERROR\b", line)]
    bad = [line for line in errors if not re.search(tool.harmless, line)]
    if result.exit_status != 0 or bad:
        why = (bad or result.stderr.strip().splitlines()[-1:] or ["no message"])[0]
        raise Refused(
            f"the dump of {service} could not be loaded",
            where=f"pod {namespace}/{ready}",
            status=result.exit_status,
            why=why[:300],
            next_move="delete the database's workload and claim in the cluster, then run it again; or choose stop",
        )
    mark_copied(ctx, claim, f"dump:{pieces.sha256}")
    return {"sha256": pieces.sha256, "bytes": pieces.sent, "database": tool.database}


def _until_quit(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """psql and mariadb end by themselves at this: an exec may be unable to say that its input ended."""
    yield from pieces
    yield b"\n\\q\n"


def _outflow(ctx: Context, claim: ClaimSource, service: str, project: str, tool: Tool) -> Outflow:
    host = ctx.site.docker_host()
    running = next((c.name for c in containers(ctx, project) if c.service == service and c.running), None)
    if running is None:
        raise NotFound(
            f"{service} does not run on the Docker host: only a running {tool.database} can be dumped",
            where=host.address,
            next_move=f"start it there, or set migrate.data.{service}.method to copy: its files are at rest now",
        )
    argv = ["docker", "exec", running, "sh", "-c", tool.dump]
    ctx.say(f"{claim.name}: {tool.database} dump of {service}")
    return Outflow(ctx, host, argv, what=claim.name, sudo=False)


def _whole(pieces: Outflow, service: str, tool: Tool) -> None:
    if tool.head in pieces.head and tool.tail in pieces.tail:
        return
    raise Refused(
        f"the dump of {service} is not whole",
        why=f"{pieces.sent:,} bytes, without the {'end' if tool.tail not in pieces.tail else 'beginning'} "
        f"that a {tool.database} dump has",
        next_move=f"try: docker exec {service} sh -c '{tool.dump.split('; exec ')[-1]}' on the Docker host",
    )
