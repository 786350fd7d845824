"""What each storage engine needs, against what the nodes have: why Jiva, and why not the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hybridlab.models import Json, NodeWish
from hybridlab.params import Params
from hybridlab.stages.charts import helm_chart
from hybridlab.stages.nodes import SMALL_TAINT

OPENEBS = "openebs"
POLICY = "hybridlab"
JIVA_CHART = ("https://openebs-archive.github.io/jiva-operator", "jiva", "3.6.0")
LOCALPV_CHART = ("https://openebs.github.io/dynamic-localpv-provisioner", "localpv-provisioner", "4.0.0")
LONGHORN_CHART = ("https://charts.longhorn.io", "longhorn", "1.12.1")
LONGHORN_NODES, LONGHORN_CPUS, LONGHORN_GB = 3, 4, 4  # Longhorn 1.12's recommendation, each node


@dataclass(frozen=True)
class Verdict:
    """One engine against these nodes. ``moves`` says whether a volume follows its pod to another node."""

    engine: str
    fits: bool
    moves: bool
    replicas: str
    needs: str
    why: str


def verdicts(wishes: Sequence[NodeWish], replicas: int) -> tuple[Verdict, ...]:
    """All engines, each with its needs, whether they are met, and the reason in a sentence."""
    count = len(wishes)
    strong = [w for w in wishes if w.ocpus >= LONGHORN_CPUS and w.memory_gb >= LONGHORN_GB]
    weak = [w.name for w in wishes if w not in strong]
    rows = [
        Verdict(
            "jiva",
            jiva_problem(count, replicas) is None,
            True,
            f"{replicas} of {count} nodes",
            "open-iscsi on every node; a node for each copy",
            jiva_problem(count, replicas)
            or "copies on ordinary directories, in user space: volumes follow their pods "
            "without a cloud disk. It is no longer maintained (archived in April 2024): fit for a homelab that is "
            "backed up",
        ),
        Verdict(
            "longhorn",
            len(strong) >= LONGHORN_NODES,
            True,
            "2–3",
            f"{LONGHORN_NODES} nodes of {LONGHORN_CPUS} vCPU and {LONGHORN_GB} GiB (its recommendation)",
            f"too heavy: {', '.join(weak)} below that" if len(strong) < LONGHORN_NODES else "enough room",
        ),
        Verdict(
            "cstor",
            False,
            True,
            "3",
            "an unformatted block device on every node",
            "the free allowance has no block device to spare beside the boot volumes",
        ),
        Verdict(
            "localpv",
            True,
            False,
            "1",
            "a directory on the node",
            "light, and a volume stays where it was made: its pod can't move, a lost node is lost data",
        ),
        Verdict(
            "local-path",
            True,
            False,
            "1",
            "nothing: part of K3s",
            "light, and a volume stays where it was made: its pod can't move, a lost node is lost data",
        ),
    ]
    return tuple(rows)


def jiva_problem(nodes: int, replicas: int) -> str | None:
    """Why Jiva can't run with so many copies on so many nodes; None when it can.

    A Jiva volume is writable while more than half of its copies are (RF/2+1), and copies never share a node.
    """
    if replicas == 2:
        return "2 copies survive no failure: a volume is writable only while RF/2+1 copies are, which is both"
    if replicas > nodes:
        return f"{replicas} copies need {replicas} nodes, there are {nodes}: copies never share a node"
    return None


def small_tolerations() -> list[dict[str, Json]]:
    return [{"key": SMALL_TAINT[0], "operator": "Exists", "effect": SMALL_TAINT[2]}]


def wanted_objects(params: Params) -> tuple[dict[str, Json], ...]:
    """What the chosen engine needs in the cluster, in the order of application: charts, policy, StorageClass."""
    storage = params.storage
    if storage.engine == "jiva":
        values = {
            "analytics": {"enabled": False},
            "openebsLocalpv": {"enabled": True},
            "defaultPolicy": {"enabled": False},
            "csiNode": {"kubeletDir": "/var/lib/kubelet", "tolerations": small_tolerations()},
        }
        return (
            helm_chart("jiva", JIVA_CHART, OPENEBS, values),
            jiva_policy(storage.replicas),
            storage_class(
                storage.storage_class, "jiva.csi.openebs.io", {"cas-type": "jiva", "policy": POLICY}, expand=True
            ),
        )
    if storage.engine == "localpv":
        return (
            helm_chart("localpv-provisioner", LOCALPV_CHART, OPENEBS, {"analytics": {"enabled": False}}),
            storage_class(
                storage.storage_class,
                "openebs.io/local",
                {},
                wait=True,
                annotations={
                    "openebs.io/cas-type": "local",
                    "cas.openebs.io/config": "- name: StorageType\n  value: hostpath\n",
                },
            ),
        )
    if storage.engine == "longhorn":
        values = {
            "persistence": {"defaultClassReplicaCount": 2},
            "csi": dict.fromkeys(
                ("attacherReplicaCount", "provisionerReplicaCount", "resizerReplicaCount", "snapshotterReplicaCount"), 1
            ),
            "longhornUI": {"replicas": 1},
        }
        return (
            helm_chart("longhorn", LONGHORN_CHART, "longhorn-system", values),
            storage_class(storage.storage_class, "driver.longhorn.io", {"numberOfReplicas": "2"}, expand=True),
        )
    return (storage_class(storage.storage_class, "rancher.io/local-path", {}, wait=True),)


def jiva_policy(replicas: int) -> dict[str, Json]:
    """Copies and the target run on the small node too: with three nodes every one is needed."""
    return {
        "apiVersion": "openebs.io/v1",
        "kind": "JivaVolumePolicy",
        "metadata": {"name": POLICY, "namespace": OPENEBS, "labels": {"app.kubernetes.io/managed-by": "hybridlab"}},
        "spec": {
            "replicaSC": "openebs-hostpath",
            "target": {"replicationFactor": replicas, "disableMonitor": True, "tolerations": small_tolerations()},
            "replica": {"tolerations": small_tolerations()},
        },
    }


def storage_class(
    name: str,
    provisioner: str,
    parameters: dict[str, str],
    *,
    wait: bool = False,
    expand: bool = False,
    annotations: dict[str, str] | None = None,
) -> dict[str, Json]:
    made: dict[str, Json] = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/managed-by": "hybridlab"}},
        "provisioner": provisioner,
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "WaitForFirstConsumer" if wait else "Immediate",
        "allowVolumeExpansion": expand,
    }
    if parameters:
        made["parameters"] = parameters
    if annotations:
        made["metadata"]["annotations"] = annotations
    return made
