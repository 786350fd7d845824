"""The cluster as it stands after a run, for the report: nodes, their architectures, and what runs where."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from hybridlab.errors import HybridlabError
from hybridlab.ledger import now_iso
from hybridlab.models import Json

log = logging.getLogger(__name__)

OWN_NAMESPACES = ("kube-system", "kube-public", "kube-node-lease")


def take_picture(root: Path, cluster: str) -> Mapping[str, Json]:
    """Nodes and pods as the API tells them now; empty while there is no cluster, or when it doesn't answer."""
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
        meta, status = pod["metadata"], pod.get("status", {})
        where = pod.get("spec", {}).get("nodeName", "")
        if meta["namespace"] in OWN_NAMESPACES or status.get("phase") == "Succeeded":
            continue
        ready = any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", ()))
        by_node[where].append({"name": meta["name"], "namespace": meta["namespace"], "ready": ready})
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
                "pods": sorted(by_node.get(node.name, []), key=lambda p: (p["namespace"], p["name"])),
            }
            for node in nodes
        ],
        "unscheduled": by_node.get("", []),
    }
