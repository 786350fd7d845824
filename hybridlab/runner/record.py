"""The executed notebook as a record that doesn't lie: true cell states, masked secrets, atomic saves."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import nbformat
from papermill.engines import NotebookExecutionManager
from papermill.iorw import LocalHandler, papermill_io

from hybridlab.ledger import write_atomic
from hybridlab.runner.outcome import CellState, Problem, RunbookState
from hybridlab.runner.redact import Redactor

OUTPUT_LIMIT = 4_000_000
"""Characters of text that one cell may leave in its notebook; the rest is dropped, and the notebook says so."""
DISPLAY_LIMIT = 16_000_000
"""The same for figures, tables and tracebacks, of which each is kept whole or not at all."""
SKIP_TAG = "skip-execution"
PAPERMILL_STATUS = {"done": "completed", "skipped": "skipped", "not run": "pending", "running": "running"}


class Watch(Protocol):
    """Who wants to know how a notebook is getting on."""

    def cell(self, number: int, total: int, heading: str) -> None:
        """A code cell starts: the how-manieth of how many, under which heading."""


class Told(Protocol):
    """Who keeps a record of its own of how each code cell ended."""

    def cell_ended(
        self, number: int, total: int, heading: str, state: CellState, seconds: float | None, problem: Problem | None
    ) -> None:
        """The how-manieth code cell of how many ended so, or was never begun. May raise OSError."""


class Record(NotebookExecutionManager):  # type: ignore[misc]
    """papermill's manager of one execution, made truthful.

    ``metadata.hybridlab.state`` of every code cell and of the notebook is one of ``CellState``; papermill's own
    ``status`` agrees with it. Nothing is saved that the redactor hasn't seen. ``told`` hears of each code cell's end
    before the notebook is saved with it.
    """

    def __init__(
        self,
        nb: Any,
        *,
        redactor: Redactor,
        watch: Watch | None = None,
        told: Told | None = None,
        make_room: Callable[[], bool] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(nb, **kwargs)
        self.make_room = make_room  # called when a save fails; whether it is worth another try
        self.redactor = redactor
        self.watch = watch
        self._told = told
        self._untold: dict[int, int] = {}
        self.state: RunbookState = "not run"
        self.problem: Problem | None = None
        self.cell_seconds = 0.0
        self.stopped_at = ""
        self.save_error: OSError | None = None
        self._full: OSError | None = None
        self._cell_began = 0.0
        self._current: Any = None
        self._sizes = (0, 0, 0, 0)  # outputs looked at; characters of text, and of the rest; characters dropped
        self._dirty = False
        self._saved_at = 0.0
        self._save_took = 0.0
        if self.output_path:
            _write_atomically(self.output_path)

    # -- states ------------------------------------------------------------------------------------------------
    def notebook_start(self, **kwargs: Any) -> None:
        self.set_timer()
        self.nb.metadata.papermill.update(
            start_time=self.start_time.isoformat(), end_time=None, duration=None, exception=None
        )
        for cell in self.nb.cells:
            cell.metadata.papermill = {"exception": None, "start_time": None, "end_time": None, "duration": None}
            if cell.cell_type == "code":
                cell.execution_count, cell.outputs = None, []
            self._set(cell, "not run")
        codes = [index for index, cell in enumerate(self.nb.cells) if cell.cell_type == "code"]
        self._untold = {index: number for number, index in enumerate(codes, start=1)}
        self._codes = len(codes)
        self.state = "running"
        self.nb.metadata["hybridlab"] = {"state": "running"}
        self.save()

    def begin(self, index: int) -> None:
        """A code cell starts."""
        cell = self.nb.cells[index]
        self._current, self._sizes = cell, (0, 0, 0, 0)
        self._cell_began = time.monotonic()
        cell.metadata.papermill.update(start_time=self.now().isoformat(), exception=False)
        self._set(cell, "running")
        if self.watch:
            self.watch.cell(self._untold[index], self._codes, heading_before(self.nb.cells, index))
        self._dirty = True
        self.save_if_due()

    def end(self, index: int, state: CellState, problem: Problem | None = None) -> None:
        """A cell ended so. Anything but done and skipped is how the notebook ended, too."""
        cell, problem = self.nb.cells[index], problem and problem.brief()
        took = time.monotonic() - self._cell_began if self._current is cell else 0.0
        self.cell_seconds += took
        self._current = None
        self._set(cell, state)
        if cell.cell_type == "code" and state not in ("skipped", "not run"):
            _join_streams(cell)
            self._note_dropped(cell)
            cell.metadata.papermill.update(end_time=self.now().isoformat(), duration=round(took, 6))
            cell.metadata.hybridlab["seconds"] = round(took, 3)
        if state != "done" and state != "skipped":
            cell.metadata.papermill["exception"] = True
            self.nb.metadata.papermill["exception"] = True
            if problem:
                cell.metadata.hybridlab["problem"] = asdict(problem)
            self.conclude(state, problem, heading_before(self.nb.cells, index))
        self._tell(index)
        self.redact(cell)
        self._dirty = True
        self.save_if_due()
        if self.pbar:
            self.pbar.update(1)

    def conclude(self, state: RunbookState, problem: Problem | None, where: str = "") -> None:
        """How the notebook as a whole ended; the first word counts."""
        if self.state == "running":
            self.state, self.problem, self.stopped_at = state, problem and problem.brief(), where

    def _tell(self, index: int) -> None:
        """Tell of the end of a code cell, once. A failure stops the notebook as a failed save does."""
        if self._told is None or index not in self._untold:
            return
        info = self.nb.cells[index].metadata.hybridlab
        problem = Problem(**info.problem) if "problem" in info else None
        heading = heading_before(self.nb.cells, index)
        try:
            self._told.cell_ended(self._untold[index], self._codes, heading, info.state, info.get("seconds"), problem)
        except OSError as error:
            self._full = self.save_error = self._full or error
        else:
            del self._untold[index]

    def _set(self, cell: Any, state: CellState) -> None:
        cell.metadata.papermill["status"] = PAPERMILL_STATUS.get(state, self.FAILED)
        if cell.cell_type == "code":
            cell.metadata["hybridlab"] = {"state": state}

    def counts(self) -> dict[str, int]:
        """Code cells by state."""
        codes = (c for c in self.nb.cells if c.cell_type == "code" and "hybridlab" in c.metadata)
        return dict(Counter(c.metadata.hybridlab["state"] for c in codes))

    def notebook_complete(self, **kwargs: Any) -> None:
        """Write down how it ended. Raises OSError when the last save fails."""
        self.conclude("done", None)
        self.end_time = self.now()
        self.nb.metadata.papermill.update(
            end_time=self.end_time.isoformat(), duration=(self.end_time - self.start_time).total_seconds()
        )
        for cell in self.nb.cells:
            if cell.cell_type == "code" and cell.metadata.hybridlab["state"] == "running":
                self._set(cell, "interrupted" if self.state == "done" else self.state)
        summary = {"state": self.state, "cells": self.counts()}
        self.nb.metadata["hybridlab"] = summary | ({"problem": asdict(self.problem)} if self.problem else {})
        self.complete_pbar()
        self.cleanup_pbar()
        self.redactor.refresh()
        self.redactor.clean(self.nb)
        self.save()
        for index in sorted(self._untold):
            self._tell(index)
        if self.save_error:
            raise self.save_error

    # -- saving ------------------------------------------------------------------------------------------------
    def redact(self, cell: Any) -> None:
        """Mask secrets in one cell; in all of them after the secrets changed."""
        self.redactor.clean(self.nb if self.redactor.refresh() else cell)

    def save(self, **kwargs: Any) -> None:
        """Save now. ``save_error`` remembers a failure until the next success; one that took room made, for good."""
        if not self.output_path:
            return
        if self._current is not None:
            self.redact(self._current)
        began = time.monotonic()
        error = self._try_to_save()
        if error and self.make_room and self.make_room():
            self._try_to_save()
            self._full = error  # it stays, whatever fits from now on: the room is for last words, not for going on
        self.save_error = self._full or error
        self._dirty = False
        self._saved_at = time.monotonic()
        self._save_took = self._saved_at - began

    def _try_to_save(self) -> OSError | None:
        try:
            super().save()
        except OSError as error:
            return error
        return None

    def save_if_due(self) -> None:
        """Save what changed, unless saving has cost more than a twentieth of the time: many cells, one record."""
        if self._dirty and time.monotonic() - self._saved_at >= max(0.05, 20 * self._save_took):
            self.save()

    def autosave_cell(self) -> None:
        """Called by papermill's client after every message of the kernel."""
        self._dirty = True
        if self._current is not None:
            self._keep_within_limit(self._current.outputs)

    def _keep_within_limit(self, outputs: list[Any]) -> None:
        seen, text, shown, dropped = self._sizes
        if len(outputs) < seen:  # the cell cleared its output
            seen, text, shown = 0, 0, 0
        kept = []
        for output in outputs[seen:]:
            if output.output_type == "stream":
                room = OUTPUT_LIMIT - text
                dropped += max(0, len(output.text) - room)
                output.text = output.text[:room]
                text += len(output.text)
                kept += [output] if output.text else []
                continue
            size = _length(output)
            if shown + size > DISPLAY_LIMIT and output.output_type == "error":
                output.evalue, output.traceback = output.evalue[:1000], [line[:1000] for line in output.traceback[:100]]
                dropped, size = dropped + size, 0
            if shown + size > DISPLAY_LIMIT:
                dropped += size
            else:
                shown += size
                kept.append(output)
        outputs[seen:] = kept
        self._sizes = (len(outputs), text, shown, dropped)

    def _note_dropped(self, cell: Any) -> None:
        dropped = self._sizes[3]
        if dropped:
            limit = f"{OUTPUT_LIMIT:,} of text and {DISPLAY_LIMIT:,} of figures and tables"
            note = f"\n[{dropped:,} more characters of output were dropped: a cell may leave {limit}]\n"
            last = next((o for o in reversed(cell.outputs) if o.output_type == "stream"), None)
            if last is not None:
                last.text += note
            else:
                cell.outputs.append(nbformat.v4.new_output("stream", name="stderr", text=note.lstrip()))
        self._sizes = (0, 0, 0, 0)


def heading_before(cells: list[Any], index: int) -> str:
    """The nearest Markdown heading above a cell, without its number signs."""
    for cell in reversed(cells[: index + 1]):
        if cell.cell_type == "markdown":
            found = re.findall(r"^#{1,6}\s+(.+?)\s*#*$", cell.source, re.MULTILINE)
            if found:
                return str(found[-1])
    return ""


def _length(value: Any) -> int:
    """Characters in nested lists and mappings, as good as exact."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(_length(item) + len(str(key)) for key, item in value.items())
    return sum(map(_length, value)) if isinstance(value, list) else 8


def _join_streams(cell: Any) -> None:
    """Make one output of consecutive pieces of the same stream, so that a secret cut in two is whole again."""
    joined: list[Any] = []
    for output in cell.outputs:
        if joined and output.output_type == "stream" == joined[-1].output_type and output.name == joined[-1].name:
            joined[-1].text += output.text
        else:
            joined.append(output)
    cell.outputs = joined


class _AtomicFile:
    """papermill's writer for one output file: a reader sees the old or the new notebook, never half of one."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, path: str) -> str:
        return self._path.read_text(encoding="utf-8")

    def write(self, text: str, path: str) -> None:
        if not self._path.parent.is_dir():
            raise FileNotFoundError(f"output folder {self._path.parent} doesn't exist.")
        write_atomic(self._path, text.encode())

    def pretty_path(self, path: str) -> str:
        return path


def _write_atomically(output_path: str) -> None:
    """Let papermill write this very path atomically, its own last write included."""
    local = papermill_io.get_handler("local")
    if not isinstance(papermill_io.get_handler(output_path), LocalHandler | _AtomicFile):
        return
    base = local.cwd(None)  # relative to where papermill was started, not to the notebook's working folder
    local.cwd(base)
    papermill_io.register(output_path, _AtomicFile(Path(base or ".").absolute() / output_path))
