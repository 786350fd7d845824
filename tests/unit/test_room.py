"""Room on disks and in claims before anything is copied: counted by disk, told in numbers, with what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fakes import FakeContext, FakeHosts, FakeOracle, make_params, vm

from hybridlab.errors import Refused
from hybridlab.stages.migrate.room import Load, Room, need_node_disks, need_room, parse_room

GB = 10**9


def room(free: float, *, held: float = 0, disk: str = "arm-1/1", total: float = 100) -> Room:
    return Room("arm-1", disk, int(total * GB), int(free * GB), int(held * GB))


def context(folder: Path, engine: str, df: str = "", **changes: Any) -> FakeContext:
    oracle = FakeOracle()
    oracle.vms = [vm("arm-1"), vm("arm-2"), vm("amd-1", "amd64")]
    ctx = FakeContext(folder, make_params({"storage.engine": engine, **changes}), oracle=oracle)

    def answer(name: str, argv: tuple[str, ...]) -> tuple[int, str]:
        assert argv == ("df", "-B1", "--output=size,avail", "/var")
        free = dict(pair.split("=") for pair in df.split())
        return 0, f"1B-blocks Avail\n{100 * GB} {int(free[name]) * GB}\n"

    ctx.hosts = FakeHosts(answer)
    return ctx


@pytest.mark.parametrize(
    ("engine", "loads", "said"),
    [
        ("local-path", [(10, room(20))], ""),
        ("local-path", [(16, room(20))], r"node arm-1 .*16,000,000,000 bytes are to come into a, 20,000,000,000 of "
         r"100,000,000,000 are free, and K3s evicts pods when less than 5,000,000,000"),
        ("local-path", [(16, room(20, held=2))], ""),
        # two claims on one disk, each of which would fit
        ("local-path", [(8, room(20)), (8, room(20))], "16,000,000,000 bytes are to come into a, b"),
        ("local-path", [(8, room(20)), (8, room(20, disk="arm-2/1"))], ""),
        ("local-path", [(30, room(1, held=30))], ""),
        # a volume of its own may be filled to the brim
        ("jiva", [(16, room(20, total=20))], ""),
        ("jiva", [(21, room(20, total=20))], "claim a has no room .*21,000,000,000 .* 20,000,000,000 of 20,"),
    ],
)  # fmt: skip
def test_room_by_disk(tmp_path: Path, engine: str, loads: list[tuple[int, Room]], said: str) -> None:
    ctx = context(tmp_path, engine)
    wanted = [Load(name, size * GB, found) for name, (size, found) in zip("ab", loads, strict=False)]
    if not said:
        need_room(ctx, wanted)
        return
    with pytest.raises(Refused, match=said) as caught:
        need_room(ctx, wanted)
    assert "claim_gb" in caught.value.next_move or "k3s crictl rmi --prune" in caught.value.next_move


@pytest.mark.parametrize(
    ("engine", "df", "more", "said"),
    [
        ("jiva", "arm-1=50 arm-2=30 amd-1=2", 20, ""),  # two copies: the small node need not have one
        ("jiva", "arm-1=50 arm-2=20 amd-1=2", 20, "node arm-2 has no room .* in 2 copies, 20,000,000,000 of"),
        ("local-path", "", 20, ""),
        ("jiva", "arm-1=1 arm-2=1 amd-1=1", 0, ""),
    ],
)
def test_the_disks_behind_an_engine_that_keeps_copies(
    tmp_path: Path, engine: str, df: str, more: int, said: str
) -> None:
    ctx = context(tmp_path, engine, df, **{"storage.replicas": 2})
    if said:
        with pytest.raises(Refused, match=said):
            need_node_disks(ctx, more * GB)
    else:
        need_node_disks(ctx, more * GB)


def test_what_the_helper_prints() -> None:
    assert parse_room("n", '{"device": 3, "total": 9, "free": 4, "held": 2}\n') == Room("n", "n/3", 9, 4, 2)
