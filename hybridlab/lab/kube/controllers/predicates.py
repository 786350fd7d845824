"""Which nodes a pod may run on, and why not the others: the scheduler's filters, pure.

Wording and order are kube-scheduler's (pkg/scheduler/framework/plugins), since people read and compare the messages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from hybridlab.lab.kube.controllers.objects import (
    Obj,
    annotations_of,
    containers_of,
    is_finished,
    key_of,
    labels_of,
    matches,
    name_of,
    namespace_of,
    quantity,
    requests_of,
    requirement_met,
    spec_of,
    status_of,
    tolerates,
    uid_of,
)

HOSTNAME = "kubernetes.io/hostname"
SELECTED_NODE = "volume.kubernetes.io/selected-node"


@dataclass(frozen=True)
class Snapshot:
    """What the scheduler sees at one moment. ``pods`` are those with a node, by node name."""

    nodes: Mapping[str, Obj]
    pods: Mapping[str, Sequence[Obj]]
    claims: Mapping[tuple[str, str], Obj] = field(default_factory=dict)
    volumes: Mapping[str, Obj] = field(default_factory=dict)
    classes: Mapping[str, Obj] = field(default_factory=dict)
    services: Sequence[Obj] = ()
    namespaces: Mapping[str, Obj] = field(default_factory=dict)
    images: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def every_pod(self) -> list[tuple[str, Obj]]:
        return [(node, pod) for node, pods in self.pods.items() for pod in pods]


@dataclass(frozen=True)
class Reason:
    """Why a node is out. ``resolvable`` says whether evicting pods could help (it decides the preemption wording)."""

    text: str
    resolvable: bool = False


class CannotSchedule(Exception):
    """The pod fits nowhere whatever the nodes (a PreFilter of the real scheduler said no)."""


Filter = Callable[[Obj, Obj, Snapshot], Sequence[Reason]]


def used_on(node_name: str, snapshot: Snapshot) -> dict[str, float]:
    """Requests of all pods on a node that still count."""
    totals: dict[str, float] = {}
    for pod in snapshot.pods.get(node_name, ()):
        if not is_finished(pod):
            for resource, value in requests_of(pod).items():
                totals[resource] = totals.get(resource, 0.0) + value
    return totals


def node_unschedulable(pod: Obj, node: Obj, snapshot: Snapshot) -> Sequence[Reason]:
    taint = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}
    if spec_of(node).get("unschedulable") and not tolerates(spec_of(pod).get("tolerations") or [], taint):
        return [Reason("node(s) were unschedulable")]
    return []


def node_name(pod: Obj, node: Obj, snapshot: Snapshot) -> Sequence[Reason]:
    wanted = spec_of(pod).get("nodeName")
    return [Reason("node(s) didn't match the requested node name")] if wanted and wanted != name_of(node) else []


def taints(pod: Obj, node: Obj, snapshot: Snapshot) -> Sequence[Reason]:
    taint = untolerated(spec_of(pod), node, ("NoSchedule", "NoExecute"))
    if taint is None:
        return []
    return [Reason(f"node(s) had untolerated taint {{{taint['key']}: {taint.get('value') or ''}}}")]


def untolerated(pod_spec: Obj, node: Obj, effects: Sequence[str]) -> Obj | None:
    tolerations = pod_spec.get("tolerations") or []
    for taint in spec_of(node).get("taints") or []:
        if taint.get("effect") in effects and not tolerates(tolerations, taint):
            found: Obj = taint
            return found
    return None


def node_affinity(pod: Obj, node: Obj, snapshot: Snapshot) -> Sequence[Reason]:
    if affinity_allows(spec_of(pod), node):
        return []
    return [Reason("node(s) didn't match Pod's node affinity/selector")]


def affinity_allows(pod_spec: Obj, node: Obj) -> bool:
    """nodeSelector and required node affinity."""
    labels = labels_of(node)
    if any(labels.get(k) != v for k, v in (pod_spec.get("nodeSelector") or {}).items()):
        return False
    affinity = (pod_spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    return required is None or terms_match(required.get("nodeSelectorTerms") or [], node)


def terms_match(terms: Sequence[Obj], node: Obj) -> bool:
    """Whether any node selector term fits; an empty term fits nothing."""
    return any(term_matches(term, node) for term in terms)


def term_matches(term: Obj, node: Obj) -> bool:
    expressions = term.get("matchExpressions") or []
    fields = term.get("matchFields") or []
    if not expressions and not fields:
        return False
    by_field = {"metadata.name": name_of(node)}
    return all(requirement_met(e, labels_of(node)) for e in expressions) and all(
        requirement_met(f, by_field) for f in fields
    )


def host_ports(pod: Obj) -> set[tuple[str, int]]:
    return {
        (port.get("protocol", "TCP"), int(port["hostPort"]))
        for container in containers_of(spec_of(pod))
        for port in container.get("ports") or []
        if port.get("hostPort")
    }


def node_ports(pod: Obj, node: Obj, snapshot: Snapshot) -> Sequence[Reason]:
    wanted = host_ports(pod)
    if wanted and any(wanted & host_ports(p) for p in snapshot.pods.get(name_of(node), ()) if not is_finished(p)):
        return [Reason("node(s) didn't have free ports for the requested pod ports", True)]
    return []


def resources(pod: Obj, node: Obj, snapshot: Snapshot) -> Sequence[Reason]:
    allocatable = status_of(node).get("allocatable") or {}
    used = used_on(name_of(node), snapshot)
    reasons = []
    for resource, wanted in requests_of(pod).items():
        if wanted and used.get(resource, 0.0) + wanted > quantity(allocatable.get(resource, 0)) + 1e-9:
            text = "Too many pods" if resource == "pods" else f"Insufficient {resource}"
            reasons.append(Reason(text, wanted <= quantity(allocatable.get(resource, 0))))
    return reasons


def claims_of(pod: Obj) -> list[str]:
    """Names of the claims a pod mounts (generic ephemeral volumes included)."""
    names = []
    for volume in spec_of(pod).get("volumes") or []:
        if volume.get("persistentVolumeClaim"):
            names.append(str(volume["persistentVolumeClaim"]["claimName"]))
        elif volume.get("ephemeral"):
            names.append(f"{name_of(pod)}-{volume['name']}")
    return names


def check_claims(pod: Obj, snapshot: Snapshot) -> None:
    """Raise CannotSchedule where a claim is missing, lost, or unbound although its class binds at once."""
    for name in claims_of(pod):
        claim = snapshot.claims.get((namespace_of(pod), name))
        if claim is None:
            raise CannotSchedule(f'persistentvolumeclaim "{name}" not found')
        if claim["metadata"].get("deletionTimestamp"):
            raise CannotSchedule(f'persistentvolumeclaim "{name}" is being deleted')
        if status_of(claim).get("phase") == "Lost":
            raise CannotSchedule(f'persistentvolumeclaim "{name}" bound to non-existent persistentvolume')
        if not spec_of(claim).get("volumeName") and not waits_for_consumer(claim, snapshot):
            raise CannotSchedule("pod has unbound immediate PersistentVolumeClaims")


def waits_for_consumer(claim: Obj, snapshot: Snapshot) -> bool:
    storage_class = snapshot.classes.get(spec_of(claim).get("storageClassName") or "")
    return storage_class is not None and storage_class.get("volumeBindingMode") == "WaitForFirstConsumer"


def volumes(pod: Obj, node: Obj, snapshot: Snapshot) -> Sequence[Reason]:
    for name in claims_of(pod):
        claim = snapshot.claims[(namespace_of(pod), name)]
        bound_to = spec_of(claim).get("volumeName")
        if bound_to:
            volume = snapshot.volumes.get(bound_to)
            if volume is None:
                return [Reason("node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)")]
            if not volume_fits(volume, node):
                return [Reason("node(s) didn't match PersistentVolume's node affinity")]
            continue
        storage_class = snapshot.classes[spec_of(claim)["storageClassName"]]
        selected = annotations_of(claim).get(SELECTED_NODE)
        if selected and selected != name_of(node):
            return [Reason("node(s) didn't find available persistent volumes to bind")]
        topologies = storage_class.get("allowedTopologies") or []
        allowed = [{"matchExpressions": [_as_in(e) for e in t.get("matchLabelExpressions") or []]} for t in topologies]
        static = storage_class.get("provisioner") == "kubernetes.io/no-provisioner"
        if (allowed and not terms_match(allowed, node)) or (static and not _static_volume(claim, node, snapshot)):
            return [Reason("node(s) didn't find available persistent volumes to bind")]
    return []


def _as_in(expression: Obj) -> Obj:
    return {"key": expression["key"], "operator": "In", "values": expression.get("values") or []}


def _static_volume(claim: Obj, node: Obj, snapshot: Snapshot) -> bool:
    return any(volume_suits(v, claim) and volume_fits(v, node) for v in snapshot.volumes.values())


def volume_fits(volume: Obj, node: Obj) -> bool:
    required = (spec_of(volume).get("nodeAffinity") or {}).get("required")
    return required is None or terms_match(required.get("nodeSelectorTerms") or [], node)


def volume_suits(volume: Obj, claim: Obj) -> bool:
    """Whether a free volume could be bound to a claim: class, modes, size, selector, reservation."""
    spec, wanted = spec_of(volume), spec_of(claim)
    reference = spec.get("claimRef")
    if reference is not None:
        if (reference.get("namespace"), reference.get("name")) != key_of(claim):
            return False
        if reference.get("uid") and reference["uid"] != uid_of(claim):
            return False
    elif status_of(volume).get("phase", "Available") not in ("Available", "Pending"):
        return False
    size = quantity((wanted.get("resources") or {}).get("requests", {}).get("storage", 0))
    return (
        (spec.get("storageClassName") or "") == (wanted.get("storageClassName") or "")
        and set(wanted.get("accessModes") or []) <= set(spec.get("accessModes") or [])
        and (spec.get("volumeMode") or "Filesystem") == (wanted.get("volumeMode") or "Filesystem")
        and quantity(spec.get("capacity", {}).get("storage", 0)) >= size
        and (wanted.get("selector") is None or matches(wanted["selector"], labels_of(volume)))
    )


# -- pod affinity ----------------------------------------------------------------------------------------------------
def term_picks(term: Obj, owner: Obj, other: Obj, snapshot: Snapshot) -> bool:
    """Whether a pod (anti-)affinity term of ``owner`` picks the pod ``other``."""
    names = term.get("namespaces") or []
    by_label = term.get("namespaceSelector")
    if by_label is not None:
        space = snapshot.namespaces.get(namespace_of(other), {})
        in_scope = namespace_of(other) in names or matches(by_label, labels_of(space))
    else:
        in_scope = namespace_of(other) in (names or [namespace_of(owner)])
    return in_scope and matches(term.get("labelSelector"), labels_of(other))


def required_terms(pod: Obj, kind: str) -> list[Obj]:
    return list(
        ((spec_of(pod).get("affinity") or {}).get(kind) or {}).get("requiredDuringSchedulingIgnoredDuringExecution")
        or []
    )


def _same_domain(key: str, node: Obj, other_name: str, snapshot: Snapshot) -> bool:
    other = snapshot.nodes.get(other_name)
    value = labels_of(node).get(key)
    return other is not None and value is not None and labels_of(other).get(key) == value


def pod_affinity(pod: Obj, node: Obj, snapshot: Snapshot) -> Sequence[Reason]:
    others = [(n, p) for n, p in snapshot.every_pod() if not is_finished(p)]
    for term in required_terms(pod, "podAffinity"):
        picked = [(n, p) for n, p in others if term_picks(term, pod, p, snapshot)]
        key = term["topologyKey"]
        # the first pod of a group that wants to be with itself may go anywhere that has the key
        first_of_group = not picked and term_picks(term, pod, pod, snapshot) and key in labels_of(node)
        if not first_of_group and not any(_same_domain(key, node, n, snapshot) for n, _ in picked):
            return [Reason("node(s) didn't match pod affinity rules")]
    for term in required_terms(pod, "podAntiAffinity"):
        if any(
            _same_domain(term["topologyKey"], node, n, snapshot) and term_picks(term, pod, p, snapshot)
            for n, p in others
        ):
            return [Reason("node(s) didn't match pod anti-affinity rules", True)]
    for other_node, other in others:
        for term in required_terms(other, "podAntiAffinity"):
            if _same_domain(term["topologyKey"], node, other_node, snapshot) and term_picks(term, other, pod, snapshot):
                return [Reason("node(s) didn't satisfy existing pods anti-affinity rules", True)]
    return []


def topology_spread(pod: Obj, node: Obj, snapshot: Snapshot) -> Sequence[Reason]:
    for constraint in spec_of(pod).get("topologySpreadConstraints") or []:
        if constraint.get("whenUnsatisfiable", "DoNotSchedule") != "DoNotSchedule":
            continue
        key = constraint["topologyKey"]
        if key not in labels_of(node):
            return [Reason("node(s) didn't match pod topology spread constraints (missing required label)")]
        counts = spread_counts(pod, constraint, snapshot)
        after = counts.get(labels_of(node)[key], 0) + int(matches(constraint.get("labelSelector"), labels_of(pod)))
        if after - min(counts.values(), default=0) > int(constraint.get("maxSkew", 1)):
            return [Reason("node(s) didn't match pod topology spread constraints", True)]
    return []


def spread_counts(pod: Obj, constraint: Obj, snapshot: Snapshot) -> dict[str, int]:
    """Matching pods per topology domain, over the nodes the pod's affinity allows."""
    key = constraint["topologyKey"]
    counts: Counter[str] = Counter()
    for name, node in snapshot.nodes.items():
        domain = labels_of(node).get(key)
        if domain is None or not affinity_allows(spec_of(pod), node):
            continue
        counts[domain] += sum(
            1
            for other in snapshot.pods.get(name, ())
            if namespace_of(other) == namespace_of(pod)
            and not is_finished(other)
            and matches(constraint.get("labelSelector"), labels_of(other))
        )
    return dict(counts)


FILTERS: Sequence[Filter] = (
    node_unschedulable,
    node_name,
    taints,
    node_affinity,
    node_ports,
    resources,
    volumes,
    topology_spread,
    pod_affinity,
)


def feasible(pod: Obj, snapshot: Snapshot) -> tuple[list[str], dict[str, Sequence[Reason]]]:
    """Names of the nodes that pass every filter, and for each other node why it fails (the first filter's reasons).

    Raises CannotSchedule.
    """
    check_claims(pod, snapshot)
    passing, failing = [], {}
    for name, node in snapshot.nodes.items():
        reasons = next((r for r in (f(pod, node, snapshot) for f in FILTERS) if r), None)
        if reasons:
            failing[name] = reasons
        else:
            passing.append(name)
    return passing, failing


def explain(failing: Mapping[str, Sequence[Reason]], total: int) -> str:
    """The message of PodScheduled=False and of the FailedScheduling event."""
    if total == 0:
        return "no nodes available to schedule pods"
    counts = Counter(reason.text for reasons in failing.values() for reason in reasons)
    filters = ", ".join(sorted(f"{count} {text}" for text, count in counts.items()))
    helpless = sum(1 for reasons in failing.values() if any(not r.resolvable for r in reasons))
    preemption: Counter[str] = Counter()
    if helpless:
        preemption["Preemption is not helpful for scheduling"] = helpless
    if len(failing) > helpless:
        preemption["No preemption victims found for incoming pod"] = len(failing) - helpless
    tail = ", ".join(sorted(f"{count} {text}" for text, count in preemption.items()))
    head = f"0/{total} nodes are available"
    return f"{head}: {filters}. preemption: {head}: {tail}."


def explain_prefilter(cause: str, total: int) -> str:
    head = f"0/{total} nodes are available"
    return f"{head}: {cause}. preemption: {head}: {total} Preemption is not helpful for scheduling."
