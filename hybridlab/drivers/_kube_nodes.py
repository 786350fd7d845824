"""What the API says of nodes and pods, counted: what is free is what can be allocated minus what pods ask for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from hybridlab.models import Json, NodeInfo
from hybridlab.quantity import bytes_of, millicores

Amounts = tuple[int, int]  # millicores, bytes


def node_infos(nodes: Iterable[Mapping[str, Json]], pods: Iterable[Mapping[str, Json]]) -> tuple[NodeInfo, ...]:
    """Nodes by name; pods that ended (or have no node yet) take nothing."""
    taken: dict[str, Amounts] = {}
    for pod in pods:
        node = pod["spec"].get("nodeName")
        if node and pod.get("status", {}).get("phase") not in ("Succeeded", "Failed"):
            taken[node] = _plus(taken.get(node, (0, 0)), pod_requests(pod["spec"]))
    return tuple(_node(n, taken.get(n["metadata"]["name"], (0, 0))) for n in sorted(nodes, key=_name))


def pod_requests(spec: Mapping[str, Json]) -> Amounts:
    """What the scheduler counts for a pod: its containers and sidecars together, or its greediest moment at start.

    After https://kubernetes.io/docs/concepts/workloads/pods/sidecar-containers/#resource-sharing-within-containers;
    requests of the pod itself replace the containers' sum.
    """
    running = _sum(_requests(c) for c in spec.get("containers") or ())
    sidecars: Amounts = (0, 0)
    starting: Amounts = (0, 0)
    for container in spec.get("initContainers") or ():
        if container.get("restartPolicy") == "Always":
            sidecars = _plus(sidecars, _requests(container))
            moment = sidecars
        else:
            moment = _plus(sidecars, _requests(container))
        starting = (max(starting[0], moment[0]), max(starting[1], moment[1]))
    steady = _plus(running, sidecars)
    total = (max(steady[0], starting[0]), max(steady[1], starting[1]))
    whole = (spec.get("resources") or {}).get("requests") or {}
    if "cpu" in whole:
        total = (millicores(whole["cpu"]), total[1])
    if "memory" in whole:
        total = (total[0], bytes_of(whole["memory"]))
    return _plus(total, _amounts(spec.get("overhead") or {}))


def _node(node: Mapping[str, Json], taken: Amounts) -> NodeInfo:
    meta, spec, status = node["metadata"], node.get("spec") or {}, node.get("status") or {}
    info = status.get("nodeInfo") or {}
    ready: Mapping[str, Json] = next((c for c in status.get("conditions") or () if c["type"] == "Ready"), {})
    addresses = {a["type"]: a["address"] for a in status.get("addresses") or ()}
    total = _amounts(status.get("allocatable") or status.get("capacity") or {})
    return NodeInfo(
        name=meta["name"],
        arch=str(info.get("architecture", "")),
        ready=ready.get("status") == "True",
        ready_since=str(ready.get("lastTransitionTime") or ""),
        internal_ip=str(addresses.get("InternalIP", "")),
        labels=dict(meta.get("labels") or {}),
        taints=tuple((t["key"], t.get("value") or "", t["effect"]) for t in spec.get("taints") or ()),
        schedulable=not spec.get("unschedulable", False),
        version=str(info.get("kubeletVersion", "")),
        cpu_m=total[0],
        memory=total[1],
        cpu_free_m=total[0] - taken[0],
        memory_free=total[1] - taken[1],
    )


def _requests(container: Mapping[str, Json]) -> Amounts:
    resources = container.get("resources") or {}
    # a limit without a request is taken as the request, as the API server defaults it
    return _amounts({**(resources.get("limits") or {}), **(resources.get("requests") or {})})


def _amounts(quantities: Mapping[str, Json]) -> Amounts:
    return millicores(quantities.get("cpu", 0)), bytes_of(quantities.get("memory", 0))


def _sum(amounts: Iterable[Amounts]) -> Amounts:
    found: Sequence[Amounts] = tuple(amounts)
    return sum(a[0] for a in found), sum(a[1] for a in found)


def _plus(one: Amounts, other: Amounts) -> Amounts:
    return one[0] + other[0], one[1] + other[1]


def _name(node: Mapping[str, Json]) -> str:
    return str(node["metadata"]["name"])
