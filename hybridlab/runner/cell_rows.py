"""How every cell ended, told to the ledger as it happens, and read back for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hybridlab.ledger import Ledger, Row
from hybridlab.models import Json
from hybridlab.runner.outcome import CellState, Problem
from hybridlab.runner.record import SKIP_TAG

OPEN = ("running", "not run")
"""States in a saved notebook that a killed process can't have made true."""


class CellRows:
    """Writes the rows of one runbook's code cells: event ``cell``, one a cell, when it ended.

    ``detail`` has ``runbook``, ``cell`` (the how-manieth code cell, from 1), ``of``, ``heading``, ``state`` (a
    CellState), ``seconds`` where it ran, and ``error`` where it ended badly. There is no row for a beginning: what a
    cell changes has rows of its own, before and after each step.
    """

    def __init__(self, ledger: Ledger, *, stage: str, runbook: str) -> None:
        self._ledger = ledger
        self._stage = stage
        self._runbook = runbook

    def cell_ended(
        self, number: int, total: int, heading: str, state: CellState, seconds: float | None, problem: Problem | None
    ) -> None:
        """Raises OSError where the ledger can't be written."""
        detail: dict[str, Json] = {"runbook": self._runbook, "cell": number, "of": total, "heading": heading}
        detail |= {"state": state} | ({} if seconds is None else {"seconds": round(seconds, 3)})
        detail |= {"error": problem.message()} if problem else {}
        self._ledger.add(self._stage, "", "cell", detail=detail)


def ended_cells(rows: Sequence[Row], runbook: str) -> dict[int, CellState]:
    """The end of each code cell of a runbook by its number, from a run's rows; none for a cell without a row."""
    return {int(r.detail["cell"]): r.detail["state"] for r in rows if r.detail.get("runbook") == runbook}


def true_states(cells: Sequence[Any], ended: Mapping[int, CellState], *, alive: bool, concluded: bool) -> list[str]:
    """What became of each code cell of a saved notebook: the ledger counts, and the notebook where it says nothing.

    A process that was killed (not ``alive``, its runbook not ``concluded``) left a notebook that may be a moment older
    than the end. The first cell without an end is then ``interrupted``, whether it had begun or was about to, and those
    after it were ``not run``.
    """
    states = [
        ended.get(number) or cell.metadata.get("hybridlab", {}).get("state", "")
        for number, cell in enumerate(cells, start=1)
    ]
    unended = [index for index, state in enumerate(states) if state in OPEN]
    if alive or not unended or (concluded and "running" not in states):
        return states
    cut = next((index for index in unended if states[index] == "running" or _runs(cells[index])), None)
    for index in unended:
        states[index] = "interrupted" if index == cut else "not run"
    return states


def _runs(cell: Any) -> bool:
    return SKIP_TAG not in cell.metadata.get("tags", []) and bool(cell.source.strip())
