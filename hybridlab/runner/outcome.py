"""How things ended: cells, runbooks and runs, as data; exit statuses; the record ``run.json``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from hybridlab import errors
from hybridlab.errors import BadInput, SchemaTooNew
from hybridlab.ledger import write_atomic
from hybridlab.models import Json

SCHEMA = 1

CellState = Literal["done", "failed", "timed out", "interrupted", "kernel lost", "skipped", "not run", "running"]
"""``running`` is what a killed process leaves behind; readers show it as interrupted."""
RunbookState = Literal["done", "failed", "timed out", "interrupted", "kernel lost", "not run", "running"]

EXIT_OF_STATE: Mapping[str, int] = {"done": 0, "failed": 4, "timed out": 5, "interrupted": 6, "kernel lost": 6}
EXIT_STRICT = 1
LONGEST = 5000
"""Characters of a text of a Problem; the notebook has the traceback."""


@dataclass(frozen=True)
class Problem:
    """Why a cell or a run ended badly, as the error told it; ``error`` is its class name."""

    error: str
    what: str
    where: str = ""
    why: str = ""
    next_move: str = ""
    exit_code: int = 4

    def masked(self, redact: Callable[[str], str]) -> Problem:
        """The same without secrets."""
        return replace(
            self,
            what=redact(self.what),
            where=redact(self.where),
            why=redact(self.why),
            next_move=redact(self.next_move),
        )

    def brief(self) -> Problem:
        """The same with texts of a length that people read and a ledger can bear."""
        return self.masked(lambda text: text if len(text) <= LONGEST else f"{text[:LONGEST]} …")

    def message(self) -> str:
        text = self.what + (f" ({self.where})" if self.where else "") + (f": {self.why}" if self.why else "")
        return text + (f"\n  next: {self.next_move}" if self.next_move else "")


def problem_of(error: BaseException) -> Problem:
    if isinstance(error, errors.HybridlabError):
        return Problem(
            type(error).__name__, error.what, error.where, error.why, error.next_move, exit_code=error.exit_code
        )
    return Problem(type(error).__name__, str(error) or type(error).__name__)


def exit_code_of(class_name: str) -> int:
    """The exit status of an error known by its class name only; 4 for a name that isn't ours."""
    if class_name == "KeyboardInterrupt":
        return errors.Interrupted.exit_code
    kind = getattr(errors, class_name, None)
    return int(getattr(kind, "exit_code", 4))


@dataclass(frozen=True)
class RunbookResult:
    """One runbook of a run. ``cells`` counts code cells by state; ``cell`` is the heading of where it stopped."""

    name: str
    title: str
    notebook: str
    stage: str = ""
    state: RunbookState = "not run"
    started: str = ""
    seconds: float = 0.0
    cell_seconds: float = 0.0
    cells: Mapping[str, int] = field(default_factory=dict)
    cell: str = ""
    problem: Problem | None = None


@dataclass(frozen=True)
class RunRecord:
    """``run.json``: what was asked, by whom, and how each runbook ended."""

    run: str
    cluster: str
    site: str
    params_file: str
    params: Mapping[str, Json]
    sets: tuple[str, ...]
    approvals: tuple[str, ...]
    strict: bool
    started: str
    pid: int
    host: str
    user: str
    version: str
    state: RunbookState = "running"
    exit_code: int | None = None
    seconds: float = 0.0
    problem: Problem | None = None
    strict_findings: tuple[str, ...] = ()
    runbooks: tuple[RunbookResult, ...] = ()
    picture: Mapping[str, Json] = field(default_factory=dict)
    bill: Mapping[str, Json] = field(default_factory=dict)
    schema: int = SCHEMA

    def with_runbook(self, index: int, result: RunbookResult) -> RunRecord:
        return replace(self, runbooks=(*self.runbooks[:index], result, *self.runbooks[index + 1 :]))


def save_record(folder: Path, record: RunRecord) -> None:
    write_atomic(folder / "run.json", json.dumps(asdict(record), indent=1, ensure_ascii=False).encode())


def load_record(folder: Path) -> RunRecord:
    """Read a run's record. Raises BadInput where there is none or it can't be read."""
    path = folder / "run.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput("there is no such run", where=str(folder), next_move="ls runs/") from None
    except (OSError, ValueError) as error:
        raise BadInput("the run's record can't be read", where=str(path), why=str(error)) from error
    if data.get("schema", 0) > SCHEMA:
        raise SchemaTooNew("the run was recorded by a newer hybridlab", where=str(path), next_move="upgrade hybridlab")
    runbooks = tuple(
        RunbookResult(**{**item, "problem": Problem(**item["problem"]) if item["problem"] else None})
        for item in data.pop("runbooks")
    )
    problem = data.pop("problem")
    for key in ("sets", "approvals", "strict_findings"):
        data[key] = tuple(data[key])
    return RunRecord(**data, runbooks=runbooks, problem=Problem(**problem) if problem else None)
