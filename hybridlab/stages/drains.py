"""Nodes out of use and back: cordon, drain pod by pod, uncordon."""

from __future__ import annotations

from collections.abc import Mapping

from hybridlab.models import Json
from hybridlab.ports import Context
from hybridlab.wait import wait_until

DRAIN_DEADLINE_S = 600.0
UPGRADING = "hybridlab.io/upgrading"
"""Label on a node that we cordoned to upgrade it, so that a run that broke off is known to have to uncordon it."""


def evictable(pod: Mapping[str, Json]) -> bool:
    """A pod that a drain has to move: not finished, not a DaemonSet's, not a static one."""
    owners = {o["kind"] for o in pod["metadata"].get("ownerReferences", [])}
    finished = pod.get("status", {}).get("phase") in ("Succeeded", "Failed")
    return bool(pod["spec"].get("nodeName")) and not finished and not owners & {"DaemonSet", "Node"}


def cordon(ctx: Context, node: str, *, label: str = "") -> None:
    metadata: dict[str, Json] = {"metadata": {"labels": {label: "true"}}} if label else {}
    ctx.kube.patch("v1", "Node", node, None, {**metadata, "spec": {"unschedulable": True}})


def uncordon(ctx: Context, node: str, *, label: str = "") -> None:
    metadata: dict[str, Json] = {"metadata": {"labels": {label: None}}} if label else {}
    ctx.kube.patch("v1", "Node", node, None, {**metadata, "spec": {"unschedulable": None}})


def drain(ctx: Context, node: str) -> int:
    """Evict pod by pod, again where a disruption budget said not now, until none is left; how many had to move."""

    def left() -> list[dict[str, Json]]:
        pods = [p for p in ctx.kube.list("v1", "Pod", fields=f"spec.nodeName={node}") if evictable(p)]
        for pod in pods:
            if "deletionTimestamp" not in pod["metadata"]:
                ctx.kube.evict(pod["metadata"]["namespace"], pod["metadata"]["name"])
        return pods

    moved = len(left())
    wait_until(
        left,
        lambda pods: not pods,
        what=f"node {node} to be drained",
        deadline_s=DRAIN_DEADLINE_S,
        clock=ctx.clock,
        interval_s=0.5,
        describe=lambda pods: f"{len(pods)} pods left: " + ", ".join(p["metadata"]["name"] for p in pods[:3]),
        next_move="a PodDisruptionBudget may hold it: kubectl get pdb -A",
    )
    return moved
