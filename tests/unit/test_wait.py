"""The wait loop on a clock that only sleep moves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fakes import FakeClock

from hybridlab.errors import DeadlineExceeded
from hybridlab.wait import SystemClock, wait_until


def counter() -> Callable[[], int]:
    seen = iter(range(1, 10_000))
    return lambda: next(seen)


def test_returns_what_was_seen_without_sleeping() -> None:
    clock = FakeClock()
    assert wait_until(lambda: "up", lambda s: s == "up", what="x", deadline_s=10, clock=clock) == "up"
    assert clock.slept == []


def test_pauses_grow_by_half_up_to_the_maximum() -> None:
    clock = FakeClock()
    seen = wait_until(
        counter(), lambda n: n == 7, what="x", deadline_s=100, clock=clock, interval_s=1, interval_max_s=3
    )
    assert seen == 7
    assert clock.slept == [1, 1.5, 2.25, 3, 3, 3]


def test_gives_up_at_the_deadline_and_tells_the_last_state() -> None:
    clock = FakeClock(start=50)
    with pytest.raises(DeadlineExceeded) as caught:
        wait_until(
            counter(),
            lambda n: False,
            what="node arm-1 to be Ready",
            deadline_s=10,
            clock=clock,
            interval_s=4,
            describe=lambda n: f"look {n}",
            next_move="read its journal",
        )
    assert clock.now() == 60
    assert clock.slept == [4, 5, 1]  # the last pause ends at the deadline, and it looks once more then
    assert caught.value.what == "gave up waiting for node arm-1 to be Ready after 10 s"
    assert caught.value.why == "last seen: look 4"
    assert caught.value.next_move == "read its journal"
    assert caught.value.exit_code == 5


def test_looks_once_with_no_time_at_all() -> None:
    assert wait_until(lambda: 1, bool, what="x", deadline_s=0, clock=FakeClock()) == 1
    looks = counter()
    with pytest.raises(DeadlineExceeded):
        wait_until(looks, lambda n: False, what="x", deadline_s=0, clock=FakeClock())
    assert looks() == 2


def test_progress_is_told_only_while_waiting() -> None:
    said: list[str] = []
    wait_until(
        counter(),
        lambda n: n == 3,
        what="pods",
        deadline_s=10,
        clock=FakeClock(),
        describe=lambda n: f"{n} up",
        progress=said.append,
    )
    assert said == ["pods: 1 up", "pods: 2 up"]


def test_errors_of_the_look_pass() -> None:
    def broken() -> int:
        raise KeyError("x")

    with pytest.raises(KeyError):
        wait_until(broken, bool, what="x", deadline_s=10, clock=FakeClock())


def test_the_system_clock_moves() -> None:
    clock = SystemClock()
    before = clock.now()
    clock.sleep(0.002)
    assert clock.now() > before > 1_600_000_000
