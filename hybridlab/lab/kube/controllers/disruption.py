"""PodDisruptionBudgets: how many pods may be evicted now. The eviction subresource itself is the API server's."""

from __future__ import annotations

from collections.abc import Iterable

from hybridlab.lab.kube.controllers.deployments import share
from hybridlab.lab.kube.controllers.objects import (
    DISRUPTION_BUDGET,
    POD,
    REPLICA_SET,
    STATEFUL_SET,
    Obj,
    controller_of,
    is_deleting,
    is_finished,
    is_ready,
    key_of,
    labels_of,
    matches,
    name_of,
    namespace_of,
    set_condition,
    spec_of,
    status_of,
)
from hybridlab.lab.kube.controllers.work import Controller, Key, on


class Disruptions(Controller):
    name = "disruption"

    def keys(self, event: str, kind: tuple[str, str], obj: Obj) -> Iterable[Key]:
        if on(DISRUPTION_BUDGET, kind):
            return [key_of(obj)]
        if on(POD, kind):
            return [
                key_of(budget)
                for budget in self.context.peek(DISRUPTION_BUDGET, namespace_of(obj))
                if matches(spec_of(budget).get("selector"), labels_of(obj))
            ]
        return []

    async def reconcile(self, key: Key) -> float | None:
        budget = self.context.get(DISRUPTION_BUDGET, key[1], key[0])
        if budget is None:
            return None
        selector = spec_of(budget).get("selector")
        pods = [p for p in self.context.peek(POD, key[0]) if matches(selector, labels_of(p)) and not is_finished(p)]
        evicting = {
            name: at
            for name, at in (status_of(budget).get("disruptedPods") or {}).items()
            if any(name_of(p) == name and not is_deleting(p) for p in pods)
        }
        healthy = sum(1 for p in pods if is_ready(p) and not is_deleting(p) and name_of(p) not in evicting)
        expected, desired = self._wanted(budget, pods)
        allowed = max(0, healthy - desired) if expected else 0
        status: Obj = {
            "conditions": [dict(c) for c in status_of(budget).get("conditions") or []],
            "currentHealthy": healthy,
            "desiredHealthy": desired,
            "disruptionsAllowed": allowed,
            "expectedPods": expected,
            "observedGeneration": budget["metadata"].get("generation", 1),
        }
        if evicting:
            status["disruptedPods"] = evicting
        reason = "SufficientPods" if allowed else "InsufficientPods"
        extra = {"observedGeneration": status["observedGeneration"]}
        set_condition(status, "DisruptionAllowed", bool(allowed), self.context.now(), reason=reason, extra=extra)
        status["conditions"] = [{"message": "", **c} for c in status["conditions"]]
        self.context.set_status(DISRUPTION_BUDGET, budget, status)
        return None

    def _wanted(self, budget: Obj, pods: list[Obj]) -> tuple[int, int]:
        """(expected, desired healthy): percentages and maxUnavailable count what the pods' controllers ask for."""
        spec = spec_of(budget)
        minimum, maximum = spec.get("minAvailable"), spec.get("maxUnavailable")
        if isinstance(minimum, int):
            return len(pods), minimum
        expected = 0
        seen: set[str] = set()
        for pod in pods:
            owner = controller_of(pod)
            if owner is None or owner["uid"] in seen:
                continue
            seen.add(owner["uid"])
            kind = {"ReplicaSet": REPLICA_SET, "StatefulSet": STATEFUL_SET}.get(owner["kind"])
            found = self.context.get(kind, owner["name"], namespace_of(pod)) if kind is not None else None
            expected += int(spec_of(found).get("replicas", 1)) if found is not None else 0
        if minimum is not None:
            return expected, share(minimum, expected, up=True)
        return expected, max(0, expected - share(maximum if maximum is not None else 0, expected, up=True))
