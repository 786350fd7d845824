"""The hunt for capacity in another process: it takes up where the last one was, and asks no earlier than planned."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeClock, FakeContext, FakeOracle, make_params, network, vm

from hybridlab.errors import DeadlineExceeded, LimitReached, OutOfCapacity, TooManyRequests
from hybridlab.models import LaunchRequest
from hybridlab.stages import provision

LAYOUT: dict[str, Any] = {"layout": {"refused": []}}
FULL = OutOfCapacity("no", status=500, code="InternalError", why="Out of host capacity.")
BUSY = TooManyRequests("no", status=429, code="TooManyRequests", why="slow down")


class Killed(BaseException):
    """The process is gone."""


class MortalClock(FakeClock):
    """A clock on which the process dies after so many sleeps, when it has slept half."""

    def __init__(self, start: float, lives: int | None) -> None:
        super().__init__(start)
        self.lives = lives

    def sleep(self, seconds: float) -> None:
        if self.lives == 0:
            self.time += seconds / 2
            raise Killed
        if self.lives is not None:
            self.lives -= 1
        super().sleep(seconds)


class World:
    """What outlives a process: the cluster's folder, Oracle, and time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.oracle = FakeOracle()
        self.oracle.things = list(network())
        self.now = 1_000.0
        self.asked: list[tuple[float, str]] = []  # when, and in which domain

    def answers(self, *errors: BaseException | None) -> None:
        def one(error: BaseException | None) -> Callable[[LaunchRequest], None]:
            def answer(request: LaunchRequest) -> None:
                self.asked.append((self.context.clock.now(), request.availability_domain))
                if error is not None:
                    raise error

            return answer

        self.oracle.answers = [one(error) for error in errors]

    def launch(self, lives: int | None = None, **changes: Any) -> dict[str, Any]:
        """One process that launches arm-1; raises Killed where it is killed."""
        self.context = FakeContext(self.folder, make_params(changes), oracle=self.oracle)
        self.context.clock = MortalClock(self.now, lives)
        self.context.secrets.put("ssh_key.pub", "ssh-ed25519 AAAA test\n")
        self.context.secrets.put("ssh_key", "private")
        steps = provision.plan(self.context.params, provision.look(self.context), LAYOUT).steps
        self.step = next(s for s in steps if s.id == "launch:arm-1")
        try:
            return dict(provision.ACTIONS["launch"](self.context, self.step))
        finally:
            self.now = self.context.clock.now()

    @property
    def file(self) -> Path:
        return self.folder / "state" / "homelab" / "hunts" / "arm-1.json"

    def planned(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.file.read_text(encoding="utf-8"))
        return found


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_killed_hunt_keeps_its_pause_and_its_attempts(world: World) -> None:
    world.answers(*[FULL] * 7, None)
    with pytest.raises(Killed):
        world.launch(lives=1)  # three domains, a pause, three domains, killed in the second pause
    assert len(world.asked) == 6
    planned = world.planned()
    assert world.now < planned["next_at"]
    assert planned["pause_s"] == pytest.approx(30 * 1.5**2)
    made = world.launch()
    when, domain = world.asked[6]
    assert when == pytest.approx(planned["next_at"]), "not earlier than the last process had planned, nor later"
    assert domain == "AD-1"
    assert [a["answer"] for a in made["attempts"]] == ["out of capacity"] * 7 + ["accepted"]
    said = next(line for line in world.context.said if "goes on" in line)
    assert "6 attempts so far, last answer: out of capacity; next in" in said
    assert not world.file.exists(), "the hunt is over"


def test_the_deadline_counts_from_the_hunts_beginning(world: World) -> None:
    world.answers(*[FULL] * 1000)
    for _ in range(3):
        with pytest.raises(Killed):
            world.launch(lives=0, **{"provision.capacity_deadline_s": 200})
    with pytest.raises(DeadlineExceeded) as caught:
        world.launch(**{"provision.capacity_deadline_s": 200})
    assert world.now == pytest.approx(1_200)
    assert f"{len(world.asked)} attempts" in caught.value.why
    times = sorted({when for when, _ in world.asked})
    assert all(later - earlier >= 0.75 * 30 for earlier, later in pairwise(times[:-1]))


def test_a_hunt_killed_in_a_round_does_not_ask_the_same_domain_again(world: World) -> None:
    world.answers(FULL, BUSY, FULL, None)
    with pytest.raises(Killed):
        world.launch(lives=0)  # AD-1 is full, AD-2 says 429: killed while it waits
    planned = world.planned()["next_at"]
    made = world.launch()
    assert [domain for _, domain in world.asked] == ["AD-1", "AD-2", "AD-2", "AD-3"]
    assert world.asked[2][0] == pytest.approx(planned)
    assert [a["availability_domain"] for a in made["attempts"]] == ["AD-1", "AD-2", "AD-3"]


def test_after_the_deadline_a_new_hunt_begins_but_not_before_the_pause(world: World) -> None:
    world.answers(*[FULL] * 3, None)
    with pytest.raises(DeadlineExceeded):
        world.launch(**{"provision.capacity_deadline_s": 0})
    began = world.now
    made = world.launch(**{"provision.capacity_deadline_s": 0})
    assert 0.75 * 30 <= world.asked[-1][0] - began <= 1.25 * 30
    assert [a["answer"] for a in made["attempts"]] == ["accepted"]


def test_a_vm_that_the_killed_process_got_is_taken_with_the_attempts(world: World) -> None:
    world.answers(FULL, FULL, FULL)
    with pytest.raises(Killed):
        world.launch(lives=0)
    request, _ = world.oracle.launches[-1]
    world.oracle.add(request)
    made = dict(provision.ACTIONS["launch"](world.context, world.step))
    assert len(made["attempts"]) == 3
    assert len(world.asked) == 3
    assert not world.file.exists()


@pytest.mark.parametrize("change", [{"nodes.arm-1.ocpus": 1.0, "nodes.arm-1.memory_gb": 6.0}, "half a file"])
def test_another_wish_or_a_broken_file_begins_anew(world: World, change: Any) -> None:
    world.answers(*[FULL] * 3, None)
    with pytest.raises(Killed):
        world.launch(lives=0)
    changes = change if isinstance(change, dict) else {}
    if not changes:
        world.file.write_text('{"schema": 1, "wan', encoding="utf-8")
    assert [a["answer"] for a in world.launch(**changes)["attempts"]] == ["accepted"]


def test_what_ends_a_hunt_is_not_waited_for_the_next_time(world: World) -> None:
    """A limit was raised meanwhile: the next run asks at once."""
    world.oracle.vms = [vm("somebody", tags={})]
    world.answers(FULL, LimitReached("no", status=400, code="LimitExceeded", why="core-count"), None)
    with pytest.raises(LimitReached):
        world.launch()
    before = world.now
    world.launch()
    assert world.asked[-1][0] == before
