"""The server's datastore (SQLite) copied whole, and put back: what an upgrade or a mistake can be undone with.

K3s is stopped for the copy, since a file copied while it is written to may not be readable; pods go on running. With
the copy lies the server's token: without it the bootstrap data inside can't be decrypted
(https://docs.k3s.io/datastore/backup-restore).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime

from hybridlab.errors import NotFound
from hybridlab.models import Json
from hybridlab.ports import Context
from hybridlab.stages.nodes import NodeHost
from hybridlab.wait import wait_until

SERVER = "/var/lib/rancher/k3s/server"
DATASTORE = f"{SERVER}/db"
SNAPSHOTS = "/var/lib/hybridlab/snapshots"
RESTORED = f"{SNAPSHOTS}/.restored"
API_DEADLINE_S = 180.0
KEPT = ("db", "token", "cred", "tls")
"""What belongs together: the data, the token that opens it, and the certificates that nodes know."""


def snapshots(ctx: Context, server: NodeHost) -> tuple[str, ...]:
    """Names of the snapshots on the server, oldest first."""
    listed = ctx.hosts.run(server.host, ["ls", "-1", SNAPSHOTS], sudo=True, check=False)
    return tuple(sorted(line for line in listed.stdout.split() if re.fullmatch(r"\d{8}T\d{6}Z-\S+", line)))


def take_snapshot(ctx: Context, server: NodeHost, name: str) -> Mapping[str, Json]:
    """Copy the datastore into a snapshot of that name; K3s is down for the copy and up again after it."""
    folder, half = f"{SNAPSHOTS}/{name}", f"{SNAPSHOTS}/.{name}"

    def run(*argv: str) -> str:
        return ctx.hosts.run(server.host, argv, sudo=True, timeout_s=300).stdout

    run("mkdir", "-p", SNAPSHOTS)
    run("chmod", "700", SNAPSHOTS)
    run("rm", "-rf", half)
    run("mkdir", half)
    run("systemctl", "stop", "k3s")
    try:
        run("cp", "-a", *(f"{SERVER}/{part}" for part in _there(ctx, server)), half)
    finally:
        run("systemctl", "start", "k3s")
    run("mv", half, folder)
    run("rm", "-f", RESTORED)
    _await_api(ctx, server)
    return {"snapshot": name, "files": len(run("ls", folder).split())}


def restore_snapshot(ctx: Context, server: NodeHost, name: str) -> Mapping[str, Json]:
    """Put a snapshot back; what was there is kept beside the others as ``….replaced``. Raises NotFound."""
    if name not in snapshots(ctx, server):
        move = "see 910's look for their names"
        raise NotFound(f"there is no snapshot {name}", where=server.wish.name, next_move=move)

    def run(*argv: str) -> None:
        ctx.hosts.run(server.host, argv, sudo=True, timeout_s=300)

    replaced = f"{SNAPSHOTS}/.replaced"
    run("systemctl", "stop", "k3s")
    run("rm", "-rf", replaced)
    run("mkdir", replaced)
    for part in _there(ctx, server):
        run("mv", f"{SERVER}/{part}", replaced)
    listed = ctx.hosts.run(server.host, ["ls", "-1", f"{SNAPSHOTS}/{name}"], sudo=True).stdout.split()
    run("cp", "-a", *(f"{SNAPSHOTS}/{name}/{part}" for part in listed), SERVER)
    ctx.hosts.put(server.host, name.encode() + b"\n", RESTORED, mode=0o600, sudo=True)
    run("systemctl", "start", "k3s")
    _await_api(ctx, server)
    return {"restored": name}


def restored(ctx: Context, server: NodeHost) -> str:
    """Which snapshot was put back last; empty when another was taken since."""
    return ctx.hosts.run(server.host, ["cat", RESTORED], sudo=True, check=False).stdout.strip()


def new_name(reason: str) -> str:
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{reason}"


def age_h(name: str, now: datetime) -> float:
    """How old a snapshot is by its name, in hours."""
    made = datetime.strptime(name.partition("-")[0], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    return (now - made).total_seconds() / 3600


def _await_api(ctx: Context, server: NodeHost) -> None:
    """Until the API answers again; nothing to wait for while there is no kubeconfig yet."""
    if not (ctx.state / "kubeconfig").exists():
        return
    wait_until(
        lambda: ctx.kube_or_none is not None,
        bool,
        what=f"the API of {server.wish.name} to answer again",
        deadline_s=API_DEADLINE_S,
        clock=ctx.clock,
        describe=lambda up: "up" if up else "no answer",
        next_move=f"look at: journalctl -u k3s on {server.wish.name}",
    )


def _there(ctx: Context, server: NodeHost) -> tuple[str, ...]:
    listed = ctx.hosts.run(server.host, ["ls", "-1", SERVER], sudo=True).stdout.split()
    return tuple(part for part in KEPT if part in listed)
