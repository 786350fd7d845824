"""090: a restored claim against what was backed up; a flipped byte, a lost file or a lost claim is told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeContext, FakeKube, PodKube, digest_lines, make_params

from hybridlab.errors import NotFound, Refused
from hybridlab.plan import is_unknown
from hybridlab.stages import drill
from hybridlab.stages.claims import Digest, parse_digest
from hybridlab.stages.drill import Seen, judge
from hybridlab.stages.objects import MANAGED


def entry(content: str, **more: str) -> str:
    """What a digest says of one file."""
    return json.dumps({"type": "file", "sha256": content, **more}, sort_keys=True)


def lines(files: dict[str, str]) -> dict[str, str]:
    return {path: entry(content) for path, content in files.items()}


def claim(before: dict[str, str], after: dict[str, str] | None = None) -> dict[str, Any]:
    return {"before": {"entries": lines(before)}, "after": {"entries": lines(before if after is None else after)}}


def restored(files: dict[str, str], size: int = 9) -> Digest:
    return Digest("sha", lines(files), size)


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
    expected = {"differences": differences, "moving": moving, "xattrs": 0, "entries": entries, "bytes": 9}
    assert rows == {"data": expected}


def test_extended_attributes_are_counted_not_judged() -> None:
    held = {"entries": {"a": entry("1", xattrs_sha256="x"), "b": entry("2")}}
    row = judge({"data": {"before": held, "after": held}}, {"data": restored(FILES)})["data"]
    assert (row["differences"], row["xattrs"], row["moving"]) == ([], 1, 0)
    wrong = judge({"data": {"before": held, "after": held}}, {"data": restored({"a": "9", "b": "2"})})["data"]
    assert wrong["differences"] == ["a: different"]


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


# -- the rehearsal itself ----------------------------------------------------------------------------------------------
class Velero(PodKube):
    """A Restore ends in ``phase`` at once, and brings back claims with ``files``."""

    def __init__(self, files: dict[str, dict[str, str]], phase: str = "Completed") -> None:
        super().__init__(self.digest)
        self.files, self.phase = files, phase
        self.restore: dict[str, Any] = {}
        self.policies: list[dict[str, Any]] = []
        self.rules: list[dict[str, Any]] = []

    def digest(self, pod: str, argv: tuple[str, ...], stdin: bytes) -> str:
        assert argv == ("digest", "/data")
        volumes = self.objects["Pod", "restore-drill", pod]["spec"]["volumes"]
        return digest_lines(self.files[volumes[1]["persistentVolumeClaim"]["claimName"]])

    def apply(self, obj: Any, *, dry_run: bool = False, force: bool = True) -> dict[str, Any]:
        made = super().apply(obj)
        if made["kind"] == "NetworkPolicy":
            self.policies.append(made)
        if made["kind"] == "Restore":
            assert self.policies, "silence comes before the restored pods"
            assert ("Namespace", "", "restore-drill") in self.objects
            self.restore = made["spec"]
            rules = self.objects["ConfigMap", "velero", made["spec"]["resourceModifier"]["name"]]["data"]
            self.rules = json.loads(next(iter(rules.values())))["resourceModifierRules"]
            made["status"] = {"phase": self.phase, "failureReason": "corrupt"}
            for name in self.files:
                meta = {"name": name, "namespace": "restore-drill"}
                self.put({"kind": "PersistentVolumeClaim", "metadata": meta, "spec": {}})
        return made


def rehearse(tmp_path: Path, kube: Velero, entries: dict[str, str] | None = None) -> tuple[FakeContext, Any]:
    ctx = FakeContext(tmp_path, kube=kube)
    held = parse_digest(digest_lines(entries or FILES)).json()
    backed_up = {"data": {"before": held, "after": held}}
    pods = {"db-0": ["db", "side"]}
    ctx.evidence.save("backup", {"name": "backup-1", "claims": backed_up, "pods": pods}, inputs={})
    step = drill.plan(ctx.params, drill.look(ctx), {}).steps[0]
    return ctx, lambda: drill.ACTIONS["rehearse"](ctx, step)


def test_rehearsal(tmp_path: Path) -> None:
    kube = Velero({"data": FILES})
    kube.put({"kind": "Namespace", "metadata": {"name": "restore-drill", "labels": MANAGED}})
    kube.put({"kind": "ConfigMap", "metadata": {"name": "leftover", "namespace": "restore-drill"}})
    ctx, run = rehearse(tmp_path, kube)
    assert run() == {"backup": "backup-1", "claims": 1, "bytes": 2}
    assert kube.restore["backupName"] == "backup-1"
    assert kube.restore["includedNamespaces"] == ["services"]
    assert kube.restore["namespaceMapping"] == {"services": "restore-drill"}
    assert kube.policies[0]["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    (rule,) = kube.rules
    assert rule["conditions"]["resourceNameRegex"] == "^db\\-0$"
    assert rule["conditions"]["namespaces"] == ["services", "restore-drill"]
    asleep = json.loads(rule["strategicPatches"][0]["patchData"])["spec"]["containers"]
    assert [(c["name"], c["command"]) for c in asleep] == [("db", ["sleep", "86400"]), ("side", ["sleep", "86400"])]
    assert kube.objects == {}  # nothing of it is left, nor of the drill before
    evidence = ctx.evidence.load(drill.EVIDENCE)
    assert evidence is not None
    assert evidence.data["same"] is True


def test_a_flipped_byte_fails_the_rehearsal_and_is_no_evidence(tmp_path: Path) -> None:
    kube = Velero({"data": {**FILES, "b": "3"}})
    ctx, run = rehearse(tmp_path, kube)
    with pytest.raises(Refused, match="b: different") as caught:
        run()
    assert caught.value.where == "backup backup-1, claim data"
    assert "in 1 of 1 claims" in caught.value.what
    assert ctx.evidence.load(drill.EVIDENCE) is None
    assert ctx.evidence.load("restore-drill-failed") is not None
    assert kube.objects == {}


@pytest.mark.parametrize("phase", ["PartiallyFailed", "Failed", "FailedValidation"])
def test_a_restore_that_does_not_complete(tmp_path: Path, phase: str) -> None:
    kube = Velero({"data": FILES}, phase)
    ctx, run = rehearse(tmp_path, kube)
    with pytest.raises(Refused, match=f"ended {phase}") as caught:
        run()
    assert caught.value.why == "corrupt"
    assert kube.objects == {}
    assert ctx.evidence.load(drill.EVIDENCE) is None


def test_a_namespace_of_someone_else_is_not_taken_for_scratch(tmp_path: Path) -> None:
    kube = Velero({"data": FILES})
    kube.put({"kind": "Namespace", "metadata": {"name": "restore-drill"}})
    with pytest.raises(Refused, match="is not ours"):
        rehearse(tmp_path, kube)[1]()
    assert ("Namespace", "", "restore-drill") in kube.objects


def test_no_backup_no_rehearsal(tmp_path: Path) -> None:
    step = drill.plan(PARAMS, OPEN, {}).steps[0]
    with pytest.raises(NotFound, match="no backup on record"):
        drill.ACTIONS["rehearse"](FakeContext(tmp_path, kube=FakeKube()), step)


def test_a_backup_of_nothing_proves_nothing_and_says_so(tmp_path: Path) -> None:
    ctx = FakeContext(tmp_path, kube=PodKube(lambda *_: ""))
    ctx.evidence.save("backup", {"name": "backup-1", "claims": {}}, inputs={})
    ctx.evidence.save(drill.EVIDENCE, {"backup": "backup-1", "claims": {}, "same": True}, inputs={"backup": "backup-1"})
    said = {c.name: c.evidence for c in drill.verify(ctx)}
    assert "nothing is proved" in said["claims"]
