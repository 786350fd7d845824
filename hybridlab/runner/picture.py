"""The cluster as it stands after a run, for the report: nodes, their architectures, and what runs where."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from hybridlab.errors import HybridlabError
from hybridlab.ledger import now_iso
from hybridlab.models import Json

log = logging.getLogger(__name__)

OWN_NAMESPACES = ("kube-system", "kube-public", "kube-node-lease")
NAME_LABEL = "app.kubernetes.io/name"
JIVA_COMPONENT = "openebs.io/component"  # on the pods of a volume: jiva-controller and jiva-replica
_HASH = re.compile(r"-[a-z0-9]{8,10}$")


def take_picture(root: Path, cluster: str) -> Mapping[str, Json]:
    """Nodes and what runs on them, as the API tells it now; empty while there is no cluster, or it doesn't answer."""
    kubeconfig = root / "state" / cluster / "kubeconfig"
    if not kubeconfig.exists():
        return {}
    from hybridlab.drivers.kube import KubeDriver

    try:
        kube = KubeDriver(kubeconfig)
        nodes = kube.nodes()
        pods = kube.list("v1", "Pod")
    except HybridlabError as error:
        log.info("no picture of the cluster: %s", error)
        return {}
    by_node: dict[str, list[Json]] = defaultdict(list)
    for pod in pods:
        if pod["metadata"]["namespace"] not in OWN_NAMESPACES and pod.get("status", {}).get("phase") != "Succeeded":
            by_node[pod.get("spec", {}).get("nodeName", "")].append(pod)
    return {
        "taken": now_iso(),
        "nodes": [
            {
                "name": node.name,
                "arch": node.arch,
                "ready": node.ready,
                "schedulable": node.schedulable,
                "version": node.version,
                "cpu_m": node.cpu_m,
                "memory": node.memory,
                "taints": [taint[0] for taint in node.taints],
                "apps": apps(by_node.get(node.name, [])),
            }
            for node in nodes
        ],
        "unscheduled": apps(by_node.get("", [])),
    }


def apps(pods: Iterable[Mapping[str, Json]]) -> list[dict[str, Json]]:
    """Pods by what they are a part of: name, namespace, how many pods, and how many of them are not ready."""
    found: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for pod in pods:
        conditions = pod.get("status", {}).get("conditions", ())
        ready = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
        found[pod["metadata"]["namespace"], app_of(pod)].append(ready)
    return [
        {"name": name, "namespace": namespace, "pods": len(ready), "waiting": ready.count(False)}
        for (namespace, name), ready in sorted(found.items())
    ]


def app_of(pod: Mapping[str, Json]) -> str:
    """What a person calls the thing a pod belongs to: its label, else its owner's name without hashes."""
    meta = pod["metadata"]
    labels = meta.get("labels") or {}
    component = str(labels.get(JIVA_COMPONENT, ""))
    if component.startswith("jiva-") and "openebs.io/persistent-volume" in labels:
        return {"jiva-replica": "jiva volumes", "jiva-controller": "jiva controllers"}.get(component, component)
    if labels.get(NAME_LABEL):
        return str(labels[NAME_LABEL])
    owner = next(iter(meta.get("ownerReferences") or ()), None)
    if owner is None:
        return str(meta["name"])
    name = str(owner["name"])
    return _HASH.sub("", name) if owner.get("kind") == "ReplicaSet" else name
