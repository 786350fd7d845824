"""A run as pages people want to read: an index and a page a runbook, from disk, without a network.

Made from ``run.json``, the executed notebooks, the ledger and the evidence: a view, and can be made anew at will.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import nbformat
from markupsafe import Markup

from hybridlab.errors import BadInput
from hybridlab.ledger import Ledger, Row, now_iso, write_atomic
from hybridlab.models import Json
from hybridlab.params import Params, fields_of
from hybridlab.runner.cell_rows import ended_cells, true_states
from hybridlab.runner.cells import NotebookView, code_cells, view_notebook
from hybridlab.runner.evidence import evidence_rows
from hybridlab.runner.outcome import RunbookResult, RunRecord, load_record
from hybridlab.runner.redact import Redactor
from hybridlab.runner.summary import last_checks, plan_counts

ASSETS = ("style.css", "figures.js")
EFFECTS = ("create", "change", "delete")
LEVELS = ("refusal", "warning", "note")


@dataclass(frozen=True)
class Step:
    step: str
    target: str
    effect: str
    event: str
    seconds: float | None
    why: str
    error: str


@dataclass(frozen=True)
class BookView:
    """A runbook as the report shows it: how it ended, what it planned and did, what it proved, and its notebook."""

    result: RunbookResult
    state: str
    page: str
    anchor: str
    left: float
    width: float
    plan: Mapping[str, int] | None
    hash: str
    approved_by: str
    approved_at: str
    steps: tuple[Step, ...]
    checks: tuple[Mapping[str, Json], ...]
    findings: tuple[Mapping[str, Json], ...]
    notebook: NotebookView | None

    @property
    def changes(self) -> int:
        return sum(self.plan.values()) if self.plan else 0

    @property
    def finding_pairs(self) -> list[tuple[BookView, Mapping[str, Json]]]:
        return [(self, finding) for finding in self.findings]

    @property
    def done(self) -> int:
        return sum(s.event == "done" for s in self.steps)

    @property
    def checks_ok(self) -> int:
        return sum(bool(c["ok"]) for c in self.checks)


def find_run(root: Path, name: str) -> Path:
    """A run's folder by its id, a unique part of it, its path, or ``last``. Raises BadInput naming the newest ones."""
    runs = root / "runs"
    known = sorted(p.parent.name for p in runs.glob("*/run.json"))
    if (Path(name) / "run.json").exists():
        return Path(name).resolve()
    if name == "last" and known:
        return runs / known[-1]
    fitting = [run for run in known if name in run]
    if len(fitting) == 1 or name in fitting:
        return runs / (name if name in fitting else fitting[0])
    what = f"{len(fitting)} runs fit {name!r}" if fitting else f"there is no run {name!r}"
    newest = ", ".join((fitting or known)[-3:]) or "there are no runs yet: hybridlab run"
    raise BadInput(what, where=str(runs), next_move=f"the newest: {newest}" if known else newest)


def write_report(folder: Path, *, root: Path, single_file: bool = False) -> Path:
    """Write ``report/index.html`` and its pages (or ``report.html`` alone) for a run; returns its path.

    Raises BadInput where the run has no record.
    """
    record = load_record(folder)
    state = root / "state" / record.cluster
    redactor = Redactor([state / "secrets"])
    redactor.refresh()
    ledger = Ledger(state / "ledger.jsonl", run=record.run)
    rows = [r for r in ledger.rows() if r.run == record.run]
    alive = record.state == "running" and is_alive(record)
    books = _books(folder, record, rows, ledger.cells(run=record.run), alive)
    context = _context(record, books, state, alive)
    env = _templates()
    figures = any(b.notebook and b.notebook.figures for b in books)
    if single_file:
        inline = {name: Markup(_asset(name)) for name in ASSETS}
        plotly = Markup(plotly_js().read_text(encoding="utf-8").replace("</script", "<\\/script")) if figures else ""
        page = env.get_template("single.html.j2").render(context | {"inline": inline, "plotly": plotly, "single": True})
        path = folder / "report.html"
        write_atomic(path, redactor.text(page).encode())
        return path
    report = folder / "report"
    (report / "assets").mkdir(parents=True, exist_ok=True)
    for name in ASSETS:
        write_atomic(report / "assets" / name, _asset(name).encode())
    if figures:
        shutil.copyfile(plotly_js(), report / "assets" / "plotly.min.js")
    pages = [b for b in books if b.notebook]
    for number, book in enumerate(pages):
        before = pages[number - 1] if number else None
        after = pages[number + 1] if number + 1 < len(pages) else None
        page = env.get_template("runbook.html.j2").render(**context, book=book, before=before, after=after)
        write_atomic(report / book.page, redactor.text(page).encode())
    index = report / "index.html"
    write_atomic(index, redactor.text(env.get_template("index.html.j2").render(**context)).encode())
    return index


def is_alive(record: RunRecord) -> bool:
    """Whether the process that makes this run still lives (on this machine, as far as can be told)."""
    if record.host != socket.gethostname():
        return False
    try:
        os.kill(record.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def plotly_js() -> Path:
    """plotly.min.js as the plotly package ships it, found without importing the package."""
    spec = importlib.util.find_spec("plotly")
    for place in (spec.submodule_search_locations or []) if spec else []:
        path = Path(place) / "package_data" / "plotly.min.js"
        if path.exists():
            return path
    raise BadInput("plotly.min.js is missing", next_move="pip install plotly")


# -- what the pages are made of ----------------------------------------------------------------------------------------
def _books(folder: Path, record: RunRecord, rows: Sequence[Row], cells: Sequence[Row], alive: bool) -> list[BookView]:
    begin = _unix(record.started)
    total = max(record.seconds, sum(r.seconds for r in record.runbooks), 0.001)
    views = []
    for result in record.runbooks:
        mine = [row for row in rows if row.stage == result.stage]
        planned = next((row for row in mine if row.event == "planned"), None)
        gated = planned or next((row for row in mine if row.event == "refused"), None)
        approved = next((row for row in mine if row.event == "approved"), None)
        state = "interrupted" if result.state == "running" and not alive else result.state
        left = min(100.0, max(0.0, (_unix(result.started) - begin) / total * 100)) if result.started else 0.0
        views.append(
            BookView(
                result=result,
                state=state,
                page=f"{result.name}.html",
                anchor=result.name,
                left=round(left, 2),
                width=round(max(0.4, min(100 - left, result.seconds / total * 100)), 2),
                plan=plan_counts(mine, result.stage),
                hash=str(gated.detail.get("hash", "")) if gated else "",
                approved_by=_approved_by(approved) if approved else "",
                approved_at=approved.time if approved else "",
                steps=_steps(mine),
                checks=tuple(last_checks(mine, result.stage)),
                findings=tuple(planned.detail.get("findings", ())) if planned else (),
                notebook=_notebook(folder / result.notebook, result, cells, alive),
            )
        )
    return views


def _approved_by(row: Row) -> str:
    who = row.detail.get("who")
    return f"{row.detail.get('by', '')}" + (f" ({who})" if who else "")


def _notebook(path: Path, result: RunbookResult, cells: Sequence[Row], alive: bool) -> NotebookView | None:
    if not path.exists():
        return None
    notebook = nbformat.read(path, as_version=4)
    ended = ended_cells(cells, result.name)
    states = true_states(code_cells(notebook), ended, alive=alive, concluded=result.state != "running")
    return view_notebook(notebook, states, prefix=f"n{result.name[:3]}")


def _steps(rows: Sequence[Row]) -> tuple[Step, ...]:
    """Each step with its last event; one that was only started has an unknown outcome."""
    last: dict[str, Step] = {}
    for row in rows:
        if not row.step:
            continue
        before = last.get(row.step)
        why = str(row.detail.get("why", "")) or (before.why if before else "")
        target = row.target or (before.target if before else "")
        effect = row.effect if row.effect != "none" or not before else before.effect
        event = "unknown" if row.event == "started" else row.event
        error = str(row.detail.get("error", ""))
        last[row.step] = Step(row.step, target, effect, event, row.detail.get("seconds"), why, error)
    return tuple(last.values())


def _context(record: RunRecord, books: Sequence[BookView], state: Path, alive: bool) -> dict[str, Any]:
    shown = "interrupted" if record.state == "running" and not alive else record.state
    checks = [check for book in books for check in book.checks]
    return {
        "record": record,
        "state": shown,
        "books": books,
        "bad": next((b for b in books if b.state not in ("done", "not run", "running")), None),
        "totals": {e: sum((b.plan or {}).get(e, 0) for b in books) for e in EFFECTS},
        "steps_done": sum(b.done for b in books),
        "steps_all": sum(len(b.steps) for b in books),
        "checks": checks,
        "failed_checks": [(b, c) for b in books for c in b.checks if not c["ok"]],
        "findings": sorted(
            (pair for b in books for pair in b.finding_pairs), key=lambda pair: LEVELS.index(pair[1]["level"])
        ),
        "params": _param_rows(record.params),
        "nodes": record.params.get("nodes", []),
        "bill": record.bill,
        "evidence": evidence_rows(state / "evidence", record, books),
        "written": now_iso(),
        "figures": any(b.notebook and b.notebook.figures for b in books),
        "single": False,
    }


def _param_rows(params: Mapping[str, Json]) -> list[dict[str, Json]]:
    """Every parameter with its value, its default and what it is for, from the one schema."""
    rows = []
    for info in fields_of(Params):
        value: Json = params
        for part in info.path.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if info.path in ("nodes", "schema"):
            continue
        own = value not in (None, info.default, "")
        kind = " | ".join(info.choices) or info.type
        rows.append(
            {"path": info.path, "value": _plain(value), "default": _plain(info.default), "kind": kind, "own": own,
             "help": info.description}
        )  # fmt: skip
    return rows


def _plain(value: Json) -> str:
    if value is None or value == {}:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else f"{value}"


# -- templates ---------------------------------------------------------------------------------------------------------
def _templates() -> jinja2.Environment:
    env = jinja2.Environment(
        loader=jinja2.PackageLoader("hybridlab.runner"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    env.filters |= {
        "span": span,
        "when": when,
        "num": lambda number: f"{number:g}",
        "gib": lambda size: f"{size / 2**30:.1f}".removesuffix(".0"),
        "count_of": lambda number, word: f"{number} {word}{'' if number == 1 else 's'}",
    }
    return env


def _asset(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


def span(seconds: float) -> str:
    """A duration for people: 0.4 s, 12 s, 3 min 05 s, 5 h 12 min, 3 d 4 h."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def when(iso: str) -> str:
    """An ISO time as people write it, in UTC."""
    return f"{datetime.fromisoformat(iso).astimezone(UTC):%-d %b %Y, %H:%M:%S} UTC" if iso else ""


def _unix(iso: str) -> float:
    return datetime.fromisoformat(iso).timestamp() if iso else 0.0
