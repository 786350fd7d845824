"""What each result of a stage looks like: plan, gate, outcomes, checks, hand-over, and what was seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hybridlab.cluster import Gate, HandOver
from hybridlab.models import Check, Finding
from hybridlab.plan import Plan
from hybridlab.stages.base import StepOutcome
from hybridlab.ui.seen import view_seen
from hybridlab.ui.tables import BAD, GOOD, NOTE, WARN, Line, Mark, Table

View = Table | Line
_LEVELS = {"note": NOTE, "warning": WARN, "refusal": BAD}
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
        rows = [(Mark(s.effect, s.effect), s.target, s.id, s.why) for s in plan.steps]
        views.append(Table(f"Plan: {len(rows)} steps", ("effect", "on", "step", "why"), rows))
    else:
        views.append(Line(Mark(GOOD, "no change"), "what is there is what is wanted"))
    return views


def view_findings(findings: Sequence[Finding]) -> Table:
    rows = [(Mark(_LEVELS[f.level], f.level), f.subject, f.text, f.next_move) for f in findings]
    return Table("Findings", ("level", "about", "what", "next move"), rows)


def view_gate(gate: Gate) -> Line:
    if not gate.open:
        return Line(Mark(WARN, "closed"), f"plan {gate.hash} ({gate.steps} steps) waits for approval")
    if not gate.steps:
        return Line(Mark(GOOD, "open"), "nothing to approve")
    return Line(Mark(GOOD, "open"), f"plan {gate.hash} ({gate.steps} steps) approved: {gate.by}")


def mark_outcome(outcome: StepOutcome) -> Mark:
    return Mark(_EVENTS[outcome.event], outcome.event)


def view_outcomes(outcomes: Sequence[StepOutcome]) -> Table:
    rows = [(mark_outcome(o), o.step.target, o.step.id, o.seconds) for o in outcomes]
    return Table(f"Applied: {len(rows)} steps", ("outcome", "on", "step", "seconds"), rows)


def view_checks(checks: Sequence[Check]) -> Table:
    good = sum(c.ok for c in checks)
    rows = [(Mark(GOOD if c.ok else BAD, "holds" if c.ok else "fails"), c.name, c.evidence) for c in checks]
    return Table(f"Verified: {good} of {len(checks)} checks hold", ("", "check", "evidence"), rows)


def view_hand_over(done: HandOver) -> list[View]:
    good = sum(c.ok for c in done.checks)
    text = f"{done.steps_done} steps applied, {good} of {len(done.checks)} checks hold"
    if done.next_runbook:
        text += f"; next: {done.next_runbook}"
    return [Line(Mark(GOOD, f"{done.stage} done"), text)]
