"""DaemonSets: one pod on every node that takes it, bound there through the scheduler by node affinity."""

from __future__ import annotations

from collections.abc import Iterable

from hybridlab.lab.kube.controllers.deployments import share
from hybridlab.lab.kube.controllers.objects import (
    DAEMON_SET,
    NODE,
    POD,
    REVISION,
    Obj,
    controller_of,
    hash_of,
    is_deleting,
    is_finished,
    is_ready,
    key_of,
    labels_of,
    name_of,
    namespace_of,
    owner_reference,
    pod_phase,
    spec_of,
    status_of,
)
from hybridlab.lab.kube.controllers.podcontrol import claim_pods, create_pod, delete_pod, is_available, pod_from
from hybridlab.lab.kube.controllers.predicates import affinity_allows, untolerated
from hybridlab.lab.kube.controllers.work import Controller, Key, on

REVISION_HASH = "controller-revision-hash"
_SOURCE = "daemonset-controller"
# What the real controller adds to every pod, so that daemons stay on nodes in trouble and on cordoned ones.
TOLERATIONS = (
    {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute"},
    {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute"},
    {"key": "node.kubernetes.io/disk-pressure", "operator": "Exists", "effect": "NoSchedule"},
    {"key": "node.kubernetes.io/memory-pressure", "operator": "Exists", "effect": "NoSchedule"},
    {"key": "node.kubernetes.io/pid-pressure", "operator": "Exists", "effect": "NoSchedule"},
    {"key": "node.kubernetes.io/unschedulable", "operator": "Exists", "effect": "NoSchedule"},
)


class DaemonSets(Controller):
    name = "daemonset"

    def keys(self, event: str, kind: tuple[str, str], obj: Obj) -> Iterable[Key]:
        if on(DAEMON_SET, kind):
            return [key_of(obj)]
        if on(POD, kind):
            owner = controller_of(obj)
            return [(namespace_of(obj), owner["name"])] if owner is not None and owner["kind"] == "DaemonSet" else []
        if on(NODE, kind):
            return [key_of(ds) for ds in self.context.peek(DAEMON_SET)]
        return []

    async def reconcile(self, key: Key) -> float | None:
        owner = self.context.get(DAEMON_SET, key[1], key[0])
        if owner is None or is_deleting(owner):
            return None
        revision = hash_of(spec_of(owner)["template"])
        self._record(owner, revision)
        by_node: dict[str, list[Obj]] = {}
        for pod in claim_pods(self.context, owner):
            by_node.setdefault(_home(pod), []).append(pod)
        should, may_stay = self._eligible(owner)
        for node, pods in by_node.items():
            for pod in pods:
                if (pod_phase(pod) == "Failed" and not is_deleting(pod)) or (
                    node not in may_stay and not is_deleting(pod)
                ):
                    delete_pod(self.context, owner, pod, _SOURCE)
            for extra in [p for p in pods if not is_deleting(p)][1:]:
                delete_pod(self.context, owner, extra, _SOURCE)
        for node in should:
            if not by_node.get(node):
                create_pod(self.context, owner, self._pod(owner, node, revision), _SOURCE)
        self._update(owner, by_node, revision, len(should))
        return self._report(owner, should, revision)

    def _record(self, owner: Obj, revision: str) -> None:
        """The ControllerRevision of the template, which ``kubectl rollout history`` reads."""
        name = f"{name_of(owner)}-{revision}"
        if self.context.get(REVISION, name, namespace_of(owner)) is not None:
            return
        mine = [
            r
            for r in self.context.peek(REVISION, namespace_of(owner))
            if (controller_of(r) or {}).get("uid") == owner["metadata"]["uid"]
        ]
        self.context.create(
            {
                "apiVersion": REVISION.api_version,
                "kind": "ControllerRevision",
                "metadata": {
                    "name": name,
                    "namespace": namespace_of(owner),
                    "labels": {
                        **labels_of({"metadata": spec_of(owner)["template"].get("metadata") or {}}),
                        REVISION_HASH: revision,
                    },
                    "ownerReferences": [owner_reference(owner)],
                },
                "data": {"spec": {"template": {**spec_of(owner)["template"], "$patch": "replace"}}},
                "revision": max((int(r.get("revision") or 0) for r in mine), default=0) + 1,
            }
        )

    def _eligible(self, owner: Obj) -> tuple[list[str], set[str]]:
        """Nodes that should have a pod, and those where one may stay (NoSchedule taints don't evict)."""
        spec = {**spec_of(owner)["template"]["spec"]}
        spec["tolerations"] = [*(spec.get("tolerations") or []), *TOLERATIONS]
        should, may_stay = [], set()
        for node in self.context.peek(NODE):
            if not affinity_allows(spec, node):
                continue
            if untolerated(spec, node, ("NoExecute",)) is None:
                may_stay.add(name_of(node))
                if untolerated(spec, node, ("NoSchedule",)) is None:
                    should.append(name_of(node))
        return should, may_stay

    def _pod(self, owner: Obj, node: str, revision: str) -> Obj:
        pod = pod_from(spec_of(owner)["template"], owner)
        pod["metadata"]["labels"][REVISION_HASH] = revision
        spec = pod["spec"]
        spec["tolerations"] = [*(spec.get("tolerations") or []), *TOLERATIONS]
        term = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}
        affinity = dict(spec.get("affinity") or {})
        node_affinity = dict(affinity.get("nodeAffinity") or {})
        old = (node_affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}).get("nodeSelectorTerms") or [
            {}
        ]
        node_affinity["requiredDuringSchedulingIgnoredDuringExecution"] = {
            "nodeSelectorTerms": [{**t, "matchFields": term["matchFields"]} for t in old]
        }
        spec["affinity"] = {**affinity, "nodeAffinity": node_affinity}
        return pod

    def _update(self, owner: Obj, by_node: dict[str, list[Obj]], revision: str, wanted: int) -> None:
        """Rolling update: old pods go as far as maxUnavailable allows, those that aren't ready first."""
        strategy = spec_of(owner).get("updateStrategy") or {}
        if strategy.get("type", "RollingUpdate") != "RollingUpdate":
            return
        pods = [p for group in by_node.values() for p in group]
        old = [p for p in pods if labels_of(p).get(REVISION_HASH) != revision and not is_deleting(p)]
        limit = max(1, share((strategy.get("rollingUpdate") or {}).get("maxUnavailable", 1), wanted, up=True))
        unavailable = wanted - sum(1 for p in pods if is_ready(p) and not is_deleting(p))
        for pod in sorted(old, key=lambda p: (is_ready(p), name_of(p))):
            if is_ready(pod):
                if unavailable >= limit:
                    break
                unavailable += 1
            delete_pod(self.context, owner, pod, _SOURCE)

    def _report(self, owner: Obj, should: list[str], revision: str) -> float | None:
        pods = [p for p in claim_pods(self.context, owner) if not is_deleting(p) and not is_finished(p)]
        homes: dict[str, Obj] = {_home(p): p for p in pods}
        here = [homes[node] for node in should if node in homes]
        now = self.context.now()
        minimum = self.context.scaled(float(spec_of(owner).get("minReadySeconds") or 0))
        available = sum(1 for p in here if is_available(p, minimum, now))
        status: Obj = {
            "desiredNumberScheduled": len(should),
            "currentNumberScheduled": len(here),
            "numberMisscheduled": sum(1 for node in homes if node not in should),
            "numberReady": sum(1 for p in here if is_ready(p)),
            "observedGeneration": owner["metadata"].get("generation", 1),
            "updatedNumberScheduled": sum(1 for p in here if labels_of(p).get(REVISION_HASH) == revision),
            "numberAvailable": available,
            "numberUnavailable": len(should) - available,
        }
        optional = ("updatedNumberScheduled", "numberAvailable", "numberUnavailable")
        kept = {k: v for k, v in status.items() if v or k not in optional}
        if kept != status_of(owner):
            self.context.set_status(DAEMON_SET, owner, kept)
        return float(spec_of(owner)["minReadySeconds"]) + 0.1 if minimum and available < status["numberReady"] else None


def _home(pod: Obj) -> str:
    """The node a daemon's pod is on, or is meant for."""
    if spec_of(pod).get("nodeName"):
        return str(spec_of(pod)["nodeName"])
    affinity = ((spec_of(pod).get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    ) or {}
    for term in affinity.get("nodeSelectorTerms") or []:
        for field in term.get("matchFields") or []:
            if field["key"] == "metadata.name":
                return str(field["values"][0])
    return ""
