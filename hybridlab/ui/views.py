"""What each result of a stage looks like: plan, gate, outcomes, checks, hand-over, and what was seen."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from hybridlab.models import Check, Finding, Gate, HandOver
from hybridlab.plan import Plan
from hybridlab.stages.base import StepOutcome
from hybridlab.ui.seen import view_seen
from hybridlab.ui.tables import BAD, GOOD, NOTE, WARN, Line, Mark, Table

View = Table | Line
LONG_WHY = 100
_LEVELS = {"note": NOTE, "warning": WARN, "refusal": BAD}
OUTCOME_COLUMNS = ("outcome", "on", "action", "seconds")
_EVENTS = {"done": GOOD, "failed": BAD, "unknown": WARN}


def view(thing: Any) -> list[View]:
    """The tables and lines that show something; empty for None."""
    if thing is None:
        return []
    if isinstance(thing, Plan):
        return view_plan(thing)
    if isinstance(thing, Gate):
        return [view_gate(thing)]
    if isinstance(thing, HandOver):
        return view_hand_over(thing)
    if isinstance(thing, Table | Line):
        return [thing]
    if isinstance(thing, tuple | list):
        if not thing:
            return [Line(Mark(GOOD, "nothing to do"), "everything is as wanted")]
        if isinstance(thing[0], StepOutcome):
            return [view_outcomes(thing)]
        if isinstance(thing[0], Check):
            return [view_checks(thing)]
        return [v for item in thing for v in view(item)]
    return view_seen(thing)


def view_plan(plan: Plan) -> list[View]:
    views: list[View] = []
    if plan.findings:
        views.append(view_findings(plan.findings))
    if plan.steps:
        rows = [(Mark(s.effect, s.effect), s.target, _verb(s.action, s.effect), _brief(s.why)) for s in plan.steps]
        views.append(Table(f"Plan: {_steps(len(rows))}", ("effect", "on", "action", "why"), rows))
    else:
        views.append(Line(Mark(GOOD, "no change"), "what is there is what is wanted"))
    return views


def view_findings(findings: Sequence[Finding]) -> Table:
    rows = [(Mark(_LEVELS[f.level], f.level), f.subject, f.text, f.next_move) for f in findings]
    return Table("Findings", ("level", "about", "what", "next move"), rows)


def view_gate(gate: Gate) -> Line:
    if not gate.open:
        return Line(Mark(WARN, "closed"), f"plan {gate.hash} ({_steps(gate.steps)}) waits for approval")
    if not gate.steps:
        return Line(Mark(GOOD, "open"), "nothing to approve")
    return Line(Mark(GOOD, "open"), f"plan {gate.hash} ({_steps(gate.steps)}) approved: {gate.by}")


def mark_outcome(outcome: StepOutcome) -> Mark:
    return Mark(_EVENTS[outcome.event], outcome.event)


def view_outcomes(outcomes: Sequence[StepOutcome]) -> Table:
    return Table(f"Applied: {_steps(len(outcomes))}", OUTCOME_COLUMNS, [outcome_row(o) for o in outcomes])


def outcome_row(outcome: StepOutcome) -> tuple[Mark, str, str, float]:
    return mark_outcome(outcome), outcome.step.target, outcome.step.action, round(outcome.seconds, 1)


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count} steps"


def _brief(why: str) -> str:
    """A reason without what it puts in brackets: the tables above the plan have the figures."""
    return re.sub(r"\s*\((?:[^()]|\([^()]*\))*\)", "", why) if len(why) > LONG_WHY else why


def _verb(action: str, effect: str) -> str:
    """The action's own word, where it says more than the effect."""
    return action.replace("-", " ") if action not in ("create", "change", "delete", effect) else ""


def view_checks(checks: Sequence[Check]) -> Table:
    good = sum(c.ok for c in checks)
    rows = [(Mark(GOOD if c.ok else BAD, "holds" if c.ok else "fails"), c.name, c.evidence) for c in checks]
    return Table(f"Verified: {good} of {len(checks)} checks hold", ("", "check", "evidence"), rows)


def view_hand_over(done: HandOver) -> list[View]:
    good = sum(c.ok for c in done.checks)
    text = f"{_steps(done.steps_done)} applied, {good} of {len(done.checks)} checks hold"
    if done.next_runbook:
        text += f"; next: {done.next_runbook}"
    return [Line(Mark(GOOD, f"{done.stage} done"), text)]
