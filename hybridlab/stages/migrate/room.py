"""Whether there is room for what is to be copied: in each claim, and on the disk that claims of one node share."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hybridlab.compose.names import label
from hybridlab.errors import Refused
from hybridlab.ports import Context
from hybridlab.stages.helperpod import MOUNT, Seat, running_helper
from hybridlab.stages.nodes import NodeHost, node_hosts, on_all

EVICTS = 0.05
"""Below this share of free bytes K3s' kubelet evicts pods (its default for nodefs.available and imagefs.available)."""
ON_THE_NODE = ("local-path", "localpv")  # the engines whose claims are folders on their node's disk
COPIES = ("jiva", "longhorn", "cstor")  # those that keep a claim's bytes on several nodes


@dataclass(frozen=True)
class Room:
    """What a claim's file system has free, in bytes, and what lies in the claim already; ``disk`` tells two apart."""

    node: str
    disk: str
    total: int
    free: int
    held: int = 0


@dataclass(frozen=True)
class Load:
    """What is to come into a claim."""

    claim: str
    size: int
    room: Room

    @property
    def more(self) -> int:
        """What it takes beyond what lies there: a copy sends what is missing and writes over what differs."""
        return max(0, self.size - self.room.held)


def parse_room(node: str, output: str) -> Room:
    """What the helper's ``room`` prints."""
    row = json.loads(output)
    return Room(node, f"{node}/{row['device']}", int(row["total"]), int(row["free"]), int(row["held"]))


def room_of(ctx: Context, claim: str, seat: Seat | None) -> Room:
    """Look by a helper pod on the claim, where its services will run."""
    namespace, name = ctx.params.migrate.namespace, label(f"hybridlab-room-{claim}")
    with running_helper(ctx, namespace, name, {claim: MOUNT}, seat=seat) as call:
        pod = ctx.kube.get("v1", "Pod", name, namespace) or {}
        return parse_room(str(pod.get("spec", {}).get("nodeName", "")), call("room", MOUNT))


def need_room(ctx: Context, loads: Iterable[Load]) -> None:
    """Raises Refused, with numbers, for the first disk that would be full; a node's own keeps what K3s wants free."""
    disks: dict[str, list[Load]] = {}
    for load in loads:
        disks.setdefault(load.room.disk, []).append(load)
    for mine in disks.values():
        names = ", ".join(load.claim for load in mine)
        of_node = ctx.params.storage.engine in ON_THE_NODE
        what = f"node {mine[0].room.node}" if of_node else f"claim {names}"
        room = Room(what, "", mine[0].room.total, min(load.room.free for load in mine))
        _need(room, sum(load.more for load in mine), f"into {names}", own_disk=of_node)


def need_node_disks(ctx: Context, more: int) -> Mapping[str, int]:
    """For engines that keep each byte on several nodes: whether so many nodes' disks have room; free bytes by node.

    Nobody says beforehand which nodes it will be: those with the most room are taken.
    """
    storage = ctx.params.storage
    if storage.engine not in COPIES or not more:
        return {}
    disks = on_all(node_hosts(ctx), lambda node: _disk(ctx, node))
    best = sorted(disks.values(), key=lambda room: -room.free)[: storage.replicas]
    for room in best:
        _need(room, more, f"in {storage.replicas} copies", own_disk=True)
    return {name: room.free for name, room in disks.items()}


def _disk(ctx: Context, node: NodeHost) -> Room:
    out = ctx.hosts.run(node.host, ["df", "-B1", "--output=size,avail", "/var"]).stdout
    size, free = (int(word) for word in out.splitlines()[-1].split())
    return Room(f"node {node.host.name}", "", size, free)


def _need(room: Room, more: int, how: str, *, own_disk: bool) -> None:
    kept = int(room.total * EVICTS) if own_disk else 0
    if not more or more + kept <= room.free:
        return
    reason = f", and K3s evicts pods when less than {kept:,} are free" if own_disk else ""
    makes_room = "remove unused images (k3s crictl rmi --prune) and files there, or give it a larger disk"
    grows = "raise migrate.claim_gb (a claim of this class can't grow: delete it first, run 070)"
    raise Refused(
        f"{room.node} has no room for the data",
        why=f"{more:,} bytes are to come {how}, {room.free:,} of {room.total:,} are free{reason}",
        next_move=f"{makes_room if own_disk else grows}, then run it again: nothing was stopped or sent",
    )
