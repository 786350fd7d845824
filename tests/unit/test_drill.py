"""090: a restored claim against what was backed up; a flipped byte, a lost file or a lost claim is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeContext, FakeKube, make_params

from hybridlab.plan import is_unknown
from hybridlab.stages import drill
from hybridlab.stages.claims import Digest
from hybridlab.stages.drill import Seen, judge


def claim(before: dict[str, str], after: dict[str, str] | None = None) -> dict[str, Any]:
    return {"before": {"entries": before}, "after": {"entries": before if after is None else after}}


def restored(entries: dict[str, str], size: int = 9) -> Digest:
    return Digest("sha", entries, size)


FILES = {"a": "1", "b": "2"}


@pytest.mark.parametrize(
    ("backup", "back", "differences", "moving", "entries"),
    [
        (claim(FILES), FILES, [], 0, 2),
        (claim(FILES), {**FILES, "b": "x"}, ["b: different"], 0, 2),
        (claim(FILES), {"a": "1"}, ["b: missing"], 0, 2),
        (claim(FILES), {**FILES, "c": "3"}, ["c: extra"], 0, 2),
        (claim({}), {}, [], 0, 0),
        # changed, appeared or vanished while the backup ran: not judged, whatever came back
        (claim(FILES, {**FILES, "b": "3"}), {**FILES, "b": "x"}, [], 1, 1),
        (claim(FILES, {**FILES, "c": "3"}), {**FILES, "c": "3"}, [], 1, 2),
        (claim(FILES, {**FILES, "c": "3"}), FILES, [], 1, 2),
        (claim(FILES, {"a": "1"}), FILES, [], 1, 1),
        (claim(FILES, {"a": "1"}), {"a": "1"}, [], 1, 1),
        # what did not move is judged all the same
        (claim(FILES, {**FILES, "b": "3"}), {"a": "x", "b": "3"}, ["a: different"], 1, 1),
    ],
)
def test_judge(backup: Any, back: dict[str, str], differences: list[str], moving: int, entries: int) -> None:
    rows = judge({"data": backup}, {"data": restored(back)})
    assert rows == {"data": {"differences": differences, "moving": moving, "entries": entries, "bytes": 9}}


def test_a_claim_that_did_not_come_back() -> None:
    rows = judge({"data": claim(FILES), "other": claim(FILES)}, {"other": restored(FILES)})
    assert rows["data"]["differences"] == ["the claim was not restored"]
    assert rows["other"]["differences"] == []


PARAMS = make_params()
OPEN = Seen("backup-1", False, "there is none yet")


def test_plan() -> None:
    made = drill.plan(PARAMS, OPEN, {})
    assert [(s.id, s.effect, dict(s.args)) for s in made.steps] == [
        ("rehearse", "create", {"backup": "backup-1", "namespace": "restore-drill"})
    ]
    assert "there is none yet" in made.steps[0].why
    assert made.findings == ()
    assert is_unknown(drill.plan(PARAMS, replace(OPEN, backup=""), {}).steps[0].args["backup"])


def test_no_drill_while_the_evidence_is_good() -> None:
    made = drill.plan(PARAMS, replace(OPEN, usable=True, why="1.0 h old"), {})
    assert made.steps == ()
    assert "backup backup-1 was restored and compared: 1.0 h old" in made.findings[0].text


def test_the_scratch_namespace_is_never_the_services_own() -> None:
    made = drill.plan(make_params({"drill.namespace": "services"}), OPEN, {})
    assert [f.level for f in made.findings] == ["refusal"]


def test_a_leftover_is_told() -> None:
    made = drill.plan(PARAMS, replace(OPEN, leftover=True), {})
    assert [(f.level, f.subject) for f in made.findings] == [("note", "restore-drill")]


def context(tmp_path: Path, *objects: dict[str, Any]) -> FakeContext:
    ctx = FakeContext(tmp_path, kube=FakeKube(*objects))
    from datetime import UTC, datetime

    ctx.clock.time = datetime.now(UTC).timestamp()
    return ctx


def prove(ctx: FakeContext, backup: str, difference: list[str] | None = None) -> None:
    row = {"differences": difference or [], "moving": 1, "entries": 2, "bytes": 5}
    ctx.evidence.save(drill.EVIDENCE, {"backup": backup, "claims": {"data": row}}, inputs={"backup": backup})


def test_look_wants_a_drill_of_the_newest_backup(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    assert drill.look(ctx).backup == ""
    ctx.evidence.save("backup", {"name": "backup-1", "claims": {}}, inputs={})
    assert drill.look(ctx) == Seen("backup-1", False, "there is none yet", False)
    prove(ctx, "backup-1")
    assert drill.look(ctx).usable
    ctx.evidence.save("backup", {"name": "backup-2", "claims": {}}, inputs={})
    assert not drill.look(ctx).usable
    prove(ctx, "backup-2")
    ctx.clock.time += 169 * 3600
    assert not drill.look(ctx).usable


SCRATCH = {"kind": "Namespace", "metadata": {"name": "restore-drill"}}


def failed(ctx: FakeContext) -> list[str]:
    return [c.name for c in drill.verify(ctx) if not c.ok]


def test_verify(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    assert failed(ctx) == ["drill"]
    ctx.evidence.save("backup", {"name": "backup-1", "claims": {}}, inputs={})
    prove(ctx, "backup-1")
    assert failed(ctx) == []
    assert "1 changed while the backup ran and were not judged" in drill.verify(ctx)[-1].evidence
    ctx.kube.put(SCRATCH)
    assert failed(ctx) == ["scratch removed"]
    ctx.kube.delete("v1", "Namespace", "restore-drill")
    prove(ctx, "backup-0")
    assert failed(ctx) == ["backup"]
    prove(ctx, "backup-1", ["a: different"])
    assert failed(ctx) == ["claim data"]


def test_restored_pods_without_their_services() -> None:
    assert "pods" in drill.RESTORED
    assert "persistentvolumeclaims" in drill.RESTORED
    assert not {"services", "deployments", "ingresses", "statefulsets"} & set(drill.RESTORED)
