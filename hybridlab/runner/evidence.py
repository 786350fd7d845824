"""What the evidence on file is worth, for the report: who made it, why, and whether it may be relied on."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from hybridlab.errors import SchemaTooNew
from hybridlab.ledger import EvidenceStore
from hybridlab.models import Json
from hybridlab.runner.outcome import RunbookResult, RunRecord

MAKERS: Mapping[str, tuple[str, str]] = {
    "benchmark": ("benchmark", "measure"),
    "backup": ("backup", "back-up"),
    "restore-drill": ("drill", "rehearse"),
}
"""Evidence that ages: the stage that makes it (its ``max_age_h`` counts) and the step that does."""


class _Step(Protocol):
    @property
    def step(self) -> str: ...
    @property
    def why(self) -> str: ...


class _Book(Protocol):
    @property
    def result(self) -> RunbookResult: ...
    @property
    def steps(self) -> Sequence[_Step]: ...


def evidence_rows(folder: Path, record: RunRecord, books: Sequence[_Book]) -> list[dict[str, Json]]:
    """One row a file. ``good`` False means refused, and ``word`` says why; ``why`` is why this run made it anew."""
    return list(_rows(folder, record, books))


def _rows(folder: Path, record: RunRecord, books: Sequence[_Book]) -> Iterator[dict[str, Json]]:
    store = EvidenceStore(folder, cluster=record.cluster, run=record.run)
    now = time.time()
    for path in sorted(folder.glob("*.json")):
        row: dict[str, Json] = {"kind": path.stem, "made": "", "run": "", "age": None, "why": "", "good": False}
        try:
            found = store.load(path.stem)
        except (SchemaTooNew, OSError, ValueError, TypeError, json.JSONDecodeError) as error:
            yield row | {"word": f"refused: it can't be read ({str(error).splitlines()[0]})"}
            continue
        if found is None:
            continue
        age_h = found.age_h(now)
        row |= {"made": found.made, "run": found.run, "age": age_h * 3600}
        max_age_h = _max_age_h(path.stem, record.params)
        if found.cluster != record.cluster:
            yield row | {"word": f"refused: it belongs to another cluster ({found.cluster})"}
        elif max_age_h is not None and age_h > max_age_h:
            yield row | {"word": f"refused: older than {max_age_h:g} h"}
        elif found.run == record.run:
            yield row | {"word": "made in this run", "why": _why(path.stem, books), "good": True}
        else:
            limit = f", at most {max_age_h:g} h old" if max_age_h is not None else ""
            yield row | {"word": f"may be relied on{limit}", "good": True}


def _max_age_h(kind: str, params: Mapping[str, Json]) -> float | None:
    if kind not in MAKERS:
        return None
    found = params.get(MAKERS[kind][0], {}).get("max_age_h")
    return float(found) if found is not None else None


def _why(kind: str, books: Sequence[_Book]) -> str:
    stage, step = MAKERS.get(kind, ("", ""))
    return next((s.why for b in books if b.result.stage == stage for s in b.steps if s.step == step), "")
