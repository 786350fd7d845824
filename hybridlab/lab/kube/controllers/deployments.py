"""Deployments: a ReplicaSet per template, replaced step by step, with revisions and the conditions people wait for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from hybridlab.lab.kube.controllers.objects import (
    DEPLOYMENT,
    POD,
    REPLICA_SET,
    Obj,
    annotations_of,
    condition,
    controller_of,
    hash_of,
    is_deleting,
    is_finished,
    key_of,
    labels_of,
    matches,
    name_of,
    namespace_of,
    owner_reference,
    seconds_of,
    set_condition,
    spec_of,
    status_of,
    timestamp,
)
from hybridlab.lab.kube.controllers.podcontrol import claim_pods
from hybridlab.lab.kube.controllers.work import Controller, Key, on

HASH_LABEL = "pod-template-hash"
REVISION = "deployment.kubernetes.io/revision"
_DESIRED = "deployment.kubernetes.io/desired-replicas"
_MAXIMUM = "deployment.kubernetes.io/max-replicas"
_NOT_COPIED = ("kubectl.kubernetes.io/last-applied-configuration", REVISION, _DESIRED, _MAXIMUM)
_SOURCE = "deployment-controller"


class Deployments(Controller):
    name = "deployment"

    def keys(self, event: str, kind: tuple[str, str], obj: Obj) -> Iterable[Key]:
        if on(DEPLOYMENT, kind):
            return [key_of(obj)]
        if on(REPLICA_SET, kind):
            owner = controller_of(obj)
            if owner is not None:
                return [(namespace_of(obj), owner["name"])] if owner["kind"] == "Deployment" else []
            return [
                key_of(d)
                for d in self.context.peek(DEPLOYMENT, namespace_of(obj))
                if matches(spec_of(d).get("selector"), labels_of(obj))
            ]
        if on(POD, kind) and event == "DELETED":  # what a Recreate waits for
            owner = controller_of(obj)
            owner_set = self.context.get(REPLICA_SET, owner["name"], namespace_of(obj)) if owner else None
            top = controller_of(owner_set) if owner_set else None
            return [(namespace_of(obj), top["name"])] if top and top["kind"] == "Deployment" else []
        return []

    async def reconcile(self, key: Key) -> float | None:
        deployment = self.context.get(DEPLOYMENT, key[1], key[0])
        if deployment is None or is_deleting(deployment):
            return None
        every = claim_pods(self.context, deployment, REPLICA_SET)
        new = next((rs for rs in every if _template(rs) == spec_of(deployment)["template"]), None)
        old = [rs for rs in every if new is None or name_of(rs) != name_of(new)]
        paused = bool(spec_of(deployment).get("paused"))
        if not paused:
            new = self._newest(deployment, new, old)
            if spec_of(deployment).get("strategy", {}).get("type") == "Recreate":
                self._recreate(deployment, new, old)
            else:
                self._roll(deployment, new, old)
            self._clean_up(deployment, old)
        elif len(every) == 1:
            self._scale(deployment, every[0], _replicas(deployment))
        return self._report(deployment, paused)

    # -- the ReplicaSet of the present template ----------------------------------------------------------------------
    def _newest(self, deployment: Obj, new: Obj | None, old: Sequence[Obj]) -> Obj:
        """The ReplicaSet of the template, made if missing, with the highest revision and copied annotations."""
        highest = max((_revision(rs) for rs in old), default=0)
        if new is None:
            template = {**spec_of(deployment)["template"]}
            suffix = hash_of(template)
            meta = dict(template.get("metadata") or {})
            template["metadata"] = {**meta, "labels": {**(meta.get("labels") or {}), HASH_LABEL: suffix}}
            selector = spec_of(deployment)["selector"]
            new = {
                "apiVersion": "apps/v1",
                "kind": "ReplicaSet",
                "metadata": {
                    "name": f"{name_of(deployment)}-{suffix}",
                    "namespace": namespace_of(deployment),
                    "labels": template["metadata"]["labels"],
                    "annotations": self._annotations(deployment, highest + 1),
                    "ownerReferences": [owner_reference(deployment)],
                },
                "spec": {
                    "replicas": 0,
                    "minReadySeconds": spec_of(deployment).get("minReadySeconds", 0),
                    "selector": {
                        **selector,
                        "matchLabels": {**(selector.get("matchLabels") or {}), HASH_LABEL: suffix},
                    },
                    "template": template,
                },
            }
            made = self.context.create(new)
            if made is None:
                raise LookupError(f"ReplicaSet {name_of(new)} exists with another template")
            new = made
        revision = max(highest + 1, _revision(new)) if highest >= _revision(new) else _revision(new)
        wanted = self._annotations(deployment, revision)
        if any(annotations_of(new).get(k) != v for k, v in wanted.items()):
            new = self.context.change(REPLICA_SET, new, lambda found: _annotate(found, wanted)) or new
        if annotations_of(deployment).get(REVISION) != str(revision):
            self.context.change(DEPLOYMENT, deployment, lambda found: _annotate(found, {REVISION: str(revision)}))
        return new

    def _annotations(self, deployment: Obj, revision: int) -> dict[str, str]:
        surge, _ = _limits(deployment)
        copied = {k: v for k, v in annotations_of(deployment).items() if k not in _NOT_COPIED}
        return {
            **copied,
            REVISION: str(revision),
            _DESIRED: str(_replicas(deployment)),
            _MAXIMUM: str(_replicas(deployment) + surge),
        }

    # -- moving from old to new --------------------------------------------------------------------------------------
    def _scale(self, deployment: Obj, replica_set: Obj, replicas: int) -> None:
        before = int(spec_of(replica_set).get("replicas", 0))
        if before == replicas:
            return

        def put(found: Obj) -> None:
            found["spec"]["replicas"] = replicas

        self.context.change(REPLICA_SET, replica_set, put)
        direction = "up" if replicas > before else "down"
        message = f"Scaled {direction} replica set {name_of(replica_set)} from {before} to {replicas}"
        self.context.event(deployment, "Normal", "ScalingReplicaSet", message, _SOURCE)

    def _recreate(self, deployment: Obj, new: Obj, old: Sequence[Obj]) -> None:
        for replica_set in old:
            self._scale(deployment, replica_set, 0)
        names = {name_of(rs) for rs in old}
        left = [
            pod
            for pod in self.context.peek(POD, namespace_of(deployment))
            if (controller_of(pod) or {}).get("name") in names and not is_finished(pod)
        ]
        if not left:
            self._scale(deployment, new, _replicas(deployment))

    def _roll(self, deployment: Obj, new: Obj, old: Sequence[Obj]) -> None:
        replicas, (surge, unavailable) = _replicas(deployment), _limits(deployment)
        current = int(spec_of(new).get("replicas", 0))
        total = current + sum(int(spec_of(rs).get("replicas", 0)) for rs in old)
        if current > replicas:
            self._scale(deployment, new, replicas)
            return
        if current < replicas and total < replicas + surge:
            self._scale(deployment, new, current + min(replicas - current, replicas + surge - total))
            return
        self._shrink(deployment, new, old, total, unavailable)

    def _shrink(self, deployment: Obj, new: Obj, old: Sequence[Obj], total: int, unavailable: int) -> None:
        """Scale old ReplicaSets down as far as availability allows; pods that aren't ready go first."""
        minimum = _replicas(deployment) - unavailable
        waiting_new = int(spec_of(new).get("replicas", 0)) - int(status_of(new).get("availableReplicas") or 0)
        budget = total - minimum - waiting_new
        ordered = sorted(old, key=lambda rs: (rs["metadata"]["creationTimestamp"], name_of(rs)))
        sizes = {name_of(rs): int(spec_of(rs).get("replicas", 0)) for rs in ordered}
        for replica_set in ordered:
            size = sizes[name_of(replica_set)]
            unhealthy = max(0, size - int(status_of(replica_set).get("availableReplicas") or 0))
            step = min(unhealthy, max(budget, 0))
            sizes[name_of(replica_set)] -= step
            budget -= step
        available = int(status_of(new).get("availableReplicas") or 0) + sum(
            int(status_of(rs).get("availableReplicas") or 0) for rs in old
        )
        spare = available - minimum
        for replica_set in ordered:
            step = min(sizes[name_of(replica_set)], max(spare, 0), max(budget, 0))
            sizes[name_of(replica_set)] -= step
            spare -= step
            budget -= step
        for replica_set in ordered:
            self._scale(deployment, replica_set, sizes[name_of(replica_set)])

    def _clean_up(self, deployment: Obj, old: Sequence[Obj]) -> None:
        limit = int(spec_of(deployment).get("revisionHistoryLimit", 10))
        empty = [
            rs
            for rs in old
            if not spec_of(rs).get("replicas") and not status_of(rs).get("replicas") and not is_deleting(rs)
        ]
        for replica_set in sorted(empty, key=_revision)[: max(0, len(empty) - limit)]:
            self.context.delete(REPLICA_SET, replica_set)

    # -- status ------------------------------------------------------------------------------------------------------
    def _report(self, deployment: Obj, paused: bool) -> float | None:
        deployment = self.context.current(DEPLOYMENT, deployment) or deployment
        every = [rs for rs in self.context.peek(REPLICA_SET, namespace_of(deployment)) if _owned(rs, deployment)]
        new = next((rs for rs in every if _template(rs) == spec_of(deployment)["template"]), None)
        counts = {
            field: sum(int(status_of(rs).get(field) or 0) for rs in every)
            for field in ("replicas", "readyReplicas", "availableReplicas")
        }
        replicas = _replicas(deployment)
        status: Obj = {
            **counts,
            "observedGeneration": deployment["metadata"].get("generation", 1),
            "updatedReplicas": int(status_of(new).get("replicas") or 0) if new else 0,
            "unavailableReplicas": max(
                0, sum(int(spec_of(rs).get("replicas", 0)) for rs in every) - counts["availableReplicas"]
            ),
            "conditions": [dict(c) for c in status_of(deployment).get("conditions") or []],
        }
        complete = (
            status["updatedReplicas"] == replicas == status["replicas"]
            and status["availableReplicas"] == replicas
            and all(not int(spec_of(rs).get("replicas", 0)) for rs in every if rs is not new)
        )
        wait = self._progressing(deployment, status, new, complete, paused)
        enough = counts["availableReplicas"] >= replicas - _limits(deployment)[1]
        word = "Available" if enough else "Unavailable"
        text = "Deployment has minimum availability." if enough else "Deployment does not have minimum availability."
        now = self.context.now()
        stamp = {"lastUpdateTime": timestamp(now)}
        set_condition(status, "Available", enough, now, reason=f"MinimumReplicas{word}", message=text, extra=stamp)
        kept = {k: v for k, v in status.items() if v or k == "observedGeneration"}
        if kept != status_of(deployment):
            self.context.set_status(DEPLOYMENT, deployment, kept)
        return wait

    def _progressing(self, deployment: Obj, status: Obj, new: Obj | None, complete: bool, paused: bool) -> float | None:
        """The Progressing condition; seconds until the deadline has to be looked at."""
        now, deadline = self.context.now(), int(spec_of(deployment).get("progressDeadlineSeconds", 600))
        stamp = {"lastUpdateTime": timestamp(now)}
        old = condition(deployment, "Progressing") or {}
        if paused or new is None:
            reason, message = "DeploymentPaused", "Deployment is paused"
            set_condition(status, "Progressing", "Unknown", now, reason=reason, message=message, extra=stamp)
            return None
        named = f'ReplicaSet "{name_of(new)}"'
        if complete:
            message = f"{named} has successfully progressed."
            set_condition(
                status, "Progressing", True, now, reason="NewReplicaSetAvailable", message=message, extra=stamp
            )
            return None
        fields = ("updatedReplicas", "readyReplicas", "availableReplicas", "replicas")
        before = status_of(deployment)
        moved = (
            any(int(before.get(f) or 0) != status[f] for f in fields) or old.get("reason") == "NewReplicaSetAvailable"
        )
        if moved or not old:
            reason, message = "ReplicaSetUpdated", f"{named} is progressing."
            set_condition(status, "Progressing", True, now, reason=reason, message=message, extra=stamp)
            for entry in status["conditions"]:
                if entry["type"] == "Progressing":
                    entry["lastUpdateTime"] = timestamp(now)
            return float(deadline)
        if old.get("reason") == "ProgressDeadlineExceeded":
            return None
        passed = (now - seconds_of(old.get("lastUpdateTime"))) * self.context.world.clock.speed
        if passed < deadline:
            return deadline - passed + 1
        message = f"{named} has timed out progressing."
        set_condition(
            status, "Progressing", False, now, reason="ProgressDeadlineExceeded", message=message, extra=stamp
        )
        return None


def _owned(replica_set: Obj, deployment: Obj) -> bool:
    return bool((controller_of(replica_set) or {}).get("uid") == deployment["metadata"]["uid"])


def _template(replica_set: Obj) -> Obj:
    """The template without the label the Deployment added."""
    template = {**spec_of(replica_set)["template"]}
    meta = dict(template.get("metadata") or {})
    meta["labels"] = {k: v for k, v in (meta.get("labels") or {}).items() if k != HASH_LABEL}
    return {**template, "metadata": meta}


def _replicas(deployment: Obj) -> int:
    return int(spec_of(deployment).get("replicas", 1))


def _revision(replica_set: Obj) -> int:
    return int(annotations_of(replica_set).get(REVISION) or 0)


def _annotate(obj: Obj, values: dict[str, str]) -> None:
    obj["metadata"].setdefault("annotations", {}).update(values)


def share(value: Any, replicas: int, *, up: bool) -> int:
    """An absolute number or a percentage of the replicas."""
    if isinstance(value, str) and value.endswith("%"):
        exact = int(value[:-1]) * replicas / 100
        return math.ceil(exact) if up else math.floor(exact)
    return int(value)


def _limits(deployment: Obj) -> tuple[int, int]:
    """(maxSurge, maxUnavailable) in pods; both zero would never move, so then one may be unavailable."""
    strategy = spec_of(deployment).get("strategy") or {}
    if strategy.get("type") == "Recreate":
        return 0, 0
    rolling = strategy.get("rollingUpdate") or {}
    replicas = _replicas(deployment)
    surge = share(rolling.get("maxSurge", "25%"), replicas, up=True)
    unavailable = share(rolling.get("maxUnavailable", "25%"), replicas, up=False)
    return surge, unavailable if surge or unavailable else 1
