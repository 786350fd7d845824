"""What became of a runbook and of a run, judged from the engine's record, and told to the ledger."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from hybridlab.errors import HybridlabError
from hybridlab.ledger import Event, Ledger
from hybridlab.runner.outcome import (
    EXIT_OF_STATE,
    EXIT_STRICT,
    Problem,
    RunbookResult,
    RunbookState,
    RunRecord,
    problem_of,
)
from hybridlab.runner.preflight import Runbook


def judged(book: Runbook, records: Sequence[Any], stopped: BaseException | None) -> RunbookResult:
    """The engine's record is the truth; what papermill raised (``stopped``) only counts where there is none."""
    result = book.waiting()
    if not records:
        problem = problem_of(stopped) if stopped else Problem("Error", "the engine left no record")
        interrupted = isinstance(stopped, KeyboardInterrupt)
        return replace(result, state="interrupted" if interrupted else "failed", problem=problem)
    record = records[0]
    state: RunbookState = record.state
    found: Problem | None = record.problem
    if state == "failed" and found and found.exit_code in (5, 6):
        state = "timed out" if found.exit_code == 5 else "interrupted"
    if isinstance(stopped, OSError) and state == "done":
        state, found = "failed", Problem("OSError", f"the notebook can't be saved: {stopped.strerror}")
    return replace(
        result,
        state=state,
        problem=found,
        cells=record.counts(),
        cell=record.stopped_at,
        cell_seconds=round(record.cell_seconds, 3),
    )


def concluded(record: RunRecord, problem: Problem | None, ledger: Ledger) -> RunRecord:
    """The record with the run's state and exit status; ``problem`` is one of the run rather than of a runbook."""
    bad = next((r for r in record.runbooks if r.state not in ("done", "not run")), None)
    if bad is None and problem is None:
        strict = tuple(_strict_findings(record.run, ledger)) if record.strict else ()
        if not strict:
            return replace(record, state="done", exit_code=0)
        problem = Problem("StrictFindings", "strict findings", why="; ".join(strict), exit_code=EXIT_STRICT)
        return replace(record, state="failed", exit_code=EXIT_STRICT, problem=problem, strict_findings=strict)
    problem = (bad.problem if bad else None) or problem
    state: RunbookState = bad.state if bad else "interrupted" if problem and problem.exit_code == 6 else "failed"
    if state == "running":  # interrupted between two saves
        state = "interrupted"
    code = EXIT_OF_STATE[state]
    if state == "failed" and problem:
        code = problem.exit_code
    runbooks = tuple(replace(r, state=state) if r.state == "running" else r for r in record.runbooks)
    return replace(record, state=state, exit_code=code, problem=problem, runbooks=runbooks)


def _strict_findings(run: str, ledger: Ledger) -> Iterator[str]:
    seen = set()
    for row in ledger.rows():
        if row.run == run and row.event == "planned":
            for finding in row.detail.get("findings", ()):
                text = f"{row.stage}: {finding['subject']}: {finding['text']}"
                if finding.get("strict") and text not in seen:
                    seen.add(text)
                    yield text


def tell_ledger(ledger: Ledger, result: RunbookResult) -> None:
    """Say in the ledger what a kernel that was broken off couldn't: steps without an outcome, and how it ended."""
    event: Event = "interrupted" if result.state == "interrupted" else "failed"
    with suppress(OSError, HybridlabError):
        last = {row.step: row for row in ledger.rows(stage=result.stage) if row.run == ledger.run and row.step}
        for row in last.values():
            if row.event == "started":
                outcome: Event = "interrupted" if event == "interrupted" else "unknown"
                ledger.add(result.stage, row.step, outcome, effect=row.effect, target=row.target)
        detail: dict[str, Any] = {"runbook": result.name, "state": result.state, "cells": dict(result.cells)}
        if result.problem:
            detail["error"] = result.problem.message()
        ledger.add(result.stage, "", event, detail=detail)
