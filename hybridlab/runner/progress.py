"""How a run is getting on, while it runs: a live table on a terminal, plain lines anywhere else."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hybridlab.runner.outcome import RunbookResult

STYLE = {
    "done": ("✓", "green"),
    "running": ("●", "cyan"),
    "failed": ("✗", "bold red"),
    "timed out": ("✗", "bold red"),
    "interrupted": ("■", "yellow"),
    "kernel lost": ("✗", "bold red"),
    "not run": ("·", "dim"),
}


class Tail:
    """Follows the ledger of a run: the step that is being done now, and how many are done."""

    def __init__(self, path: Path, run: str) -> None:
        self._path = path
        self._run = run
        self._offset = path.stat().st_size if path.exists() else 0
        self.step = ""
        self.done = 0

    def reset(self) -> None:
        self.step, self.done = "", 0

    def read(self) -> list[str]:
        """Take in what was added; returns a line for each step that ended."""
        lines: list[str] = []
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                added = file.read()
        except OSError:
            return lines
        whole = added[: added.rfind(b"\n") + 1]
        self._offset += len(whole)
        for raw in whole.splitlines():
            try:
                row = json.loads(raw)
            except ValueError:
                continue
            if row.get("run") != self._run or not row.get("step"):
                continue
            what = f"{row['target']}: {row['step']}" if row["target"] else row["step"]
            if row["event"] == "started":
                self.step = what
            else:
                self.done += row["event"] == "done"
                self.step = "" if self.step == what else self.step
                seconds = row["detail"].get("seconds")
                lines.append(f"{what} {row['event']}" + (f" ({seconds:.1f} s)" if seconds is not None else ""))
        return lines


class Board:
    """One line a runbook: number, title, state, where it is now, seconds."""

    def __init__(self, runbooks: Sequence[RunbookResult], console: Console, tail: Tail) -> None:
        self.results = list(runbooks)
        self._console = console
        self._tail = tail
        self._live: Live | None = None
        self._began = time.monotonic()
        self._run_began = self._began
        self._now = -1
        self._heading = ""
        self._cells = ""

    def __enter__(self) -> Board:
        if self._console.is_terminal:
            self._live = Live(
                get_renderable=self._table, console=self._console, refresh_per_second=5, redirect_stdout=False
            )
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._now = -1
        if self._live:
            self._live.stop()

    # -- told by the run -------------------------------------------------------------------------------------------
    def started(self, index: int) -> None:
        self._now, self._began, self._heading, self._cells = index, time.monotonic(), "", ""
        self._tail.reset()
        if not self._live:
            self._line(f"{self.results[index].name} …")

    def cell(self, number: int, total: int, heading: str) -> None:
        self._cells, self._heading = f"{number}/{total}", heading
        if not self._live:
            self._steps()

    def ended(self, index: int, result: RunbookResult) -> None:
        if not self._live:
            self._steps()
        self.results[index] = result
        self._now = -1
        if not self._live:
            self._line(f"{result.name} {result.state} in {result.seconds:.1f} s")

    # -- shown -----------------------------------------------------------------------------------------------------
    def _line(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _steps(self) -> None:
        for line in self._tail.read():
            self._line(f"  {line}")

    def _table(self) -> RenderableType:
        self._tail.read()
        table = Table.grid(padding=(0, 2), expand=True)
        table.add_column(justify="center", width=1)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        table.add_column(justify="right", no_wrap=True)
        for index, result in enumerate(self.results):
            running = index == self._now
            sign, style = STYLE["running" if running else result.state]
            seconds = time.monotonic() - self._began if running else result.seconds
            if running:
                note = " · ".join(part for part in (f"cell {self._cells}", self._heading, self._tail.step) if part)
            else:
                note = result.title if result.state in ("done", "not run") else f"{result.state}: {result.cell}"
            table.add_row(
                Text(sign, style=style),
                Text(result.name, style="" if running or result.state != "not run" else "dim"),
                Text(note, style="cyan" if running else "dim"),
                Text(f"{seconds:.1f} s" if running or result.state != "not run" else "", style="dim"),
            )
        total = Text(f"   {time.monotonic() - self._run_began:.0f} s in all, Ctrl-C stops safely", style="dim")
        return Group(table, total) if self._now >= 0 else table
