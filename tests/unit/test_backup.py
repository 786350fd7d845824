"""080: which claims a backup really has, the S3 target proved, and Velero's pieces in order."""

from __future__ import annotations

import base64
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeContext, FakeKube, FakeS3, make_params
from ruamel.yaml import YAML

from hybridlab.errors import DeadlineExceeded, Refused
from hybridlab.plan import Plan, Step
from hybridlab.stages import backup, drill
from hybridlab.stages.backup import Seen, backup_inputs, coverage, velero, wanted_objects
from hybridlab.stages.claims import ClaimUse
from hybridlab.stages.objects import Differences, ref

PARAMS = make_params()
USED = ClaimUse("services", "data", "Bound", "hybridlab", ("pod-1",), "arm-1")
UNUSED = ClaimUse("services", "old", "Bound", "hybridlab")


def volume(claim: str, phase: str = "Completed", *, by: str = "tag", **status: Any) -> dict[str, Any]:
    meta: dict[str, Any] = {"name": f"b-{claim}", "namespace": "velero"}
    spec: dict[str, Any] = {"uploaderType": "kopia"}
    if by == "tag":
        spec["tags"] = {"pvc-name": claim}
    else:
        meta["annotations"] = {"velero.io/pvc-name": claim}
    return {"kind": "PodVolumeBackup", "metadata": meta, "spec": spec, "status": {"phase": phase, **status}}


# -- coverage ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("claim", "volumes", "covered", "why"),
    [
        (USED, [volume("data", progress={"totalBytes": 12345})], True, "12,345 bytes by kopia"),
        (USED, [volume("data", by="annotation")], True, "0 bytes by kopia"),
        (USED, [volume("other")], False, "skipped by Velero"),
        (USED, [], False, "skipped by Velero"),
        (USED, [volume("data", "Failed", message="timeout")], False, "its volume backup is Failed: timeout"),
        (USED, [volume("data", "InProgress")], False, "its volume backup is InProgress"),
        (USED, [volume("data", "Failed"), volume("data")], True, "bytes by kopia"),
        (UNUSED, [], False, "nothing that runs mounts it"),
        (UNUSED, [volume("old")], True, "bytes by kopia"),
    ],
)
def test_coverage(claim: ClaimUse, volumes: list[Any], covered: bool, why: str) -> None:
    (row,) = coverage((claim,), tuple(volumes))
    assert (row.claim, row.covered) == (claim.key, covered)
    assert why in row.why


def test_every_claim_has_a_row() -> None:
    rows = coverage((USED, UNUSED), (volume("data"),))
    assert [(r.claim, r.covered) for r in rows] == [("services/data", True), ("services/old", False)]
    assert coverage((), (volume("data"),)) == ()


# -- the plan ----------------------------------------------------------------------------------------------------------
MISSING = Differences({ref(o): ("",) for o in wanted_objects(PARAMS, "http://s3")})
DONE = Seen("1 h old", "", Differences(), "ok", (USED,), "2.0 h old", "", "http://s3", "Available")
NEW = Seen("", "there is none yet", MISSING, "missing", (), "", "there is none yet", "http://s3", "")


def plan(seen: Seen, **changes: Any) -> Plan:
    return backup.plan(make_params(changes), seen, {})


def test_from_nothing_everything_in_order() -> None:
    made = plan(NEW)
    assert [(s.id, s.action) for s in made.steps] == [
        ("prove-target", "prove-target"),
        ("apply:Namespace/velero", "apply"),
        ("put-credentials", "put-credentials"),
        ("apply:HelmChart/kube-system/velero", "apply-chart"),
        ("await-location", "await-location"),
        ("apply:Schedule/velero/hybridlab-daily", "apply"),
        ("back-up", "back-up"),
    ]
    assert all(s.action in backup.ACTIONS for s in made.steps)
    assert "SK-secret" not in str(made)


def test_what_is_done_needs_nothing() -> None:
    made = plan(DONE)
    assert made.steps == ()
    assert [f.text for f in made.findings] == ["the last one is 2.0 h old"]


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({"target": "", "target_missing": "x"}, ["prove-target"]),
        ({"credentials": "missing"}, ["put-credentials"]),
        ({"credentials": "different"}, ["put-credentials"]),
        ({"evidence": "", "evidence_missing": "x"}, ["back-up"]),
        (
            {"objects": Differences({"Schedule/velero/hybridlab-daily": ("spec.schedule",)})},
            ["apply:Schedule/velero/hybridlab-daily"],
        ),
        (
            {"credentials": "different", "location": "Unavailable"},
            ["put-credentials", "await-location"],
        ),
    ],
)
def test_one_drift_one_step(changes: dict[str, Any], steps: list[str]) -> None:
    assert [s.id for s in plan(replace(DONE, **changes)).steps] == steps


def test_restic_is_refused() -> None:
    made = plan(DONE, **{"backup.uploader": "restic"})
    assert [f.level for f in made.findings] == ["refusal", "note"]
    assert "kopia" in made.findings[0].next_move


# -- Velero as objects -------------------------------------------------------------------------------------------------
def test_chart_values() -> None:
    params = make_params({"backup.bucket": "my-bucket", "backup.region": "eu"})
    values = velero.chart_values(params, "http://s3.cluster:1")
    location = values["configuration"]["backupStorageLocation"][0]
    assert (location["bucket"], location["prefix"], location["default"]) == ("my-bucket", "homelab", True)
    assert location["config"] == {
        "region": "eu",
        "s3Url": "http://s3.cluster:1",
        "s3ForcePathStyle": "true",
        "checksumAlgorithm": "",
    }
    assert values["deployNodeAgent"] is True
    assert values["snapshotsEnabled"] is False
    assert values["configuration"]["defaultVolumesToFsBackup"] is True
    assert values["nodeAgent"]["tolerations"] == [
        {"key": "hybridlab.io/small", "operator": "Exists", "effect": "NoSchedule"}
    ]
    assert values["credentials"] == {"existingSecret": "hybridlab-s3"}
    assert values["initContainers"][0]["image"].endswith("velero-plugin-for-aws:v1.13.0")
    chart = wanted_objects(params, "http://s3.cluster:1")[1]
    assert YAML(typ="safe").load(chart["spec"]["valuesContent"]) == values
    assert (chart["spec"]["version"], chart["spec"]["targetNamespace"]) == ("12.1.0", "velero")


def test_backup_and_schedule_hold_the_services() -> None:
    params = make_params({"migrate.namespace": "web", "backup.ttl_h": 48, "backup.schedule": "0 4 * * *"})
    one, daily = velero.backup(params, "homelab-1"), velero.schedule(params)
    assert one["spec"] == daily["spec"]["template"]
    assert one["spec"] == {
        "includedNamespaces": ["web"],
        "storageLocation": "default",
        "defaultVolumesToFsBackup": True,
        "snapshotVolumes": False,
        "ttl": "48h0m0s",
    }
    assert daily["spec"]["schedule"] == "0 4 * * *"
    assert (one["metadata"]["name"], one["metadata"]["namespace"]) == ("homelab-1", "velero")


def test_secrets() -> None:
    made = velero.credentials_secret("AK", "SK")
    text = base64.b64decode(made["data"]["cloud"]).decode()
    assert text == "[default]\naws_access_key_id=AK\naws_secret_access_key=SK\n"
    assert made["metadata"]["name"] == "hybridlab-s3"
    own = velero.repo_secret("own")
    assert own["metadata"]["name"] == "velero-repo-credentials"
    assert base64.b64decode(own["data"]["repository-password"]) == b"own"


def test_what_makes_a_backup_insufficient() -> None:
    same = backup_inputs(PARAMS, (USED,))
    assert backup_inputs(PARAMS, (replace(USED, node="arm-2", pods=("x",)),)) == same
    assert backup_inputs(PARAMS, (USED, UNUSED)) != same
    assert backup_inputs(make_params({"backup.bucket": "other"}), (USED,)) != same
    assert backup_inputs(make_params({"migrate.namespace": "other"}), (USED,)) != same


# -- actions -----------------------------------------------------------------------------------------------------------
STEP = Step("x", "x", "", "", "create")


def test_the_target_is_proved_by_a_multipart_upload_and_cleaned(tmp_path: Path) -> None:
    ctx = FakeContext(tmp_path)
    made = backup.ACTIONS["prove-target"](ctx, STEP)
    assert ctx.s3.parts == [5 * 1024 * 1024 + 1024] * 2
    assert made["bytes"] == sum(ctx.s3.parts)
    assert ctx.s3.held == {}
    assert ctx.evidence.load("s3-target") is not None


def test_a_target_that_damages_data_is_refused(tmp_path: Path) -> None:
    ctx = FakeContext(tmp_path)
    ctx.s3 = FakeS3(damage=True)
    with pytest.raises(Refused, match="other bytes than it got"):
        backup.ACTIONS["prove-target"](ctx, STEP)
    assert ctx.s3.held == {}
    assert ctx.evidence.load("s3-target") is None


def test_credentials_and_a_password_of_its_own(tmp_path: Path) -> None:
    kube = FakeKube()
    ctx = FakeContext(tmp_path, kube=kube)
    assert backup.look(ctx).credentials == "missing"
    backup.ACTIONS["put-credentials"](ctx, STEP)
    password = ctx.secrets.get("velero_repo_password")
    assert password is not None
    held = kube.objects["Secret", "velero", "velero-repo-credentials"]["data"]["repository-password"]
    assert base64.b64decode(held).decode() == password.reveal()
    assert "SK-secret-value" in ctx.secrets.values()
    assert backup.look(ctx).credentials == "ok"
    backup.ACTIONS["put-credentials"](ctx, STEP)
    again = ctx.secrets.get("velero_repo_password")
    assert again is not None
    assert again.reveal() == password.reveal()
    kube.objects["Secret", "velero", "hybridlab-s3"]["data"]["cloud"] = "other"
    assert backup.look(ctx).credentials == "different"
    kube.delete("v1", "Secret", "velero-repo-credentials", "velero")
    assert backup.look(ctx).credentials == "missing"


def test_the_location_must_be_available(tmp_path: Path) -> None:
    meta = {"name": "default", "namespace": "velero"}
    location = {"kind": "BackupStorageLocation", "metadata": meta, "status": {"phase": "Unavailable", "message": "403"}}
    kube = FakeKube(location)
    ctx = FakeContext(tmp_path, kube=kube)
    with pytest.raises(DeadlineExceeded, match="Unavailable 403"):
        backup.ACTIONS["await-location"](ctx, STEP)
    kube.objects["BackupStorageLocation", "velero", "default"]["status"] = {"phase": "Available"}
    backup.ACTIONS["await-location"](ctx, STEP)


class VeleroKube(FakeKube):
    """Velero: a Backup ends in ``phase`` at once."""

    phase = "Completed"

    def apply(self, obj: Any, **options: Any) -> dict[str, Any]:
        made = super().apply(obj)
        if made["kind"] == "Backup":
            made["status"] = {"phase": self.phase, "validationErrors": ["no location"]}
        return made


def test_a_backup_is_kept_as_evidence_and_gone_with_its_object(tmp_path: Path) -> None:
    from datetime import UTC, datetime

    kube = VeleroKube()
    ctx = FakeContext(tmp_path, kube=kube)
    ctx.clock.time = datetime.now(UTC).timestamp()
    assert backup.look(ctx).evidence_missing == "there is none yet"
    name = backup.ACTIONS["back-up"](ctx, STEP)["name"]
    assert name.startswith("homelab-")
    assert backup.look(ctx).evidence
    kube.delete("velero.io/v1", "Backup", name, "velero")
    assert backup.look(ctx).evidence_missing == f"backup {name} is gone"


@pytest.mark.parametrize("phase", ["PartiallyFailed", "Failed", "FailedValidation"])
def test_a_backup_that_did_not_complete_is_no_evidence(tmp_path: Path, phase: str) -> None:
    kube = VeleroKube()
    kube.phase = phase
    ctx = FakeContext(tmp_path, kube=kube)
    with pytest.raises(Refused, match=f"ended {phase}: no location"):
        backup.ACTIONS["back-up"](ctx, STEP)
    assert ctx.evidence.load("backup") is None


def test_a_backup_that_still_runs_is_waited_for_not_doubled(tmp_path: Path) -> None:
    labels = {"app.kubernetes.io/managed-by": "hybridlab"}
    meta = {"name": "earlier", "namespace": "velero", "labels": labels}
    running = {"kind": "Backup", "metadata": meta, "spec": {}, "status": {"phase": "InProgress"}}
    theirs = {**running, "metadata": {**meta, "name": "another", "labels": {}}}
    done = {**running, "metadata": {**meta, "name": "a-done"}, "status": {"phase": "Completed"}}
    kube = VeleroKube(theirs, done, running)
    assert backup.ACTIONS["back-up"](FakeContext(tmp_path, kube=kube), STEP)["name"] == "earlier"


# -- verify ------------------------------------------------------------------------------------------------------------
def verified(tmp_path: Path, **spoil: Any) -> list[str]:
    def obj(kind: str, name: str, phase: str) -> dict[str, Any]:
        meta = {"name": name, "namespace": "velero"}
        return {"kind": kind, "metadata": meta, "spec": {}, "status": {"phase": phase}}

    def claim(name: str) -> dict[str, Any]:
        return {"kind": "PersistentVolumeClaim", "metadata": {"name": name, "namespace": "services"}, "spec": {}}

    mounts = {"volumes": [{"persistentVolumeClaim": {"claimName": "data"}}], "nodeName": "arm-1"}
    pod = {"kind": "Pod", "metadata": {"name": "web", "namespace": "services"}, "spec": mounts}
    saved = volume("data")
    saved["metadata"]["labels"] = {"velero.io/backup-name": spoil.get("of", "b1")}
    kube = FakeKube(
        obj("BackupStorageLocation", "default", spoil.get("location", "Available")),
        obj("Schedule", "hybridlab-daily", spoil.get("schedule", "Enabled")),
        obj("Backup", "b1", spoil.get("phase", "Completed")),
        claim("data"),
        claim("mounted-by-nobody"),
        pod,
        saved,
    )
    ctx = FakeContext(tmp_path, kube=kube)
    if spoil.get("evidence", True):
        ctx.evidence.save("backup", {"name": "b1"}, inputs={})
    return [c.name for c in backup.verify(ctx) if not c.ok]


@pytest.mark.parametrize(
    ("spoil", "failed"),
    [
        ({}, []),
        ({"location": "Unavailable"}, ["backup location"]),
        ({"schedule": "New"}, ["schedule"]),
        ({"phase": "PartiallyFailed"}, ["backup"]),
        ({"of": "another-backup"}, ["claim services/data"]),
        ({"evidence": False}, ["backup"]),
    ],
)
def test_verify(tmp_path: Path, spoil: dict[str, Any], failed: list[str]) -> None:
    assert verified(tmp_path, **spoil) == failed


def test_without_a_target_nothing_is_planned_and_it_is_said(tmp_path: Path) -> None:
    hosts = [{**n, "address": f"192.0.2.{i}"} for i, n in enumerate(make_params().plain()["nodes"], 1)]
    params = make_params(site="byo", nodes=hosts)
    assert not params.backs_up
    made = backup.plan(params, Seen(), {})
    assert (made.steps, made.expected["bucket"]) == ((), "")
    assert [(f.level, f.subject) for f in made.findings] == [("warning", "backup.endpoint")]
    ctx = FakeContext(tmp_path, params=params)
    assert (backup.look(ctx), backup.verify(ctx)) == (Seen(), ())
    assert drill.plan(params, drill.look(ctx), {}).steps == ()
    assert drill.verify(ctx) == ()
    assert make_params({"backup.endpoint": "https://s3.example.org"}, site="byo", nodes=hosts).backs_up
    assert make_params().backs_up  # the lab has its own
