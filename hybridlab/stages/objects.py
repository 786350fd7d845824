"""Kubernetes objects as a plan: which of the wanted ones are missing or differ, and the action that applies one."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from hybridlab.models import Json
from hybridlab.plan import Step
from hybridlab.ports import Context, Kube
from hybridlab.wait import wait_until

Obj = Mapping[str, Json]
MANAGED = {"app.kubernetes.io/managed-by": "hybridlab"}


def ref(obj: Obj) -> str:
    """``Kind/namespace/name`` or ``Kind/name``."""
    meta = obj["metadata"]
    return "/".join(p for p in (str(obj["kind"]), meta.get("namespace", ""), meta["name"]) if p)


@dataclass(frozen=True)
class Differences:
    """For each wanted object by ``ref``: the paths that differ; ("",) when it is missing; not listed when alike."""

    paths: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    reachable: bool = True


def look_objects(kube: Kube | None, wanted: Iterable[Obj]) -> Differences:
    """Compare the wanted objects with the live ones; all are missing while there is no cluster."""
    if kube is None:
        return Differences({ref(o): ("",) for o in wanted}, reachable=False)
    found = {ref(o): kube.differs(o) for o in wanted}
    return Differences({k: v for k, v in found.items() if v})


def apply_steps(
    wanted: Sequence[Obj], seen: Differences, why: Mapping[str, str] | str, *, batch: str = ""
) -> list[Step]:
    """A step for each object that is missing or differs. ``why`` by ref, or one reason for all that are missing."""
    steps = []
    for obj in wanted:
        name = ref(obj)
        paths = seen.paths.get(name)
        if not paths:
            continue
        missing = paths == ("",)
        reason = why if isinstance(why, str) else why.get(name, "wanted")
        if not missing:
            reason = "differs: " + ", ".join(paths[:4]) + (" …" if len(paths) > 4 else "")
        steps.append(
            Step(
                id=f"apply:{name}",
                action="apply",
                target=name,
                why=reason,
                effect="create" if missing else "change",
                args={"object": masked(obj)},
                undo="delete",
                batch=batch,
            )
        )
    return steps


def masked(obj: Obj) -> dict[str, Json]:
    """A copy fit for a plan: of a Secret's values only hashes stay, so that a changed one changes the plan."""
    copied: dict[str, Json] = copy.deepcopy(dict(obj))
    if copied["kind"] == "Secret":
        for part in ("data", "stringData"):
            if part in copied:
                copied[part] = {
                    k: "sha256:" + hashlib.sha256(v.encode()).hexdigest()[:12] for k, v in copied[part].items()
                }
    return copied


def apply_object(ctx: Context, step: Step) -> Mapping[str, Json]:
    """Server-side apply of the step's object. Secrets need an action of their own, which knows the values."""
    made = ctx.kube.apply(step.args["object"])
    return {"uid": made["metadata"]["uid"]}


def wait_for(
    ctx: Context,
    what: str,
    api_version: str,
    kind: str,
    name: str,
    namespace: str | None,
    done: str,
    deadline_s: float,
) -> dict[str, Json]:
    """Wait for a condition of an object, by name: ``Available``, ``Complete``, ``Ready`` … Fails early on Failed."""

    def conditions(obj: dict[str, Json] | None) -> dict[str, str]:
        rows = (obj or {}).get("status", {}).get("conditions", [])
        return {c["type"]: c["status"] for c in rows}

    found = wait_until(
        lambda: ctx.kube.get(api_version, kind, name, namespace),
        lambda o: conditions(o).get(done) == "True" or conditions(o).get("Failed") == "True",
        what=what,
        deadline_s=deadline_s,
        clock=ctx.clock,
        describe=lambda o: (
            "not there" if o is None else (", ".join(f"{k}={v}" for k, v in conditions(o).items()) or "new")
        ),
        progress=ctx.say,
        next_move=f"look at: kubectl describe {kind.lower()} {name}" + (f" -n {namespace}" if namespace else ""),
    )
    assert found is not None
    return found


def deployment_ready(obj: Mapping[str, Json] | None) -> bool:
    """Every wanted replica of the newest revision is available (Deployment or StatefulSet)."""
    if obj is None:
        return False
    status, want = obj.get("status", {}), obj["spec"].get("replicas", 1)
    current = status.get("observedGeneration", 0) >= obj["metadata"].get("generation", 0)
    ready = status.get("availableReplicas", status.get("readyReplicas", 0)) or 0
    return bool(current and (status.get("updatedReplicas") or 0) >= want and ready >= want)
