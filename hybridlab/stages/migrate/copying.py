"""Volume data from the Docker host into a claim: digest, stream, digest on both sides; the old volume is only read."""

from __future__ import annotations

import json
import posixpath
import queue
import threading
from collections.abc import Iterator, Mapping

from hybridlab.compose import ClaimSource
from hybridlab.errors import CommandFailed, HybridlabError, NotFound, Refused
from hybridlab.models import HostAddress, Json
from hybridlab.ports import Context
from hybridlab.stages.claims import Digest, differences, parse_digest
from hybridlab.stages.helperpod import MOUNT, running_helper
from hybridlab.stages.nodes import helper_source

DOCKER_HELPER = "/tmp/hybridlab/node_helper.py"
COPIED = "hybridlab.io/copied-sha256"
"""Annotation on a claim: the digest of the data that were copied into it. It lives in the cluster, so that a copy is
not made twice over data in use, even with the state folder lost."""
ROUNDS = 3
EXIT_CHANGED = 3  # the helper: done, but files changed or vanished while they were read
PIECES = 64  # of up to 64 KiB between the two streams


def source_path(ctx: Context, claim: ClaimSource, project: str) -> str:
    """Where a claim's data lie on the Docker host. Raises NotFound where Docker knows no such volume."""
    host = ctx.site.docker_host()
    if claim.kind == "volume":
        result = ctx.docker_hosts.run(host, ["docker", "volume", "inspect", claim.source], check=False)
        if result.exit_status != 0:
            raise NotFound(
                f"the Docker host has no volume {claim.source}",
                where=host.address,
                why=result.stderr.strip(),
                next_move="check migrate.project (docker volume ls shows the names)",
            )
        return str(json.loads(result.stdout)[0]["Mountpoint"])
    if claim.kind == "bind":
        return posixpath.normpath(posixpath.join(_working_dir(ctx, host, project), claim.source))
    raise NotFound(f"{claim.source} is an anonymous volume: its data can't be found by name", where=host.address)


def _working_dir(ctx: Context, host: HostAddress, project: str) -> str:
    """Compose notes the folder of the compose file as a label on every container."""
    argv = ["docker", "ps", "-a", "--filter", f"label=com.docker.compose.project={project}", "--format", "json"]
    for line in ctx.docker_hosts.run(host, argv).stdout.splitlines():
        name = json.loads(line)["Names"]
        found = json.loads(ctx.docker_hosts.run(host, ["docker", "inspect", name]).stdout)
        folder = found[0]["Config"]["Labels"].get("com.docker.compose.project.working_dir")
        if folder:
            return str(folder)
    raise NotFound(
        f"the Docker host runs no container of project {project}",
        where=host.address,
        next_move="set migrate.project to the project's name there (docker compose ls)",
    )


def copy_claim(ctx: Context, claim: ClaimSource, project: str) -> Mapping[str, Json]:
    """Copy until a whole round passes in which the source did not change, then compare both sides.

    Raises Refused when the source keeps changing, or when the claim holds other data than the source.
    """
    host, namespace = ctx.site.docker_host(), ctx.params.migrate.namespace
    path = source_path(ctx, claim, project)
    ctx.docker_hosts.put(host, helper_source(), DOCKER_HELPER, mode=0o755)
    before = _source_digest(ctx, host, path)
    changed: tuple[str, ...] = ()
    with running_helper(ctx, namespace, f"hybridlab-copy-{claim.name}"[:63].rstrip("-"), {claim.name: MOUNT}) as call:
        for number in range(1, ROUNDS + 1):
            ctx.say(f"{claim.name}: round {number}, {before.bytes:,} bytes from {claim.source}")
            with _archive(ctx, host, path) as pieces:
                call("extract", MOUNT, "--clean", stdin=iter(pieces))
            after = _source_digest(ctx, host, path)
            changed = pieces.changed or differences(before.entries, after.entries)
            if not changed:
                break
            ctx.say(f"{claim.name}: the source changed while it was copied: {', '.join(changed[:3])}")
            before = after
        else:
            raise Refused(
                f"{claim.source} keeps changing while it is copied",
                where=f"{host.address}:{path}",
                why="; ".join(changed[:3]),
                next_move="stop the services that write to it on the Docker host, then run 070 again",
            )
        copied = parse_digest(call("digest", MOUNT))
    wrong = differences(after.entries, copied.entries)
    if wrong:
        raise Refused(
            f"claim {claim.name} does not hold what the source holds",
            where=f"{host.address}:{path}",
            why="; ".join(wrong[:3]),
            next_move="run 070 again: it copies the claim anew",
        )
    mark = {"metadata": {"annotations": {COPIED: copied.sha256}}}
    ctx.kube.patch("v1", "PersistentVolumeClaim", claim.name, namespace, mark)
    return {"sha256": copied.sha256, "source_sha256": after.sha256, "bytes": after.bytes, "rounds": number}


def _source_digest(ctx: Context, host: HostAddress, path: str) -> Digest:
    pieces: list[bytes] = []
    argv = ["python3", DOCKER_HELPER, "digest", path]
    try:
        ctx.docker_hosts.stream(host, argv, stdout=pieces.append, sudo=True, timeout_s=3600)
    except CommandFailed as error:
        if error.exit_status != EXIT_CHANGED:  # what changed while it was read shows as a difference to the next digest
            raise
    return parse_digest(b"".join(pieces).decode())


class _archive:  # noqa: N801 - used as a context manager, like contextlib's own
    """The archive of a folder on the Docker host as an iterator of pieces, bounded in memory.

    The SSH stream runs in a thread of its own; its error is raised where the pieces are read.
    """

    def __init__(self, ctx: Context, host: HostAddress, path: str) -> None:
        self._pieces: queue.Queue[bytes | None] = queue.Queue(PIECES)
        self._error: HybridlabError | None = None
        self._stopped = threading.Event()
        self.changed: tuple[str, ...] = ()
        self._thread = threading.Thread(target=self._pump, args=(ctx, host, path), daemon=True)

    def _pump(self, ctx: Context, host: HostAddress, path: str) -> None:
        try:
            ctx.docker_hosts.stream(
                host, ["python3", DOCKER_HELPER, "archive", path], stdout=self._put, sudo=True, timeout_s=24 * 3600
            )
        except CommandFailed as error:
            if error.exit_status == EXIT_CHANGED:
                self.changed = ((error.stderr.strip().splitlines()[-1:] or ["a file changed while it was read"])[0],)
            else:
                self._error = error
        except HybridlabError as error:
            self._error = error
        self._put(None)

    def _put(self, piece: bytes | None) -> None:
        while not self._stopped.is_set():
            try:
                self._pieces.put(piece, timeout=0.5)
            except queue.Full:
                continue
            return

    def __enter__(self) -> _archive:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopped.set()
        self._thread.join(timeout=30)

    def __iter__(self) -> Iterator[bytes]:
        while (piece := self._pieces.get()) is not None:
            yield piece
        if self._error is not None:
            raise self._error
