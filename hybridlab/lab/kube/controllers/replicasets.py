"""ReplicaSets: as many pods of a template as asked for."""

from __future__ import annotations

from collections.abc import Iterable

from hybridlab.lab.kube.controllers.objects import (
    POD,
    REPLICA_SET,
    Obj,
    controller_of,
    is_deleting,
    is_ready,
    key_of,
    labels_of,
    matches,
    namespace_of,
    spec_of,
    status_of,
)
from hybridlab.lab.kube.controllers.podcontrol import (
    active,
    claim_pods,
    create_pod,
    delete_pod,
    is_available,
    least_wanted,
    pod_from,
)
from hybridlab.lab.kube.controllers.work import Controller, Key, on

_SOURCE = "replicaset-controller"


class ReplicaSets(Controller):
    name = "replicaset"

    def keys(self, event: str, kind: tuple[str, str], obj: Obj) -> Iterable[Key]:
        if on(REPLICA_SET, kind):
            return [key_of(obj)]
        if on(POD, kind):
            owner = controller_of(obj)
            if owner is not None:
                return [(namespace_of(obj), owner["name"])] if owner["kind"] == "ReplicaSet" else []
            return [
                key_of(rs)
                for rs in self.context.peek(REPLICA_SET, namespace_of(obj))
                if matches(spec_of(rs).get("selector"), labels_of(obj))
            ]
        return []

    async def reconcile(self, key: Key) -> float | None:
        owner = self.context.get(REPLICA_SET, key[1], key[0])
        if owner is None:
            return None
        pods = active(claim_pods(self.context, owner))
        wanted = int(spec_of(owner).get("replicas", 1))
        if not is_deleting(owner):
            for _ in range(wanted - len(pods)):
                made = create_pod(self.context, owner, pod_from(spec_of(owner)["template"], owner), _SOURCE)
                if made is not None:
                    pods.append(made)
            surplus = least_wanted(pods)[: max(0, len(pods) - wanted)]
            for pod in surplus:
                delete_pod(self.context, owner, pod, _SOURCE)
            gone = {pod["metadata"]["uid"] for pod in surplus}
            pods = [pod for pod in pods if pod["metadata"]["uid"] not in gone]
        return self._report(owner, pods)

    def _report(self, owner: Obj, pods: list[Obj]) -> float | None:
        min_ready = self.context.scaled(float(spec_of(owner).get("minReadySeconds") or 0))
        now = self.context.now()
        ready = [pod for pod in pods if is_ready(pod)]
        available = [pod for pod in ready if is_available(pod, min_ready, now)]
        status = {
            "replicas": len(pods),
            "fullyLabeledReplicas": len(pods),
            "readyReplicas": len(ready),
            "availableReplicas": len(available),
            "observedGeneration": owner["metadata"].get("generation", 1),
        }
        kept = {k: v for k, v in status.items() if v or k in ("replicas", "observedGeneration")}
        if status_of(owner).get("conditions"):
            kept["conditions"] = status_of(owner)["conditions"]
        self.context.set_status(REPLICA_SET, owner, kept)
        return float(spec_of(owner).get("minReadySeconds") or 0) + 0.1 if len(available) < len(ready) else None
