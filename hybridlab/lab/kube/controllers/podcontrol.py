"""What all workload controllers do with pods: find and adopt theirs, make one from a template, pick which to delete."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from hybridlab.lab.kube.controllers.objects import (
    POD,
    Kind,
    Obj,
    controller_of,
    is_active,
    is_deleting,
    is_ready,
    labels_of,
    matches,
    name_of,
    namespace_of,
    owner_reference,
    pod_phase,
    ready_since,
    spec_of,
    uid_of,
)
from hybridlab.lab.kube.controllers.work import Context
from hybridlab.lab.kube.errors import ApiError


def owned(context: Context, kind: Kind, owner: Obj) -> list[Obj]:
    """Copies-free list of the objects of a kind that ``owner`` controls."""
    return [
        obj for obj in context.peek(kind, namespace_of(owner)) if (controller_of(obj) or {}).get("uid") == uid_of(owner)
    ]


def claim_pods(context: Context, owner: Obj, kind: Kind = POD) -> list[Obj]:
    """The owner's objects: orphans that its selector picks are adopted, owned ones it no longer picks are released."""
    selector = spec_of(owner).get("selector")
    mine = []
    for obj in context.peek(kind, namespace_of(owner)):
        reference = controller_of(obj)
        picked = matches(selector, labels_of(obj))
        if reference is not None:
            if reference["uid"] != uid_of(owner):
                continue
            if picked:
                mine.append(obj)
            elif not is_deleting(obj):
                context.change(kind, obj, lambda found: _release(found, uid_of(owner)))
        elif picked and not is_deleting(obj) and not is_deleting(owner):
            adopted = context.change(kind, obj, lambda found: _adopt(found, owner))
            if adopted is not None:
                mine.append(adopted)
    return mine


def _adopt(obj: Obj, owner: Obj) -> None:
    obj["metadata"].setdefault("ownerReferences", []).append(owner_reference(owner))


def _release(obj: Obj, uid: str) -> None:
    references = obj["metadata"].get("ownerReferences") or []
    obj["metadata"]["ownerReferences"] = [r for r in references if r["uid"] != uid]


def pod_from(template: Obj, owner: Obj, *, name: str = "", change: Callable[[Obj], None] | None = None) -> Obj:
    """A pod as the template has it; with no ``name`` the API server makes one from the owner's."""
    meta = template.get("metadata") or {}
    pod: Obj = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": namespace_of(owner),
            "labels": dict(meta.get("labels") or {}),
            "annotations": dict(meta.get("annotations") or {}),
            "finalizers": list(meta.get("finalizers") or []),
            "ownerReferences": [owner_reference(owner)],
            **({"name": name} if name else {"generateName": f"{name_of(owner)}-"}),
        },
        "spec": _copied(template.get("spec") or {}),
    }
    if change is not None:
        change(pod)
    return pod


def _copied(spec: Obj) -> Obj:
    return {**spec}


def create_pod(context: Context, owner: Obj, pod: Obj, source: str) -> Obj | None:
    """Create a pod and say so on its owner; a refusal is an event there and is raised."""
    try:
        made = context.create(pod)
    except ApiError as error:
        if error.status != 404:
            context.event(owner, "Warning", "FailedCreate", f"Error creating: {error.message}", source)
        raise
    if made is not None:
        context.event(owner, "Normal", "SuccessfulCreate", f"Created pod: {name_of(made)}", source)
    return made


def delete_pod(context: Context, owner: Obj, pod: Obj, source: str) -> None:
    context.delete(POD, pod)
    context.event(owner, "Normal", "SuccessfulDelete", f"Deleted pod: {name_of(pod)}", source)


def least_wanted(pods: Iterable[Obj]) -> list[Obj]:
    """Pods in the order in which a ReplicaSet gives them up (kubernetes' ActivePodsWithRanks)."""

    def rank(pod: Obj) -> tuple[bool, int, bool, int, float, str]:
        phases = {"Pending": 0, "Unknown": 1, "Running": 2}
        cost = pod["metadata"].get("annotations", {}).get("controller.kubernetes.io/pod-deletion-cost", "0")
        return (
            bool(spec_of(pod).get("nodeName")),
            phases.get(pod_phase(pod), 0),
            is_ready(pod),
            int(cost) if str(cost).lstrip("-").isdigit() else 0,
            -ready_since(pod),
            # the youngest first: creation times are whole seconds, so names break ties the same way every time
            "".join(chr(255 - ord(c) % 256) for c in pod["metadata"]["creationTimestamp"]),
        )

    return sorted(pods, key=rank)


def active(pods: Iterable[Obj]) -> list[Obj]:
    return [pod for pod in pods if is_active(pod)]


def is_available(pod: Obj, min_ready_seconds: float, now: float) -> bool:
    return is_ready(pod) and (min_ready_seconds <= 0 or ready_since(pod) + min_ready_seconds <= now)
