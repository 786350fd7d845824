"""OpenEBS Jiva: replicated volumes as the operator and the CSI driver make them, and when they are writable.

The bytes are kept once, in the volume's folder. What is played is what decides whether they can be used: a target and
its replicas as pods on nodes of their own, and the rule that a volume is writable only with RF/2+1 replicas RW. A pod
that runs already is not stopped when its volume becomes read-only, but no other one can mount it then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from hybridlab.lab.kube.controllers.mounts import MountFailed
from hybridlab.lab.kube.controllers.nodes import Nodes
from hybridlab.lab.kube.controllers.objects import (
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    JIVA_POLICY,
    JIVA_VOLUME,
    POD,
    SERVICE,
    STATEFUL_SET,
    Kind,
    Obj,
    is_active,
    is_deleting,
    is_ready,
    key_of,
    labels_of,
    name_of,
    namespace_of,
    owner_reference,
    spec_of,
    status_of,
    uid_of,
)
from hybridlab.lab.kube.controllers.predicates import HOSTNAME, claims_of
from hybridlab.lab.kube.controllers.provisioners import CannotProvision, Provisioner, only_modes, runs, volume_name
from hybridlab.lab.kube.controllers.work import Context, Controller, Key, on

DRIVER = "jiva.csi.openebs.io"
VERSION = "3.6.0"
PV_LABEL = "openebs.io/persistent-volume"
COMPONENT = "openebs.io/component"
_DEFAULT_POLICY: Obj = {"replicaSC": "openebs-hostpath", "target": {"replicationFactor": 3}}


class Jiva(Provisioner):
    """The CSI driver's controller: makes the PersistentVolume and the JivaVolume that the operator works on."""

    driver = DRIVER
    images = ("sig-storage/csi-provisioner", "openebs/jiva-operator")

    def volume(self, claim: Obj, storage_class: Obj, node: str | None) -> Obj:
        parameters = storage_class.get("parameters") or {}
        if parameters.get("cas-type") != "jiva":
            raise CannotProvision(
                "rpc error: code = InvalidArgument desc = failed to create volume: cas-type is not jiva"
            )
        only_modes(
            claim, ("ReadWriteOnce",), "rpc error: code = InvalidArgument desc = only ReadWriteOnce is supported"
        )
        namespace = self._namespace()
        policy: Obj = dict(_DEFAULT_POLICY)
        wanted = parameters.get("policy")
        if wanted:
            found = self.context.get(JIVA_POLICY, wanted, namespace)
            if found is None:
                text = f'failed to get policy: jivavolumepolicies.openebs.io "{wanted}" not found'
                raise CannotProvision(f"rpc error: code = Internal desc = {text}")
            policy = {**_DEFAULT_POLICY, **spec_of(found)}
        name = volume_name(claim)
        factor = int((policy.get("target") or {}).get("replicationFactor") or 3)
        size = spec_of(claim)["resources"]["requests"]["storage"]
        self.context.create(
            {
                "apiVersion": JIVA_VOLUME.api_version,
                "kind": "JivaVolume",
                "metadata": {
                    "name": name,
                    "namespace": namespace,
                    "labels": {PV_LABEL: name, COMPONENT: "jiva-volume"},
                },
                "spec": {
                    "pv": name,
                    "capacity": size,
                    "accessType": "mount",
                    "desiredReplicationFactor": factor,
                    "policy": policy,
                    "iscsiSpec": {"iqn": f"iqn.2016-09.com.openebs.jiva:{name}", "targetPort": 3260},
                },
            }
        )
        attributes = {"openebs.io/cas-type": "jiva", "storage.kubernetes.io/csiProvisionerIdentity": DRIVER}
        source = {"driver": DRIVER, "volumeHandle": name, "fsType": "ext4", "volumeAttributes": attributes}
        return self.new(claim, storage_class, None, {"csi": source})

    def _namespace(self) -> str:
        """Where the operator runs."""
        for pod in self.context.peek(POD):
            if any("openebs/jiva-operator" in c.get("image", "") for c in spec_of(pod)["containers"]):
                return namespace_of(pod)
        return "openebs"

    def removed(self, volume: Obj) -> None:
        if not self.context.defined(JIVA_VOLUME):
            return
        for obj in self.context.peek(JIVA_VOLUME):
            if name_of(obj) == name_of(volume):
                self.context.delete(JIVA_VOLUME, obj)


class JivaVolumes(Controller):
    """The operator: target and replicas of each JivaVolume, and its status from those that are ready."""

    name = "jiva"

    def __init__(self, context: Context, poke: Callable[[], None]) -> None:
        super().__init__(context)
        self._poke = poke

    def keys(self, event: str, kind: tuple[str, str], obj: Obj) -> Iterable[Key]:
        if on(JIVA_VOLUME, kind):
            return [key_of(obj)]
        if on(POD, kind):
            if PV_LABEL in labels_of(obj):
                return [(namespace_of(obj), labels_of(obj)[PV_LABEL])]
            if any("openebs/jiva-operator" in c.get("image", "") for c in spec_of(obj).get("containers") or []):
                return [key_of(v) for v in self.context.peek(JIVA_VOLUME)]
        return []

    async def reconcile(self, key: Key) -> float | None:
        if not self.context.defined(JIVA_VOLUME):
            return None
        volume = self.context.get(JIVA_VOLUME, key[1], key[0])
        if volume is None or is_deleting(volume) or not runs(self.context, "openebs/jiva-operator"):
            return None  # nobody works on it while the operator is down
        for kind, obj in self._parts(volume):
            found = self.context.get(kind, name_of(obj), key[0])
            if found is None:
                self.context.create(obj)
            elif kind is SERVICE and not (spec_of(volume).get("iscsiSpec") or {}).get("targetIP"):
                self._tell_address(volume, str(spec_of(found).get("clusterIP") or ""))
        self._report(volume)
        return None

    def _tell_address(self, volume: Obj, address: str) -> None:
        self.context.change(JIVA_VOLUME, volume, lambda found: found["spec"]["iscsiSpec"].update(targetIP=address))

    def _parts(self, volume: Obj) -> list[tuple[Kind, Obj]]:
        name, namespace = name_of(volume), namespace_of(volume)
        policy = spec_of(volume).get("policy") or {}
        factor = int(spec_of(volume).get("desiredReplicationFactor") or 3)
        target, replica = policy.get("target") or {}, policy.get("replica") or {}
        labels = {PV_LABEL: name, "openebs.io/cas-type": "jiva"}

        def part(api_version: str, kind: str, suffix: str, component: str, spec: Obj) -> Obj:
            meta = {
                "name": f"{name}-jiva-{suffix}",
                "namespace": namespace,
                "labels": {**labels, COMPONENT: component},
                "ownerReferences": [owner_reference(volume)],
            }
            return {"apiVersion": api_version, "kind": kind, "metadata": meta, "spec": spec}

        controller = {**labels, COMPONENT: "jiva-controller"}
        replicas = {**labels, COMPONENT: "jiva-replica"}
        exporter = {"name": "maya-volume-exporter", "image": f"openebs/m-exporter:{VERSION}"}
        containers: list[Obj] = [
            {"name": "jiva-controller", "image": f"openebs/jiva:{VERSION}", "args": ["controller"]}
        ]
        if not target.get("disableMonitor"):
            containers.append(exporter)
        if target.get("resources"):
            containers[0]["resources"] = target["resources"]
        deployment = {
            "replicas": 1,
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": controller},
            "template": {"metadata": {"labels": controller}, "spec": {"containers": containers, **_placed(target)}},
        }
        service = {
            "selector": controller,
            "ports": [{"name": n, "port": p} for n, p in (("iscsi", 3260), ("api", 9501), ("m-exporter", 9500))],
        }
        term = {"labelSelector": {"matchLabels": replicas}, "topologyKey": HOSTNAME}
        anti = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
        claim_spec = {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": policy.get("replicaSC") or "openebs-hostpath",
            "resources": {"requests": {"storage": spec_of(volume)["capacity"]}},
        }
        container: Obj = {
            "name": "jiva-replica",
            "image": f"openebs/jiva:{VERSION}",
            "args": ["replica"],
            "volumeMounts": [{"name": "openebs", "mountPath": "/openebs"}],
        }
        if replica.get("resources"):
            container["resources"] = replica["resources"]
        stateful = {
            "replicas": factor,
            "serviceName": f"{name}-jiva-ctrl-svc",
            "podManagementPolicy": "Parallel",
            "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete", "whenScaled": "Retain"},
            "selector": {"matchLabels": replicas},
            "template": {
                "metadata": {"labels": replicas},
                "spec": {
                    "containers": [container],
                    **_placed(replica),
                    "affinity": {**anti, **(replica.get("affinity") or {})},
                },
            },
            "volumeClaimTemplates": [{"metadata": {"name": "openebs"}, "spec": claim_spec}],
        }
        budget = {"minAvailable": factor // 2 + 1, "selector": {"matchLabels": replicas}}
        made = [
            (SERVICE, part("v1", "Service", "ctrl-svc", "jiva-controller-service", service)),
            (DEPLOYMENT, part("apps/v1", "Deployment", "ctrl", "jiva-controller", deployment)),
            (STATEFUL_SET, part("apps/v1", "StatefulSet", "rep", "jiva-replica", stateful)),
        ]
        if factor > 1:
            made.append((DISRUPTION_BUDGET, part("policy/v1", "PodDisruptionBudget", "pdb", "jiva-pdb", budget)))
        return made

    def _report(self, volume: Obj) -> None:
        """RW with a majority of replicas, Ready with all of them."""
        volume = self.context.current(JIVA_VOLUME, volume) or volume
        pods = [
            p for p in self.context.peek(POD, namespace_of(volume)) if labels_of(p).get(PV_LABEL) == name_of(volume)
        ]
        target = any(
            labels_of(p).get(COMPONENT) == "jiva-controller" and is_ready(p) and not is_deleting(p) for p in pods
        )
        replicas = [p for p in pods if labels_of(p).get(COMPONENT) == "jiva-replica" and status_of(p).get("podIP")]
        factor = int(spec_of(volume).get("desiredReplicationFactor") or 3)
        rows = []
        if target:
            for pod in sorted(replicas, key=name_of):
                alive = is_ready(pod) and not is_deleting(pod)
                address = f"tcp://{status_of(pod)['podIP']}:9502"
                rows.append({"address": address, "mode": "RW" if alive else "ERR"})
        writable = sum(1 for row in rows if row["mode"] == "RW")
        status: Obj = {"replicaStatus": rows, "replicaCount": len(rows)}
        if not target:
            status.update(status="Unknown", phase="Pending" if not status_of(volume).get("phase") else "Unknown")
        else:
            status["status"] = "RW" if writable >= factor // 2 + 1 else "RO"
            status["phase"] = "Ready" if writable >= factor else "Syncing"
        if status != status_of(volume):
            self.context.set_status(JIVA_VOLUME, volume, status)
            self._poke()


def _placed(section: Obj) -> Obj:
    return {key: section[key] for key in ("nodeSelector", "tolerations") if section.get(key)}


def mount_check(context: Context, nodes: Nodes) -> Callable[[Obj, Obj, str], None]:
    """What a node needs before a Jiva volume can be mounted there; raises MountFailed as the CSI driver says it."""

    def check(pod: Obj, volume: Obj, node: str) -> None:
        source = spec_of(volume).get("csi") or {}
        if source.get("driver") != DRIVER:
            return
        name = name_of(volume)
        head = f'MountVolume.MountDevice failed for volume "{name}" : '
        plugin = [
            p
            for p in context.peek(POD)
            if spec_of(p).get("nodeName") == node
            and is_ready(p)
            and any("csi-node-driver-registrar" in c.get("image", "") for c in spec_of(p)["containers"])
        ]
        if not plugin:
            raise MountFailed(
                f"{head}kubernetes.io/csi: attacher.MountDevice failed to create newCsiDriverClient: driver name "
                f"{DRIVER} not found in the list of registered CSI drivers"
            )
        found = [v for v in context.peek(JIVA_VOLUME) if name_of(v) == name] if context.defined(JIVA_VOLUME) else []
        state = status_of(found[0]) if found else {}
        if state.get("status") != "RW":
            word = state.get("status") or "Unknown"
            raise MountFailed(
                f"{head}rpc error: code = Internal desc = Volume is not ready: replicas yet to connect to controller "
                f"(status {word})"
            )
        ready = getattr(context.world.hosts, "iscsi_ready", None)
        kubelet = nodes.kubelets.get(node)
        if ready is not None and kubelet is not None and not ready(kubelet.machine.id):
            raise MountFailed(
                f"{head}rpc error: code = Internal desc = failed to find device path, iscsiadm: Could not load "
                "transport iscsi_tcp, or iscsiadm is not installed or iscsid is not running on this node"
            )
        for other in context.peek(POD, namespace_of(pod)):
            elsewhere = spec_of(other).get("nodeName") not in (None, "", node)
            if uid_of(other) != uid_of(pod) and elsewhere and is_active(other) and _shares(other, volume):
                where = spec_of(other)["nodeName"]
                raise MountFailed(
                    f"{head}rpc error: code = Internal desc = volume {name} is already mounted on node {where}"
                )

    return check


def _shares(pod: Obj, volume: Obj) -> bool:
    reference = spec_of(volume).get("claimRef") or {}
    return namespace_of(pod) == reference.get("namespace") and reference.get("name") in claims_of(pod)
