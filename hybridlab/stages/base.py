"""What a stage is: a module with these names, and the generic ``apply`` that runs a plan's steps.

A stage module has::

    NAME = "provision"                       the word used in params, plans and the ledger
    NEEDS = ("layout",)                      stages whose ``expected`` its plan wants to see
    def look(ctx) -> Seen                    reads what is really there; works before anything exists
    def plan(params, seen, upstream) -> Plan pure; ``upstream`` maps a needed stage to its plan's ``expected``
    ACTIONS: Mapping[str, Action]            one function an action; may be repeated; answers what it did
    def verify(ctx) -> tuple[Check, ...]     looks again and proves it

``Seen`` is a frozen dataclass of plain data. An action finds ids by looking (by tag and name), never in its args, so
that a plan made before an id existed can be applied after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from hybridlab.errors import HybridlabError, Interrupted, StepFailed, Unreachable
from hybridlab.models import Check, Json
from hybridlab.params import Params
from hybridlab.plan import Plan, Step
from hybridlab.ports import Context

Upstream = Mapping[str, Mapping[str, Json]]
Action = Callable[[Context, Step], Mapping[str, Json]]
"""Does one step; returns what the ledger should remember (ids, counts). ``{"changed": False}`` means no change."""


END_S = 5.0
"""How long steps that run in parallel may take to end after Ctrl-C: they are told, and clean up."""


class Stage(Protocol):
    NAME: str
    NEEDS: tuple[str, ...]
    ACTIONS: Mapping[str, Action]

    def look(self, ctx: Context) -> Any: ...
    def plan(self, params: Params, seen: Any, upstream: Upstream) -> Plan: ...
    def verify(self, ctx: Context) -> tuple[Check, ...]: ...


@dataclass(frozen=True)
class StepOutcome:
    """How one step ended: done, failed, unknown or not-run, after how many seconds."""

    step: Step
    event: str
    seconds: float
    detail: Mapping[str, Json]


def apply(
    ctx: Context,
    plan: Plan,
    actions: Mapping[str, Action],
    *,
    on_step: Callable[[StepOutcome], None] | None = None,
) -> tuple[StepOutcome, ...]:
    """Run a plan's steps in order, telling the ledger before and after each.

    Consecutive steps with the same ``batch`` run in parallel; the rest of a batch is finished before a failure is
    raised. Raises BadInput for a plan with refusals, StepFailed after a failed step, Interrupted after Ctrl-C.
    """
    plan.expect_applicable()
    outcomes: list[StepOutcome] = []
    for group in _batches(plan.steps):
        if len(group) == 1:
            results = [_one(ctx, plan.stage, group[0], actions)]
        else:
            results = _together(ctx, plan.stage, group, actions)
        for outcome, _ in results:
            outcomes.append(outcome)
            if on_step:
                on_step(outcome)
        failed = [(o, e) for o, e in results if e is not None]
        if failed:
            outcome, error = failed[0]
            raise _as_step_failure(plan.stage, outcome, error) from error
    return tuple(outcomes)


@contextmanager
def ending_threads(ctx: Context) -> Iterator[None]:
    """Where Ctrl-C ends the block, the threads that it began end too, and don't hold up the process."""
    try:
        yield
    except KeyboardInterrupt:
        ctx.interrupt()
        raise


def _batches(steps: tuple[Step, ...]) -> list[list[Step]]:
    groups: list[list[Step]] = []
    for step in steps:
        if groups and step.batch and groups[-1][0].batch == step.batch:
            groups[-1].append(step)
        else:
            groups.append([step])
    return groups


Result = tuple[StepOutcome, BaseException | None]


def _together(ctx: Context, stage: str, group: list[Step], actions: Mapping[str, Action]) -> list[Result]:
    pool = ThreadPoolExecutor(max_workers=min(len(group), 8))
    futures = [pool.submit(_one, ctx, stage, step, actions) for step in group]
    try:
        return [f.result() for f in futures]
    except KeyboardInterrupt as error:
        pool.shutdown(wait=False, cancel_futures=True)  # what has not begun does not begin
        ctx.interrupt()
        left = wait([f for f in futures if not f.cancelled()], timeout=END_S).not_done
        for step, future in zip(group, futures, strict=True):
            if future in left:  # the others have told the ledger themselves how they ended
                ctx.ledger.add(stage, step.id, "interrupted", effect=step.effect, target=step.target)
        raise Interrupted(f"{stage} was interrupted", next_move="run it again: it goes on") from error
    finally:
        pool.shutdown(wait=False)


def _one(ctx: Context, stage: str, step: Step, actions: Mapping[str, Action]) -> Result:
    ctx.ledger.add(stage, step.id, "started", effect=step.effect, target=step.target, detail={"why": step.why})
    ctx.say(f"{step.target}: {step.id} …")
    begin = ctx.clock.now()
    try:
        detail = actions[step.action](ctx, step)
    except (KeyboardInterrupt, Interrupted) as error:
        if isinstance(error, KeyboardInterrupt):
            ctx.interrupt()  # the step may have threads of its own
        ctx.ledger.add(stage, step.id, "interrupted", effect=step.effect, target=step.target)
        raise Interrupted(f"{stage} was interrupted in {step.id}", next_move="run it again: it goes on") from error
    except Unreachable as error:
        # the request may have been carried out: the record says that nobody knows, and the next look finds out
        return _ended(ctx, stage, step, "unknown", begin, {"error": str(error)}), error
    except HybridlabError as error:
        return _ended(ctx, stage, step, "failed", begin, {"error": str(error)}), error
    except Exception as error:  # noqa: BLE001 - a bug: the ledger must still tell that the step failed
        return _ended(ctx, stage, step, "failed", begin, {"error": repr(error)}), error
    return _ended(ctx, stage, step, "done", begin, detail), None


def _ended(ctx: Context, stage: str, step: Step, event: Any, begin: float, detail: Mapping[str, Json]) -> StepOutcome:
    seconds = round(ctx.clock.now() - begin, 3)
    ctx.ledger.add(stage, step.id, event, effect=step.effect, target=step.target, detail={**detail, "seconds": seconds})
    return StepOutcome(step, event, seconds, detail)


def _as_step_failure(stage: str, outcome: StepOutcome, error: BaseException) -> BaseException:
    if not isinstance(error, HybridlabError):
        return error
    again, unknown = "run it again: it looks at what is there and goes on", outcome.event == "unknown"
    failure = StepFailed(
        f"{stage}: step {outcome.step.id} {'has an unknown outcome' if unknown else 'failed'}",
        where=outcome.step.target,
        why=str(error).split("\n  next: ")[0],
        next_move=again if unknown else error.next_move or again,
    )
    failure.exit_code = error.exit_code
    return failure
