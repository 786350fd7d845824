"""080: the S3 target proved, Velero, a schedule, a completed backup, and which claims are really in it."""

from __future__ import annotations

import hashlib
import secrets as chance
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from hybridlab.errors import Refused
from hybridlab.models import Check, Finding, Json
from hybridlab.params import Params
from hybridlab.plan import Plan, Step
from hybridlab.ports import Context, Kube
from hybridlab.stages.backup import velero
from hybridlab.stages.base import Action, Upstream
from hybridlab.stages.charts import apply_chart, helm_chart
from hybridlab.stages.claims import ClaimUse, claims_in, digest_claims
from hybridlab.stages.objects import MANAGED, Differences, apply_object, apply_steps, look_objects
from hybridlab.wait import wait_until

NAME = "backup"
NEEDS = ("migrate",)
EVIDENCE = "backup"
TARGET_EVIDENCE = "s3-target"
TARGET_MAX_AGE_H = 24 * 30
PROOF_PARTS = 2
PROOF_PART_BYTES = 5 * 1024 * 1024 + 1024  # over 5 MiB each, so that the upload really is a multipart one
BACKUP_DEADLINE_S = 3600.0
DONE_PHASES = ("Completed", "PartiallyFailed", "Failed", "FailedValidation")


@dataclass(frozen=True)
class Covered:
    """One claim and whether the backup has its data, or why not."""

    claim: str
    covered: bool
    why: str


@dataclass(frozen=True)
class Seen:
    """Target and backup evidence, Velero's objects against what is wanted, secrets by presence, claims."""

    target: str = ""  # why the target need not be proved again; empty when it must
    target_missing: str = ""
    objects: Differences = field(default_factory=Differences)
    credentials: str = "missing"  # missing, different, ok
    claims: tuple[ClaimUse, ...] = ()
    evidence: str = ""
    evidence_missing: str = ""
    endpoint: str = ""  # of the S3 target, as pods reach it
    location: str = ""  # phase of the BackupStorageLocation


def wanted_objects(params: Params, endpoint: str) -> tuple[dict[str, Json], ...]:
    chart = helm_chart("velero", velero.CHART, velero.NAMESPACE, velero.chart_values(params, endpoint))
    return velero.namespace(), chart, velero.schedule(params)


def target_inputs(ctx: Context) -> dict[str, Json]:
    return {"endpoint": ctx.s3.endpoint, "bucket": ctx.s3.bucket}


def backup_inputs(params: Params, claims: tuple[ClaimUse, ...]) -> dict[str, Json]:
    """Another set of claims, or another place, makes the last backup insufficient."""
    return {
        "namespace": params.migrate.namespace,
        "bucket": params.backup.bucket,
        "claims": [c.name for c in claims],
    }


def look(ctx: Context) -> Seen:
    """Look at the evidence, at Velero's objects, and at the claims that should be in a backup."""
    params, kube, now = ctx.params, ctx.kube_or_none, ctx.clock.now()
    if not params.backs_up:
        return Seen()
    settings = ctx.site.s3_settings()
    target, target_why = ctx.evidence.usable(
        TARGET_EVIDENCE, inputs=target_inputs(ctx), max_age_h=TARGET_MAX_AGE_H, now=now
    )
    claims = claims_in(kube, params.migrate.namespace) if kube else ()
    evidence, why = ctx.evidence.usable(
        EVIDENCE, inputs=backup_inputs(params, claims), max_age_h=params.backup.max_age_h, now=now
    )
    name = str(evidence.data["name"]) if evidence else ""
    if name and kube and kube.get("velero.io/v1", "Backup", name, velero.NAMESPACE) is None:
        evidence, why = None, f"backup {name} is gone"
    location = kube.get("velero.io/v1", "BackupStorageLocation", velero.LOCATION, velero.NAMESPACE) if kube else None
    return Seen(
        target=target_why if target else "",
        target_missing="" if target else target_why,
        objects=look_objects(kube, wanted_objects(params, settings["cluster_endpoint"])),
        credentials=_look_credentials(ctx, kube, settings),
        claims=claims,
        evidence=why if evidence else "",
        evidence_missing="" if evidence else why,
        endpoint=settings["cluster_endpoint"],
        location=str((location or {}).get("status", {}).get("phase", "")),
    )


def _look_credentials(ctx: Context, kube: Kube | None, settings: Mapping[str, str]) -> str:
    if kube is None:
        return "missing"
    wanted = velero.credentials_secret(settings["access_key"], settings["secret_key"])
    live = kube.get("v1", "Secret", velero.CREDENTIALS, velero.NAMESPACE)
    repo = kube.get("v1", "Secret", velero.REPO_CREDENTIALS, velero.NAMESPACE)
    if live is None or repo is None or ctx.secrets.get("velero_repo_password") is None:
        return "missing"
    return "ok" if live.get("data") == wanted["data"] else "different"


def plan(params: Params, seen: Seen, upstream: Upstream) -> Plan:
    """Prove the target, install Velero with its own repository password, schedule, and back up now."""
    findings, steps = [], []
    if not params.backs_up:
        text = "there is no S3 target: nothing is backed up"
        warning = Finding("warning", "backup.endpoint", text, "give the endpoint's URL and credentials in the params")
        return Plan(NAME, (), {"namespace": params.migrate.namespace, "bucket": ""}, (warning,))
    if params.backup.uploader == "restic":
        findings.append(
            Finding(
                "refusal",
                "backup.uploader restic",
                f"Velero {velero.VELERO} no longer writes restic backups (removed in 1.17; restores end with 1.19)",
                "use kopia: the same file-system backup with Velero's present uploader",
            )
        )
    if not seen.target:
        steps.append(
            Step(
                "prove-target",
                "prove-target",
                f"s3://{params.backup.bucket}",
                f"an upload over 5 MiB, read back ({seen.target_missing})",
                "create",
                {"bucket": params.backup.bucket},
            )
        )
    applied = {
        s.target: s for s in apply_steps(wanted_objects(params, seen.endpoint), seen.objects, "backups by Velero")
    }
    for name, step in applied.items():
        if name.startswith("Namespace/"):
            steps.append(step)
    if seen.credentials != "ok":
        steps.append(
            Step(
                "put-credentials",
                "put-credentials",
                f"Secret/{velero.NAMESPACE}/{velero.CREDENTIALS}",
                f"S3 keys and a repository password of its own ({seen.credentials})",
                "create",
            )
        )
    for name, step in applied.items():
        if name.startswith("HelmChart/"):
            steps.append(Step(**{**step.__dict__, "action": "apply-chart"}))
    if steps and seen.location != "Available":
        steps.append(
            Step("await-location", "await-location", "BackupStorageLocation", "Velero must reach the bucket", "none")
        )
    steps += [s for name, s in applied.items() if name.startswith("Schedule/")]
    if not seen.evidence:
        steps.append(
            Step(
                "back-up",
                "back-up",
                f"namespace {params.migrate.namespace}",
                f"a backup now, its data digested beside it ({seen.evidence_missing})",
                "create",
                {"namespace": params.migrate.namespace},
            )
        )
    for claim in seen.claims:
        if not claim.pods:
            text = "not in any backup: nothing that runs mounts it, and Velero skips such claims"
            findings.append(
                Finding("warning", f"claim {claim.key}", text, "mount it, or delete it if it is not needed")
            )
    if seen.evidence:
        findings.append(Finding("note", "backup", f"the last one is {seen.evidence}"))
    expected = {"namespace": params.migrate.namespace, "bucket": params.backup.bucket}
    return Plan(NAME, tuple(steps), expected, tuple(findings))


# -- actions -----------------------------------------------------------------------------------------------------------
def _prove_target(ctx: Context, step: Step) -> Mapping[str, Json]:
    """Multipart upload, read back, compare, delete: small uploads pass on targets where real backups fail."""
    made = ctx.s3.ensure_bucket()
    key, want = f"{ctx.params.cluster}/hybridlab-proof-{chance.token_hex(8)}", hashlib.sha256()

    def parts() -> Iterator[bytes]:
        for _ in range(PROOF_PARTS):
            piece = chance.token_bytes(PROOF_PART_BYTES)
            want.update(piece)
            yield piece

    try:
        ctx.s3.put_multipart(key, parts())
        got, size = hashlib.sha256(), 0
        for piece in ctx.s3.get(key):
            got.update(piece)
            size += len(piece)
    finally:
        ctx.s3.delete([key])
    if got.hexdigest() != want.hexdigest():
        raise Refused("the S3 target gave back other bytes than it got", where=f"s3://{ctx.s3.bucket}/{key}")
    data = {"bytes": size, "sha256": got.hexdigest(), "bucket_made": made}
    ctx.evidence.save(TARGET_EVIDENCE, data, inputs=target_inputs(ctx))
    return data


def _put_credentials(ctx: Context, step: Step) -> Mapping[str, Json]:
    settings = ctx.site.s3_settings()
    ctx.secrets.put("s3_secret_key", settings["secret_key"])
    password = ctx.secrets.get_or_make("velero_repo_password")
    ctx.kube.apply(velero.repo_secret(password.reveal()))
    ctx.kube.apply(velero.credentials_secret(settings["access_key"], settings["secret_key"]))
    return {}


def _await_location(ctx: Context, step: Step) -> Mapping[str, Json]:
    def phase(obj: dict[str, Json] | None) -> str:
        status = (obj or {}).get("status", {})
        return f"{status.get('phase', 'not there yet')} {status.get('message', '')}".strip()

    wait_until(
        lambda: ctx.kube.get("velero.io/v1", "BackupStorageLocation", velero.LOCATION, velero.NAMESPACE),
        lambda o: phase(o).startswith("Available"),
        what="the backup location to be Available",
        deadline_s=300,
        clock=ctx.clock,
        describe=phase,
        next_move="check backup.endpoint, bucket and credentials",
    )
    return {}


def _back_up(ctx: Context, step: Step) -> Mapping[str, Json]:
    """Digest the claims, back up, digest again: what did not change meanwhile must come back byte for byte."""
    params = ctx.params
    claims = claims_in(ctx.kube, params.migrate.namespace)
    readable = tuple(c for c in claims if c.node)
    before = digest_claims(ctx, readable)
    name = _running_backup(ctx) or f"{params.cluster}-{datetime.now(UTC):%Y%m%d%H%M%S}"
    ctx.kube.apply(velero.backup(params, name))
    done = wait_until(
        lambda: ctx.kube.get("velero.io/v1", "Backup", name, velero.NAMESPACE),
        lambda b: (b or {}).get("status", {}).get("phase") in DONE_PHASES,
        what=f"backup {name} to complete",
        deadline_s=BACKUP_DEADLINE_S,
        clock=ctx.clock,
        describe=lambda b: str((b or {}).get("status", {}).get("phase", "New")),
        progress=ctx.say,
    )
    assert done is not None
    status = done["status"]
    if status["phase"] != "Completed":
        problems = [status.get("failureReason", ""), *status.get("validationErrors", [])]
        raise Refused(
            f"backup {name} ended {status['phase']}",
            why="; ".join(filter(None, problems)),
            next_move=f"look at: kubectl -n {velero.NAMESPACE} describe backup {name}",
        )
    after = digest_claims(ctx, readable)
    data = {
        "name": name,
        "claims": {c: {"before": before[c].json(), "after": after[c].json()} for c in after},
        "pods": _pods(ctx.kube, params.migrate.namespace),
        "coverage": [c.__dict__ for c in coverage(claims, _volume_backups(ctx.kube, name))],
    }
    ctx.evidence.save(EVIDENCE, data, inputs=backup_inputs(params, claims))
    return {"name": name, "claims": len(claims)}


def _pods(kube: Kube, namespace: str) -> dict[str, list[str]]:
    """The pods in the backup with their containers: a restore drill replaces what these run."""
    return {
        p["metadata"]["name"]: [c["name"] for c in p["spec"]["containers"]] for p in kube.list("v1", "Pod", namespace)
    }


def _running_backup(ctx: Context) -> str:
    """A backup of ours that an interrupted run left in progress."""
    labels = ",".join(f"{k}={v}" for k, v in MANAGED.items())
    for found in ctx.kube.list("velero.io/v1", "Backup", velero.NAMESPACE, labels=labels):
        if found.get("status", {}).get("phase", "New") in ("New", "InProgress", "Queued", "ReadyToStart"):
            return str(found["metadata"]["name"])
    return ""


def _volume_backups(kube: Kube, backup: str) -> tuple[dict[str, Json], ...]:
    return kube.list("velero.io/v1", "PodVolumeBackup", velero.NAMESPACE, labels=f"velero.io/backup-name={backup}")


ACTIONS: Mapping[str, Action] = {
    "prove-target": _prove_target,
    "apply": apply_object,
    "put-credentials": _put_credentials,
    "apply-chart": apply_chart,
    "await-location": _await_location,
    "back-up": _back_up,
}


# -- coverage ----------------------------------------------------------------------------------------------------------
def coverage(claims: tuple[ClaimUse, ...], volume_backups: tuple[dict[str, Json], ...]) -> tuple[Covered, ...]:
    """Every claim: in the backup, or why not. A Completed backup may lack data, with no more than a warning."""
    found = []
    for claim in claims:
        mine = [b for b in volume_backups if _claim_of(b) == claim.name]
        complete = [b for b in mine if b.get("status", {}).get("phase") == "Completed"]
        if complete:
            size = complete[0]["status"].get("progress", {}).get("totalBytes", 0)
            found.append(Covered(claim.key, True, f"{size:,} bytes by {complete[0]['spec'].get('uploaderType', '?')}"))
        elif mine:
            status = mine[0].get("status", {})
            why = f"its volume backup is {status.get('phase', 'New')}: {status.get('message', '')}"
            found.append(Covered(claim.key, False, why))
        elif not claim.pods:
            found.append(Covered(claim.key, False, "nothing that runs mounts it: Velero skips such claims"))
        else:
            found.append(Covered(claim.key, False, "skipped by Velero (a hostPath volume, or its pod was not running)"))
    return tuple(found)


def _claim_of(volume_backup: Mapping[str, Json]) -> str:
    tags = volume_backup["spec"].get("tags", {})
    annotations = volume_backup["metadata"].get("annotations", {})
    return str(tags.get("pvc-name") or annotations.get("velero.io/pvc-name", ""))


def verify(ctx: Context) -> tuple[Check, ...]:
    """Location available, schedule enabled, backup completed, every claim covered."""
    if not ctx.params.backs_up:
        return ()
    location = ctx.kube.get("velero.io/v1", "BackupStorageLocation", velero.LOCATION, velero.NAMESPACE)
    phase = str((location or {}).get("status", {}).get("phase", "missing"))
    checks = [Check("backup location", phase == "Available", phase)]
    plans = ctx.kube.get("velero.io/v1", "Schedule", velero.SCHEDULE, velero.NAMESPACE)
    state = str((plans or {}).get("status", {}).get("phase", "missing"))
    checks.append(Check("schedule", state == "Enabled", f"{state}, {ctx.params.backup.schedule}"))
    evidence = ctx.evidence.load(EVIDENCE)
    if evidence is None:
        return (*checks, Check("backup", False, "there is none", "run 080 again"))
    name = str(evidence.data["name"])
    found = ctx.kube.get("velero.io/v1", "Backup", name, velero.NAMESPACE)
    status = (found or {}).get("status", {})
    checks.append(Check("backup", status.get("phase") == "Completed", f"{name}: {status.get('phase', 'gone')}"))
    claims = tuple(c for c in claims_in(ctx.kube, ctx.params.migrate.namespace) if c.pods)
    for row in coverage(claims, _volume_backups(ctx.kube, name)):
        checks.append(Check(f"claim {row.claim}", row.covered, row.why))
    return tuple(checks)
