"""Volume data from the Docker host into a claim: digest, stream, digest on both sides; the old volume is only read.

What a claim holds already is not sent again, so that a copy that broke off goes on, and a later one sends the changes.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Mapping

from hybridlab.compose import ClaimSource
from hybridlab.compose.names import label
from hybridlab.errors import CommandFailed, Refused
from hybridlab.models import HostAddress, Json
from hybridlab.ports import Context
from hybridlab.stages.claims import Digest, differences, parse_digest
from hybridlab.stages.helperpod import MOUNT, Seat, running_helper
from hybridlab.stages.migrate.dockerside import source_path
from hybridlab.stages.migrate.room import Load, need_room, parse_room
from hybridlab.stages.migrate.streams import DEADLINE_S, EXIT_CHANGED, Outflow
from hybridlab.stages.nodes import HELPER, helper_source

COPIED = "hybridlab.io/copied-sha256"
"""Annotation on a claim: the digest of the data that were copied into it. It lives in the cluster, so that a copy is
not made twice over data in use, even with the state folder lost."""
ROUNDS = 3
FULL = "No space left on device"

Call = Callable[..., str]


def copy_claim(
    ctx: Context, claim: ClaimSource, project: str, *, seat: Seat | None = None, final: bool = True
) -> Mapping[str, Json]:
    """Copy until a whole round passes in which the source did not change, then compare both sides.

    With ``final`` False one round is made, the source may change, and the claim is not marked: a later delta is small.
    Raises Refused when the source keeps changing, or when the claim holds other data than the source.
    """
    host, namespace = ctx.site.docker_host(), ctx.params.migrate.namespace
    path = source_path(ctx, claim, project)
    ctx.docker_hosts.put(host, helper_source(), HELPER, mode=0o755, sudo=True)
    before = _source_digest(ctx, host, path)
    _same_shape(claim, before, f"{host.address}:{path}")
    inside = f"{MOUNT}/{claim.file}" if claim.file else MOUNT
    pod = label(f"hybridlab-copy-{claim.name}")
    sent, delta = 0, True
    changed: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()
    with running_helper(ctx, namespace, pod, {claim.name: MOUNT}, seat=seat) as call:
        node = str((ctx.kube.get("v1", "Pod", pod, namespace) or {}).get("spec", {}).get("nodeName", ""))
        need_room(ctx, [Load(claim.name, before.size, parse_room(node, call("room", MOUNT)))])
        for number in range(1, ROUNDS + 1):
            ctx.say(f"{claim.name}: round {number}, {before.bytes:,} bytes in {claim.source}")
            argv = ["python3", HELPER, "archive", path, *(_have(ctx, host, claim, call) if delta else ())]
            with Outflow(ctx, host, argv, what=claim.name, sudo=True, total=before.bytes) as pieces:
                _extract(call, pieces, claim)
            sent += pieces.sent
            if not final:
                return {"bytes": before.bytes, "sent": sent, "changed_meanwhile": bool(pieces.changed)}
            after = _source_digest(ctx, host, path)
            changed = pieces.changed or differences(before.entries, after.entries)
            if changed:
                ctx.say(f"{claim.name}: the source changed while it was copied: {', '.join(changed[:3])}")
                before = after
                continue
            copied = parse_digest(call("digest", inside, timeout_s=DEADLINE_S))
            wrong = differences(after.entries, copied.entries)
            if not wrong:
                break
            # times and sizes said that a file was there already, its content says otherwise: send everything
            delta = False
        else:
            raise _given_up(claim, f"{host.address}:{path}", changed, wrong)
    mark_copied(ctx, claim, copied.sha256)
    return {
        "sha256": copied.sha256,
        "source_sha256": after.sha256,
        "bytes": after.bytes,
        "sent": sent,
        "rounds": number,
    }


def mark_copied(ctx: Context, claim: ClaimSource, digest: str) -> None:
    mark = {"metadata": {"annotations": {COPIED: digest}}}
    ctx.kube.patch("v1", "PersistentVolumeClaim", claim.name, ctx.params.migrate.namespace, mark)


def source_size(ctx: Context, claim: ClaimSource, project: str) -> int:
    """How many bytes a claim's source has, by the files' sizes. Raises NotFound where there is none."""
    host, path = ctx.site.docker_host(), source_path(ctx, claim, project)
    ctx.docker_hosts.put(host, helper_source(), HELPER, mode=0o755, sudo=True)
    return _source_digest(ctx, host, path, "--quick").size


def _have(ctx: Context, host: HostAddress, claim: ClaimSource, call: Call) -> tuple[str, ...]:
    """What the claim holds already, put beside the helper on the Docker host; nothing for an empty claim.

    Of a large file that broke off too: how much there is of it, with its checksum.
    """
    lines = call("digest", MOUNT, "--quick", timeout_s=DEADLINE_S)
    if not any('"type": "file"' in line or '"type": "part"' in line for line in lines.splitlines()):
        return ()
    there = posixpath.join(posixpath.dirname(HELPER), f"have-{claim.name}.jsonl")
    ctx.docker_hosts.put(host, lines.encode(), there, mode=0o600, sudo=True)
    return (f"--have={there}",)


def _extract(call: Call, pieces: Outflow, claim: ClaimSource) -> None:
    try:
        call("extract", MOUNT, "--clean", stdin=iter(pieces), timeout_s=DEADLINE_S)
    except Refused as error:
        if FULL not in error.why:
            raise
        raise Refused(
            f"claim {claim.name} is full",
            where=error.where,
            why=f"it has {claim.size}, {claim.source} does not fit",
            next_move="raise migrate.claim_gb (a claim of this class can't grow: delete it first), then run 070 again",
        ) from error


def _same_shape(claim: ClaimSource, found: Digest, where: str) -> None:
    """Whether it is a file or a folder there as the manifests mount it; the compose file alone can't always tell."""
    if bool(claim.file) == ("." not in found.entries):
        return
    raise Refused(
        f"{claim.source} is a {'folder' if claim.file else 'file'} on the Docker host, "
        f"and the manifests mount it as a {'file' if claim.file else 'folder'}",
        where=where,
        next_move="put the project's files beside the compose file, as they are on the Docker host, and run 070 again",
    )


def _given_up(claim: ClaimSource, where: str, changed: tuple[str, ...], wrong: tuple[str, ...]) -> Refused:
    if changed:
        return Refused(
            f"{claim.source} keeps changing while it is copied",
            where=where,
            why="; ".join(changed[:3]),
            next_move="set migrate.data.<service>.method to stop, or to dump for a database, then run 070 again",
        )
    return Refused(
        f"claim {claim.name} does not hold what the source holds",
        where=where,
        why="; ".join(wrong[:3]),
        next_move="run 070 again: it copies the claim anew",
    )


def _source_digest(ctx: Context, host: HostAddress, path: str, *options: str) -> Digest:
    pieces: list[bytes] = []
    argv = ["python3", HELPER, "digest", path, *options]
    try:
        ctx.docker_hosts.stream(host, argv, stdout=pieces.append, sudo=True, timeout_s=DEADLINE_S)
    except CommandFailed as error:
        if error.exit_status != EXIT_CHANGED:  # what changed while it was read shows as a difference to the next digest
            raise
    return parse_digest(b"".join(pieces).decode())
