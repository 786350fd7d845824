"""The generic apply: order, batches, what the ledger hears, how a failure ends."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeContext

from hybridlab.errors import (
    BadInput,
    DeadlineExceeded,
    HybridlabError,
    Interrupted,
    NotFound,
    Refused,
    StepFailed,
    Unreachable,
)
from hybridlab.models import Finding
from hybridlab.plan import Plan, Step
from hybridlab.stages.base import StepOutcome, apply
from hybridlab.wait import SystemClock, wait_until


def step(name: str, action: str = "ok", batch: str = "") -> Step:
    return Step(name, action, f"target {name}", f"why {name}", "create", {"x": 1}, batch=batch)


def plan(*steps: Step, findings: tuple[Finding, ...] = ()) -> Plan:
    return Plan("stage", steps, {}, findings)


class Actions(dict[str, Any]):
    """``ok`` takes two seconds of the fake clock; ``raise:<error>`` raises."""

    def __init__(self, **errors: BaseException) -> None:
        self.ran: list[str] = []
        super().__init__(ok=self._ok, **{name: self._raise(error) for name, error in errors.items()})

    def _ok(self, ctx: Any, step: Step) -> Mapping[str, Any]:
        self.ran.append(step.id)
        ctx.clock.sleep(2)
        return {"id": f"made-{step.id}"}

    def _raise(self, error: BaseException) -> Any:
        def action(ctx: Any, step: Step) -> Mapping[str, Any]:
            self.ran.append(step.id)
            raise error

        return action


@pytest.fixture
def ctx(tmp_path: Path) -> FakeContext:
    return FakeContext(tmp_path)


def events(ctx: FakeContext) -> list[tuple[str, str]]:
    return [(row.step, row.event) for row in ctx.ledger.rows()]


def test_steps_in_order_with_rows_before_and_after(ctx: FakeContext) -> None:
    actions, heard = Actions(), list[StepOutcome]()
    outcomes = apply(ctx, plan(step("a"), step("b")), actions, on_step=heard.append)
    assert actions.ran == ["a", "b"]
    assert events(ctx) == [("a", "started"), ("a", "done"), ("b", "started"), ("b", "done")]
    assert [(o.step.id, o.event, o.seconds, o.detail) for o in outcomes] == [
        ("a", "done", 2.0, {"id": "made-a"}),
        ("b", "done", 2.0, {"id": "made-b"}),
    ]
    assert tuple(heard) == outcomes
    started, done = ctx.ledger.rows()[:2]
    assert (started.stage, started.effect, started.target, dict(started.detail)) == (
        "stage",
        "create",
        "target a",
        {"why": "why a"},
    )
    assert (done.effect, done.target, dict(done.detail)) == ("create", "target a", {"id": "made-a", "seconds": 2.0})
    assert ctx.said == ["target a: a …", "target b: b …"]


def test_the_row_is_written_before_the_action_runs(ctx: FakeContext) -> None:
    seen: list[list[tuple[str, str]]] = []

    def action(c: Any, s: Step) -> Mapping[str, Any]:
        seen.append(events(ctx))
        return {}

    apply(ctx, plan(step("a")), {"ok": action})
    assert seen == [[("a", "started")]]


def test_a_batch_runs_at_the_same_time_and_another_after_it(ctx: FakeContext) -> None:
    together = threading.Barrier(3)
    order: list[str] = []

    def meet(c: Any, s: Step) -> Mapping[str, Any]:
        together.wait(timeout=10)  # passes only when all three are here
        order.append("batch")
        return {}

    def alone(c: Any, s: Step) -> Mapping[str, Any]:
        order.append(s.id)
        return {}

    batch = [step(n, "meet", "b") for n in "xyz"]
    outcomes = apply(ctx, plan(step("first", "alone"), *batch, step("last", "alone")), {"meet": meet, "alone": alone})
    assert order == ["first", "batch", "batch", "batch", "last"]
    assert [o.step.id for o in outcomes] == ["first", "x", "y", "z", "last"]


def test_steps_without_a_batch_never_share_one(ctx: FakeContext) -> None:
    at_once = 0

    def one(c: Any, s: Step) -> Mapping[str, Any]:
        nonlocal at_once
        at_once += 1
        assert at_once == 1
        at_once -= 1
        return {}

    apply(ctx, plan(*(step(n, "one") for n in "abcd")), {"one": one})
    # two neighbours of different batches neither
    other = threading.Barrier(2)

    def lonely(c: Any, s: Step) -> Mapping[str, Any]:
        with pytest.raises(threading.BrokenBarrierError):
            other.wait(timeout=0.05)
        other.reset()
        return {}

    apply(ctx, plan(step("p", "lonely", "one"), step("q", "lonely", "two")), {"lonely": lonely})


@pytest.mark.parametrize(
    ("error", "event", "said", "exit_code"),
    [
        (NotFound("our vcn is not there", next_move="run 020"), "failed", "failed", 4),
        (Unreachable("no answer", why="reset"), "unknown", "has an unknown outcome", 4),
        (DeadlineExceeded("gave up"), "failed", "failed", 5),
        (BadInput("bad"), "failed", "failed", 2),
    ],
)
def test_a_failure_stops_the_plan_and_is_told(
    ctx: FakeContext, error: HybridlabError, event: str, said: str, exit_code: int
) -> None:
    actions, heard = Actions(bad=error), list[StepOutcome]()
    with pytest.raises(StepFailed) as caught:
        apply(ctx, plan(step("a"), step("b", "bad"), step("c")), actions, on_step=heard.append)
    assert actions.ran == ["a", "b"]
    assert events(ctx)[2:] == [("b", "started"), ("b", event)]
    assert str(error) == ctx.ledger.rows()[-1].detail["error"]
    assert [o.event for o in heard] == ["done", event]
    assert caught.value.what == f"stage: step b {said}"
    assert caught.value.where == "target b"
    assert caught.value.why.startswith(error.what)
    assert caught.value.why.count("next:") == 0
    assert caught.value.next_move == (error.next_move or "run it again: it looks at what is there and goes on")
    assert caught.value.exit_code == exit_code
    assert caught.value.__cause__ is error
    assert ctx.ledger.open_steps("stage") == (("b",) if event == "unknown" else ())


def test_the_rest_of_a_batch_is_finished_before_the_failure_is_raised(ctx: FakeContext) -> None:
    actions = Actions(bad=Refused("no"))
    with pytest.raises(StepFailed, match="step x"):
        apply(ctx, plan(step("x", "bad", "b"), step("y", "ok", "b"), step("z")), actions)
    assert sorted(actions.ran) == ["x", "y"]
    assert ("y", "done") in events(ctx)


def test_a_bug_passes_as_it_is_and_the_ledger_still_hears(ctx: FakeContext) -> None:
    with pytest.raises(ZeroDivisionError):
        apply(ctx, plan(step("a", "bug")), Actions(bug=ZeroDivisionError("x")))
    assert events(ctx) == [("a", "started"), ("a", "failed")]


def test_ctrl_c(ctx: FakeContext) -> None:
    actions = Actions(stop=KeyboardInterrupt())
    with pytest.raises(Interrupted) as caught:
        apply(ctx, plan(step("a", "stop"), step("b")), actions)
    assert events(ctx) == [("a", "started"), ("a", "interrupted")]
    assert ctx.ledger.open_steps("stage") == ("a",)
    assert (ctx.ledger.rows()[-1].target, ctx.ledger.rows()[-1].effect) == ("target a", "create")
    assert caught.value.exit_code == 6
    assert actions.ran == ["a"]


def test_ctrl_c_ends_steps_that_run_in_parallel_and_each_row_is_true(ctx: FakeContext) -> None:
    """One is done before, eight wait for long, one may never begin: the pool has eight places."""
    ctx.clock = SystemClock()  # type: ignore[assignment]
    waiting = threading.Barrier(9)

    def quick(c: Any, s: Step) -> Mapping[str, Any]:
        return {}

    def slow(c: Any, s: Step) -> Mapping[str, Any]:
        waiting.wait(20)
        wait_until(lambda: False, bool, what="the end of the world", deadline_s=45, clock=c.clock)
        return {}

    def stop() -> None:
        waiting.wait(20)
        os.kill(os.getpid(), signal.SIGINT)

    steps = [
        step("done", "quick", "b"),
        *(step(f"slow-{n}", "slow", "b") for n in range(8)),
        step("last", "quick", "b"),
    ]
    threading.Thread(target=stop, daemon=True).start()
    begun = time.monotonic()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits "ignored"
    try:
        with pytest.raises(Interrupted):
            apply(ctx, plan(*steps), {"quick": quick, "slow": slow})
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - begun < 30, "most of the wait was left"
    last = {row.step: row.event for row in ctx.ledger.rows()}
    assert last.pop("done") == "done"
    last.pop("last", None)  # began or not: where it did, it was quick
    assert last == {f"slow-{n}": "interrupted" for n in range(8)}
    assert set(ctx.ledger.open_steps("stage")) == set(last)
    assert sum(row.event == "interrupted" for row in ctx.ledger.rows()) == 8, "one row each"


def test_what_begins_after_ctrl_c_is_not_interrupted(ctx: FakeContext) -> None:
    clock = SystemClock()
    clock.interrupt()
    ended: list[str] = []
    thread = threading.Thread(target=lambda: (clock.sleep(0.01), ended.append("slept")))  # type: ignore[func-returns-value]
    thread.start()
    thread.join(10)
    clock.sleep(0.01)
    assert ended == ["slept"]


def test_a_plan_with_a_refusal_is_not_applied(ctx: FakeContext) -> None:
    findings = (Finding("warning", "w", "careful"), Finding("refusal", "layout", "too big", "drop a node"))
    with pytest.raises(BadInput) as caught:
        apply(ctx, plan(step("a"), findings=findings), Actions())
    assert (caught.value.where, caught.value.next_move) == ("layout", "drop a node")
    assert "too big" in caught.value.what
    assert ctx.ledger.rows() == ()


def test_warnings_do_not_stop_a_plan(ctx: FakeContext) -> None:
    assert len(apply(ctx, plan(step("a"), findings=(Finding("warning", "w", "careful"),)), Actions())) == 1


def test_an_empty_plan_says_nothing(ctx: FakeContext) -> None:
    assert apply(ctx, plan(), {}) == ()
    assert ctx.ledger.rows() == ()
