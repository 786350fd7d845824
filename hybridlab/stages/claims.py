"""The data in claims: what is mounted where, and a digest of it, file by file."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from hybridlab.models import Json
from hybridlab.ports import Context, Kube
from hybridlab.stages.helperpod import MOUNT, running_helper


@dataclass(frozen=True)
class ClaimUse:
    """A claim and who mounts it; ``node`` is where, empty while nothing that runs does."""

    namespace: str
    name: str
    phase: str
    storage_class: str
    pods: tuple[str, ...] = ()
    node: str = ""

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True)
class Digest:
    """What lies in a claim: one sha256 over everything, and one per entry (path → hash of its line)."""

    sha256: str
    entries: Mapping[str, str] = field(default_factory=dict)
    bytes: int = 0
    size: int = 0  # what the files take, holes left out; known without reading them

    def json(self) -> dict[str, Json]:
        return {"sha256": self.sha256, "entries": dict(self.entries), "bytes": self.bytes}


def claims_in(kube: Kube, namespace: str) -> tuple[ClaimUse, ...]:
    """Every claim of a namespace with the running pods that mount it."""
    users: dict[str, list[dict[str, Json]]] = {}
    for pod in kube.list("v1", "Pod", namespace):
        if pod.get("status", {}).get("phase") in ("Succeeded", "Failed"):
            continue
        for volume in pod["spec"].get("volumes", []):
            name = volume.get("persistentVolumeClaim", {}).get("claimName")
            if name:
                users.setdefault(name, []).append(pod)
    found = []
    for claim in kube.list("v1", "PersistentVolumeClaim", namespace):
        name = claim["metadata"]["name"]
        pods = users.get(name, [])
        node = next((p["spec"]["nodeName"] for p in pods if p["spec"].get("nodeName")), "")
        found.append(
            ClaimUse(
                namespace,
                name,
                claim.get("status", {}).get("phase", ""),
                claim["spec"].get("storageClassName", ""),
                tuple(sorted(p["metadata"]["name"] for p in pods)),
                node,
            )
        )
    return tuple(sorted(found, key=lambda c: c.name))


def digest_claims(ctx: Context, claims: tuple[ClaimUse, ...]) -> dict[str, Digest]:
    """Digest each claim by a helper pod beside the pod that uses it (a ReadWriteOnce claim is on one node)."""
    found = {}
    for number, claim in enumerate(claims):
        ctx.say(f"digest of {claim.key}")
        pod = f"hybridlab-digest-{number}"
        with running_helper(ctx, claim.namespace, pod, {claim.name: MOUNT}, node=claim.node or None) as call:
            found[claim.name] = parse_digest(call("digest", MOUNT))
    return found


def parse_digest(output: str) -> Digest:
    """The helper's JSON lines: one per entry, then a summary."""
    entries, summary = {}, {}
    for line in output.splitlines():
        row = json.loads(line)
        if not row.get("summary"):
            path = row.get("path") or base64.b64decode(row["path_b64"]).decode(errors="surrogateescape")
            facts = {k: v for k, v in row.items() if k not in ("path", "path_b64", "mtime", "mtime_ns")}
            entries[path.encode(errors="backslashreplace").decode()] = json.dumps(facts, sort_keys=True)
        else:
            summary = row
    return Digest(str(summary["sha256"]), entries, int(summary.get("bytes", 0)), int(summary.get("size", 0)))


def differences(left: Mapping[str, str], right: Mapping[str, str]) -> tuple[str, ...]:
    """Entries that are not the same on both sides, each with how."""
    found = []
    for path in sorted({*left, *right}):
        if path not in right:
            found.append(f"{path}: missing")
        elif path not in left:
            found.append(f"{path}: extra")
        elif left[path] != right[path]:
            found.append(f"{path}: different")
    return tuple(found)
