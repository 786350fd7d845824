"""StatefulSets: numbered pods with claims of their own, made and replaced in order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hybridlab.lab.kube.controllers.objects import (
    CLAIM,
    POD,
    REVISION,
    STATEFUL_SET,
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
from hybridlab.lab.kube.controllers.work import Controller, Key, on

REVISION_HASH = "controller-revision-hash"
_SOURCE = "statefulset-controller"


class StatefulSets(Controller):
    name = "statefulset"

    def keys(self, event: str, kind: tuple[str, str], obj: Obj) -> Iterable[Key]:
        if on(STATEFUL_SET, kind):
            return [key_of(obj)]
        if on(POD, kind):
            owner = controller_of(obj)
            return [(namespace_of(obj), owner["name"])] if owner is not None and owner["kind"] == "StatefulSet" else []
        return []

    async def reconcile(self, key: Key) -> float | None:
        owner = self.context.get(STATEFUL_SET, key[1], key[0])
        if owner is None or is_deleting(owner):
            return None
        revision = f"{name_of(owner)}-{hash_of(spec_of(owner)['template'])}"
        self._record(owner, revision)
        pods = {ordinal_of(p): p for p in claim_pods(self.context, owner) if ordinal_of(p) >= 0}
        first = int((spec_of(owner).get("ordinals") or {}).get("start") or 0)
        wanted = range(first, first + int(spec_of(owner).get("replicas", 1)))
        self._move(owner, pods, wanted, revision)
        return self._report(owner, wanted, revision)

    def _move(self, owner: Obj, pods: dict[int, Obj], wanted: range, revision: str) -> None:
        """Make, replace and remove pods; one at a time unless podManagementPolicy is Parallel."""
        ordered = spec_of(owner).get("podManagementPolicy", "OrderedReady") == "OrderedReady"
        for ordinal in wanted:
            pod = pods.get(ordinal)
            if pod is not None and is_finished(pod) and not is_deleting(pod):
                delete_pod(self.context, owner, pod, _SOURCE)  # made anew when it is gone
                if ordered:
                    return
                continue
            if pod is None:
                self._create(owner, ordinal, self._wanted_revision(owner, ordinal, revision))
            if ordered and (pod is None or not is_ready(pod) or is_deleting(pod)):
                return
        surplus = sorted((o for o in pods if o not in wanted), reverse=True)
        for ordinal in surplus:
            if not is_deleting(pods[ordinal]):
                delete_pod(self.context, owner, pods[ordinal], _SOURCE)
                self._retain(owner, ordinal, "whenScaled")
            if ordered:
                return
        self._replace(owner, pods, wanted, revision)

    def _wanted_revision(self, owner: Obj, ordinal: int, revision: str) -> str:
        partition = int(((spec_of(owner).get("updateStrategy") or {}).get("rollingUpdate") or {}).get("partition") or 0)
        current = status_of(owner).get("currentRevision") or revision
        return revision if ordinal >= partition else str(current)

    def _replace(self, owner: Obj, pods: dict[int, Obj], wanted: Sequence[int], revision: str) -> None:
        """Rolling update from the highest ordinal down, each ready before the next."""
        strategy = spec_of(owner).get("updateStrategy") or {}
        if strategy.get("type", "RollingUpdate") != "RollingUpdate":
            return
        partition = int((strategy.get("rollingUpdate") or {}).get("partition") or 0)
        for ordinal in reversed(wanted):
            pod = pods.get(ordinal)
            if ordinal < partition or pod is None:
                return
            if labels_of(pod).get(REVISION_HASH) != revision:
                if not is_deleting(pod):
                    delete_pod(self.context, owner, pod, _SOURCE)
                return
            if not is_ready(pod) or is_deleting(pod):
                return

    def _create(self, owner: Obj, ordinal: int, revision: str) -> None:
        name = f"{name_of(owner)}-{ordinal}"
        template = self._template(owner, revision)
        for claim in spec_of(owner).get("volumeClaimTemplates") or []:
            self._claim(owner, claim, name)
        pod = pod_from(template, owner, name=name)
        pod["metadata"]["labels"].update(
            {
                "statefulset.kubernetes.io/pod-name": name,
                "apps.kubernetes.io/pod-index": str(ordinal),
                REVISION_HASH: revision,
            }
        )
        spec = pod["spec"]
        spec["hostname"], spec["subdomain"] = name, spec_of(owner).get("serviceName") or ""
        own = {c["metadata"]["name"] for c in spec_of(owner).get("volumeClaimTemplates") or []}
        volumes = [v for v in spec.get("volumes") or [] if v["name"] not in own]
        spec["volumes"] = volumes + [
            {"name": claim, "persistentVolumeClaim": {"claimName": f"{claim}-{name}"}} for claim in sorted(own)
        ]
        create_pod(self.context, owner, pod, _SOURCE)

    def _template(self, owner: Obj, revision: str) -> Obj:
        """The template of a revision: an older one where a partition holds pods back."""
        found = self.context.get(REVISION, revision, namespace_of(owner))
        template: Obj = spec_of(owner)["template"] if found is None else found["data"]["spec"]["template"]
        return {k: v for k, v in template.items() if k != "$patch"}

    def _claim(self, owner: Obj, template: Obj, pod_name: str) -> None:
        meta = template["metadata"]
        claim = {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {
                "name": f"{meta['name']}-{pod_name}",
                "namespace": namespace_of(owner),
                "labels": {**(meta.get("labels") or {}), **(spec_of(owner)["selector"].get("matchLabels") or {})},
                "annotations": dict(meta.get("annotations") or {}),
            },
            "spec": template["spec"],
        }
        retention = spec_of(owner).get("persistentVolumeClaimRetentionPolicy") or {}
        if retention.get("whenDeleted") == "Delete":
            claim["metadata"]["ownerReferences"] = [owner_reference(owner)]
        self.context.create(claim)

    def _retain(self, owner: Obj, ordinal: int, when: str) -> None:
        retention = spec_of(owner).get("persistentVolumeClaimRetentionPolicy") or {}
        if retention.get(when) != "Delete":
            return
        for template in spec_of(owner).get("volumeClaimTemplates") or []:
            name = f"{template['metadata']['name']}-{name_of(owner)}-{ordinal}"
            claim = self.context.get(CLAIM, name, namespace_of(owner))
            if claim is not None:
                self.context.delete(CLAIM, claim)

    def _record(self, owner: Obj, revision: str) -> None:
        if self.context.get(REVISION, revision, namespace_of(owner)) is not None:
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
                    "name": revision,
                    "namespace": namespace_of(owner),
                    "labels": dict(spec_of(owner)["selector"].get("matchLabels") or {}),
                    "ownerReferences": [owner_reference(owner)],
                },
                "data": {"spec": {"template": {**spec_of(owner)["template"], "$patch": "replace"}}},
                "revision": max((int(r.get("revision") or 0) for r in mine), default=0) + 1,
            }
        )

    def _report(self, owner: Obj, wanted: range, revision: str) -> float | None:
        pods = [p for p in claim_pods(self.context, owner) if ordinal_of(p) in wanted and not is_deleting(p)]
        live = [p for p in pods if pod_phase(p) in ("Pending", "Running")]
        minimum = float(spec_of(owner).get("minReadySeconds") or 0)
        now = self.context.now()
        updated = [p for p in live if labels_of(p).get(REVISION_HASH) == revision]
        ready = [p for p in live if is_ready(p)]
        available = [p for p in ready if is_available(p, self.context.scaled(minimum), now)]
        current = status_of(owner).get("currentRevision") or revision
        if len(updated) == len(wanted) == len(ready):
            current = revision
        status: Obj = {
            "observedGeneration": owner["metadata"].get("generation", 1),
            "replicas": len(live),
            "readyReplicas": len(ready),
            "availableReplicas": len(available),
            "updatedReplicas": len(updated),
            "currentReplicas": sum(1 for p in live if labels_of(p).get(REVISION_HASH) == current),
            "currentRevision": current,
            "updateRevision": revision,
            "collisionCount": 0,
        }
        optional = ("readyReplicas", "updatedReplicas", "currentReplicas")
        kept = {k: v for k, v in status.items() if v or k not in optional}
        if kept != status_of(owner):
            self.context.set_status(STATEFUL_SET, owner, kept)
        return minimum + 0.1 if len(available) < len(ready) else None


def ordinal_of(pod: Obj) -> int:
    """The number at the end of a pod's name; -1 where it isn't one of a StatefulSet's."""
    owner = controller_of(pod) or {}
    head, _, tail = name_of(pod).rpartition("-")
    return int(tail) if head == owner.get("name") and tail.isdigit() else -1
