"""How well a pod would do on each node that passed the filters: the scheduler's scores, pure.

Weights are those of the default profile: NodeAffinity 2, TaintToleration 3, InterPodAffinity 2, PodTopologySpread 2,
NodeResourcesFit (LeastAllocated), BalancedAllocation and ImageLocality 1 each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hybridlab.lab.kube.controllers.objects import (
    Obj,
    containers_of,
    is_finished,
    labels_of,
    matches,
    namespace_of,
    quantity,
    requests_of,
    spec_of,
    status_of,
    tolerates,
)
from hybridlab.lab.kube.controllers.predicates import (
    HOSTNAME,
    Snapshot,
    required_terms,
    spread_counts,
    term_matches,
    term_picks,
)

Scores = dict[str, float]

_MILLI_CPU, _BYTES = 0.1, 200 * 2**20  # what a container without requests counts as when scoring
_IMAGE_MB = 100.0  # the lab's images have no size: every one counts as this
_IMAGE_LOW_MB, _IMAGE_HIGH_MB = 23.0, 1000.0


def total(pod: Obj, names: Sequence[str], snapshot: Snapshot) -> Scores:
    """Weighted sum of all scores, each normalised to 0–100 first as kube-scheduler does."""
    parts = (
        (2.0, normalised(node_affinity(pod, names, snapshot))),
        (3.0, normalised(taints(pod, names, snapshot), reverse=True)),
        (2.0, spread_out(pod_affinity(pod, names, snapshot))),
        (2.0, topology_spread(pod, names, snapshot)),
        (1.0, least_allocated(pod, names, snapshot)),
        (1.0, balanced(pod, names, snapshot)),
        (1.0, image_locality(pod, names, snapshot)),
    )
    return {name: sum(weight * scores[name] for weight, scores in parts) for name in names}


def normalised(scores: Scores, *, reverse: bool = False) -> Scores:
    """DefaultNormalizeScore: the highest becomes 100, whatever it was."""
    highest = max(scores.values(), default=0.0)
    if highest == 0:
        return dict.fromkeys(scores, 100.0 if reverse else 0.0)
    scaled = {name: float(int(100 * score / highest)) for name, score in scores.items()}
    return {name: 100.0 - score for name, score in scaled.items()} if reverse else scaled


def spread_out(scores: Scores) -> Scores:
    """Lowest 0, highest 100 (InterPodAffinity's own normalisation)."""
    low, high = min(scores.values(), default=0.0), max(scores.values(), default=0.0)
    if high == low:
        return dict.fromkeys(scores, 0.0)
    return {name: 100.0 * (score - low) / (high - low) for name, score in scores.items()}


def node_affinity(pod: Obj, names: Sequence[str], snapshot: Snapshot) -> Scores:
    """Sum of the weights of the preferred terms that fit."""
    affinity = (spec_of(pod).get("affinity") or {}).get("nodeAffinity") or {}
    terms = affinity.get("preferredDuringSchedulingIgnoredDuringExecution") or []
    return {
        name: float(sum(t["weight"] for t in terms if term_matches(t["preference"], snapshot.nodes[name])))
        for name in names
    }


def taints(pod: Obj, names: Sequence[str], snapshot: Snapshot) -> Scores:
    """Number of PreferNoSchedule taints not tolerated."""
    tolerations = spec_of(pod).get("tolerations") or []
    return {
        name: float(
            sum(
                1
                for taint in spec_of(snapshot.nodes[name]).get("taints") or []
                if taint.get("effect") == "PreferNoSchedule" and not tolerates(tolerations, taint)
            )
        )
        for name in names
    }


def _preferred(pod: Obj, kind: str) -> list[Obj]:
    return list(
        ((spec_of(pod).get("affinity") or {}).get(kind) or {}).get("preferredDuringSchedulingIgnoredDuringExecution")
        or []
    )


def pod_affinity(pod: Obj, names: Sequence[str], snapshot: Snapshot) -> Scores:
    """Preferred (anti-)affinity of the pod and, symmetrically, of the pods that are there."""
    scores = dict.fromkeys(names, 0.0)

    def add(term: Obj, weight: float, where: str) -> None:
        there = snapshot.nodes.get(where)
        domain = labels_of(there).get(term["topologyKey"]) if there else None
        for name in names:
            if domain is not None and labels_of(snapshot.nodes[name]).get(term["topologyKey"]) == domain:
                scores[name] += weight

    for where, other in snapshot.every_pod():
        if is_finished(other):
            continue
        for kind, sign in (("podAffinity", 1.0), ("podAntiAffinity", -1.0)):
            for entry in _preferred(pod, kind):
                if term_picks(entry["podAffinityTerm"], pod, other, snapshot):
                    add(entry["podAffinityTerm"], sign * entry["weight"], where)
            for entry in _preferred(other, kind):
                if term_picks(entry["podAffinityTerm"], other, pod, snapshot):
                    add(entry["podAffinityTerm"], sign * entry["weight"], where)
        for term in required_terms(other, "podAffinity"):
            if term_picks(term, other, pod, snapshot):
                add(term, 1.0, where)
    return scores


def topology_spread(pod: Obj, names: Sequence[str], snapshot: Snapshot) -> Scores:
    """Fewer matching pods in the same domain is better; pods of a Service spread over hosts without being asked to."""
    constraints = [
        c for c in spec_of(pod).get("topologySpreadConstraints") or [] if c.get("whenUnsatisfiable") == "ScheduleAnyway"
    ]
    if not spec_of(pod).get("topologySpreadConstraints"):
        selector = _default_selector(pod, snapshot)
        if selector:
            constraints = [{"topologyKey": HOSTNAME, "maxSkew": 3, "labelSelector": selector}]
    raw = dict.fromkeys(names, 0.0)
    for constraint in constraints:
        counts = spread_counts(pod, constraint, snapshot)
        for name in names:
            raw[name] += counts.get(labels_of(snapshot.nodes[name]).get(constraint["topologyKey"], ""), 0)
    low, high = min(raw.values(), default=0.0), max(raw.values(), default=0.0)
    if high == 0:
        return dict.fromkeys(names, 100.0 if constraints else 0.0)
    return {name: 100.0 * (high + low - score) / high for name, score in raw.items()}


def _default_selector(pod: Obj, snapshot: Snapshot) -> Obj | None:
    """Union of the selectors of the pod's Services and of its controller (its own hash label stands for the latter)."""
    labels = labels_of(pod)
    wanted: dict[str, str] = {}
    for service in snapshot.services:
        selector = spec_of(service).get("selector")
        if selector and namespace_of(service) == namespace_of(pod) and matches({"matchLabels": selector}, labels):
            wanted.update(selector)
    if "pod-template-hash" in labels:
        wanted["pod-template-hash"] = labels["pod-template-hash"]
    return {"matchLabels": wanted} if wanted else None


def _scoring_use(pods: Sequence[Obj]) -> tuple[float, float]:
    cpu = memory = 0.0
    for pod in pods:
        if is_finished(pod):
            continue
        wanted = requests_of(pod)
        count = len(containers_of(spec_of(pod)))
        cpu += wanted.get("cpu") or _MILLI_CPU * count
        memory += wanted.get("memory") or float(_BYTES * count)
    return cpu, memory


def _fractions(pod: Obj, name: str, snapshot: Snapshot) -> tuple[float, float]:
    allocatable = status_of(snapshot.nodes[name]).get("allocatable") or {}
    cpu, memory = _scoring_use([*snapshot.pods.get(name, ()), pod])
    return (
        min(1.0, cpu / max(quantity(allocatable.get("cpu", 0)), 1e-9)),
        min(1.0, memory / max(quantity(allocatable.get("memory", 0)), 1e-9)),
    )


def least_allocated(pod: Obj, names: Sequence[str], snapshot: Snapshot) -> Scores:
    scores = {}
    for name in names:
        cpu, memory = _fractions(pod, name, snapshot)
        scores[name] = 100.0 * ((1 - cpu) + (1 - memory)) / 2
    return scores


def balanced(pod: Obj, names: Sequence[str], snapshot: Snapshot) -> Scores:
    scores = {}
    for name in names:
        cpu, memory = _fractions(pod, name, snapshot)
        scores[name] = 100.0 * (1 - abs(cpu - memory) / 2)
    return scores


def image_locality(pod: Obj, names: Sequence[str], snapshot: Snapshot) -> Scores:
    """Images already there, damped by how few nodes have them."""
    images = [str(c.get("image", "")) for c in containers_of(spec_of(pod))]
    nodes: Mapping[str, frozenset[str]] = snapshot.images
    scores = {}
    for name in names:
        size = 0.0
        for image in images:
            if image in nodes.get(name, frozenset()):
                size += _IMAGE_MB * sum(1 for n in nodes.values() if image in n) / max(len(snapshot.nodes), 1)
        highest = _IMAGE_HIGH_MB * max(len(images), 1)
        clamped = min(max(size, _IMAGE_LOW_MB), highest)
        scores[name] = 100.0 * (clamped - _IMAGE_LOW_MB) / (highest - _IMAGE_LOW_MB)
    return scores
