"""090: the backup proved: restored into a scratch namespace, compared byte for byte, evidence kept, scratch removed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from hybridlab.errors import NotFound, Refused
from hybridlab.models import Check, Finding, Json
from hybridlab.params import Params
from hybridlab.plan import Plan, Step, unknown
from hybridlab.ports import Context
from hybridlab.stages.base import Action, Upstream
from hybridlab.stages.claims import Digest, claims_in, differences, digest_claims
from hybridlab.stages.helperpod import remove_namespace
from hybridlab.stages.objects import MANAGED
from hybridlab.wait import wait_until

NAME = "drill"
NEEDS = ("backup",)
EVIDENCE = "restore-drill"
VELERO = "velero"
MODIFIER = "hybridlab-drill"
SLEEPER = "docker.io/library/busybox:1.37"
RESTORE_DEADLINE_S = 3600.0
DONE_PHASES = ("Completed", "PartiallyFailed", "Failed", "FailedValidation")
RESTORED = ("configmaps", "persistentvolumeclaims", "persistentvolumes", "pods", "secrets", "serviceaccounts")
"""Pods, because Velero fills a volume while its pod starts; not their controllers, Services or Ingresses: a drill must
not become a second set of the services."""


@dataclass(frozen=True)
class Seen:
    backup: str = ""  # the backup to be proved; empty while there is none
    usable: bool = False
    why: str = ""
    leftover: bool = False  # a scratch namespace of a drill that was killed


def look(ctx: Context) -> Seen:
    """Which backup is the newest on record, and whether it was proved already."""
    evidence = ctx.evidence.load("backup")
    name = str(evidence.data["name"]) if evidence else ""
    found, why = ctx.evidence.usable(
        EVIDENCE, inputs={"backup": name}, max_age_h=ctx.params.drill.max_age_h, now=ctx.clock.now()
    )
    kube = ctx.kube_or_none
    leftover = bool(kube and kube.get("v1", "Namespace", ctx.params.drill.namespace))
    return Seen(name, found is not None, why, leftover)


def plan(params: Params, seen: Seen, upstream: Upstream) -> Plan:
    """One step, the drill, unless the same backup was proved lately."""
    findings = []
    if not params.backs_up:
        note = Finding("note", "backup.endpoint", "there is no S3 target, and so no backup to rehearse")
        return Plan(NAME, (), {"proved": False}, (note,))
    backup = seen.backup or unknown("the backup that 080 makes")
    if seen.usable:
        findings.append(Finding("note", "evidence", f"backup {seen.backup} was restored and compared: {seen.why}"))
        return Plan(NAME, (), {"proved": True}, tuple(findings))
    if seen.leftover:
        findings.append(Finding("note", params.drill.namespace, "left by a drill that did not end: replaced"))
    if params.drill.namespace == params.migrate.namespace:
        findings.append(
            Finding("refusal", "drill.namespace", "the scratch namespace is the services' own", "choose another name")
        )
    step = Step(
        "rehearse",
        "rehearse",
        f"backup {backup}",
        f"restore into {params.drill.namespace} and compare ({seen.why})",
        "create",
        {"backup": backup, "namespace": params.drill.namespace},
    )
    return Plan(NAME, (step,), {"proved": True}, tuple(findings))


def _rehearse(ctx: Context, step: Step) -> Mapping[str, Json]:
    """Restore, digest every claim, compare with what the backup was made from; scratch goes away either way."""
    evidence = ctx.evidence.load("backup")
    if evidence is None:
        raise NotFound("there is no backup on record", next_move="run 080-back-up")
    backup, scratch = str(evidence.data["name"]), ctx.params.drill.namespace
    remove_namespace(ctx, scratch)
    ctx.kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": scratch, "labels": dict(MANAGED)}})
    ctx.kube.apply(_silence(scratch))
    ctx.kube.apply(_still(evidence.data.get("pods", {}), [ctx.params.migrate.namespace, scratch]))
    restore = f"drill-{datetime.now(UTC):%Y%m%d%H%M%S}"
    try:
        _restore(ctx, restore, backup, scratch)
        restored = digest_claims(ctx, claims_in(ctx.kube, scratch))
    finally:
        ctx.kube.delete("velero.io/v1", "Restore", restore, VELERO)
        ctx.kube.delete("v1", "ConfigMap", MODIFIER, VELERO)
        remove_namespace(ctx, scratch)
    rows = judge(evidence.data["claims"], restored)
    data = {"backup": backup, "claims": rows, "same": all(not r["differences"] for r in rows.values())}
    if not data["same"]:
        bad = {k: r["differences"] for k, r in rows.items() if r["differences"]}
        ctx.evidence.save("restore-drill-failed", data, inputs={"backup": backup})
        first = next(iter(bad))
        raise Refused(
            f"the restored data are not what was backed up in {len(bad)} of {len(rows)} claims",
            where=f"backup {backup}, claim {first}",
            why="; ".join(bad[first][:3]),
            next_move="make a new backup (run 080 with backup.max_age_h=0.001), and look at the S3 target",
        )
    ctx.evidence.save(EVIDENCE, data, inputs={"backup": backup})
    return {"backup": backup, "claims": len(rows), "bytes": sum(r["bytes"] for r in rows.values())}


def _silence(namespace: str) -> dict[str, Json]:
    """No traffic in or out: restored pods must not send mail, federate or take jobs."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "silence", "namespace": namespace, "labels": dict(MANAGED)},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]},
    }


def _still(pods: Mapping[str, list[str]], namespaces: list[str]) -> dict[str, Json]:
    """Velero's resource modifiers: every restored container sleeps instead of being itself.

    A database that started would change its files before they are compared, and a second set of services would work
    on the same outside world. Init containers stay: through one of them Velero fills the volumes.
    """
    rules = []
    for pod, containers in pods.items():
        asleep = [
            {
                "name": name,
                "image": SLEEPER,
                "command": ["sleep", "86400"],
                "args": None,
                "livenessProbe": None,
                "readinessProbe": None,
                "startupProbe": None,
                "lifecycle": None,
            }
            for name in containers
        ]
        rules.append(
            {
                "conditions": {
                    "groupResource": "pods",
                    "resourceNameRegex": f"^{re.escape(pod)}$",
                    "namespaces": namespaces,
                },
                "strategicPatches": [{"patchData": json.dumps({"spec": {"containers": asleep}})}],
            }
        )
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": MODIFIER, "namespace": VELERO, "labels": dict(MANAGED)},
        "data": {"rules.yaml": json.dumps({"version": "v1", "resourceModifierRules": rules}, indent=1)},
    }


def _restore(ctx: Context, name: str, backup: str, scratch: str) -> None:
    ctx.kube.apply(
        {
            "apiVersion": "velero.io/v1",
            "kind": "Restore",
            "metadata": {"name": name, "namespace": VELERO, "labels": dict(MANAGED)},
            "spec": {
                "backupName": backup,
                "includedNamespaces": [ctx.params.migrate.namespace],
                "includedResources": list(RESTORED),
                "namespaceMapping": {ctx.params.migrate.namespace: scratch},
                "restorePVs": True,
                "resourceModifier": {"kind": "configmap", "name": MODIFIER},
            },
        }
    )

    def phase(obj: dict[str, Json] | None) -> str:
        return str((obj or {}).get("status", {}).get("phase", "New"))

    done = wait_until(
        lambda: ctx.kube.get("velero.io/v1", "Restore", name, VELERO),
        lambda r: phase(r) in DONE_PHASES,
        what=f"restore of {backup} to complete",
        deadline_s=RESTORE_DEADLINE_S,
        clock=ctx.clock,
        describe=phase,
        progress=ctx.say,
    )
    if phase(done) != "Completed":
        status = (done or {}).get("status", {})
        problems = [status.get("failureReason", ""), *status.get("validationErrors", []), *_volume_problems(ctx, name)]
        raise Refused(
            f"restoring backup {backup} ended {phase(done)}",
            where=f"Restore {name}",
            why="; ".join(filter(None, problems)),
            next_move="the backup can't be relied on: look at the S3 target, then run 080 again",
        )


def _volume_problems(ctx: Context, restore: str) -> list[str]:
    rows = ctx.kube.list("velero.io/v1", "PodVolumeRestore", VELERO, labels=f"velero.io/restore-name={restore}")
    return [str(r["status"].get("message", "")) for r in rows if r.get("status", {}).get("phase") == "Failed"]


def judge(backed_up: Mapping[str, Json], restored: Mapping[str, Digest]) -> dict[str, dict[str, Json]]:
    """Each claim of the backup against its restored copy.

    Entries that changed while the backup ran (different before and after it) can't be judged and are counted apart;
    so are extended attributes, which a file-system backup loses.
    """
    rows: dict[str, dict[str, Json]] = {}
    for claim, digests in backed_up.items():
        before, after = _comparable(digests["before"]["entries"]), _comparable(digests["after"]["entries"])
        moving = {path for path in {*before, *after} if before.get(path) != after.get(path)}
        want = {path: line for path, line in before.items() if path not in moving}
        if claim not in restored:
            rows[claim] = {
                "differences": ["the claim was not restored"],
                "moving": len(moving),
                "entries": 0,
                "bytes": 0,
            }
            continue
        got = {path: line for path, line in _comparable(restored[claim].entries).items() if path not in moving}
        rows[claim] = {
            "differences": list(differences(want, got)),
            "moving": len(moving),
            "xattrs": sum("xattrs_sha256" in line for line in digests["before"]["entries"].values()),
            "entries": len(want),
            "bytes": restored[claim].bytes,
        }
    return rows


def _comparable(entries: Mapping[str, str]) -> dict[str, str]:
    """Entries without extended attributes: Velero's uploader does not keep them (kopia#544)."""
    kept = {}
    for path, line in entries.items():
        facts = json.loads(line)
        facts.pop("xattrs_sha256", None)
        kept[path] = json.dumps(facts, sort_keys=True)
    return kept


ACTIONS: Mapping[str, Action] = {"rehearse": _rehearse}


def verify(ctx: Context) -> tuple[Check, ...]:
    """The evidence is of the newest backup, every claim came back the same, and no scratch is left."""
    if not ctx.params.backs_up:
        return ()
    evidence, seen = ctx.evidence.load(EVIDENCE), look(ctx)
    checks = [Check("scratch removed", not seen.leftover, f"namespace {ctx.params.drill.namespace}")]
    if evidence is None:
        return (*checks, Check("drill", False, "there is no evidence", "run 090 again"))
    data = evidence.data
    newest = data["backup"] == seen.backup
    checks.append(Check("backup", newest, f"{data['backup']}" + ("" if newest else f", the newest is {seen.backup}")))
    if not data["claims"]:
        checks.append(
            Check("claims", True, "the backup holds no claim's data: nothing was compared, nothing is proved")
        )
    for claim, row in data["claims"].items():
        text = f"{row['entries']} entries, {row['bytes']:,} bytes the same"
        if row["moving"]:
            text += f"; {row['moving']} changed while the backup ran and were not judged"
        if row.get("xattrs"):
            text += f"; extended attributes of {row['xattrs']} are not in backups"
        checks.append(Check(f"claim {claim}", not row["differences"], "; ".join(row["differences"][:3]) or text))
    return tuple(checks)
