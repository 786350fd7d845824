"""The scheduler's filters and scores on small clusters: which node, and what is said about the others."""

from __future__ import annotations

from typing import Any

import pytest

from hybridlab.lab.kube.controllers.predicates import CannotSchedule, Snapshot, explain, feasible
from hybridlab.lab.kube.controllers.scheduler import choose

Obj = dict[str, Any]
HOSTNAME = "kubernetes.io/hostname"


def node(name: str, arch: str = "arm64", cpu: str = "2", memory: str = "4Gi", **spec: Any) -> Obj:
    labels = {HOSTNAME: name, "kubernetes.io/arch": arch, "cores": cpu}
    allocatable = {"cpu": cpu, "memory": memory, "pods": "110"}
    return {"metadata": {"name": name, "labels": labels}, "spec": spec, "status": {"allocatable": allocatable}}


def pod(
    name: str = "p", *, on: str = "", cpu: str = "", memory: str = "", labels: Obj | None = None, **spec: Any
) -> Obj:
    requests = {k: v for k, v in (("cpu", cpu), ("memory", memory)) if v}
    container = {"name": "c", "image": "i", "resources": {"requests": requests}}
    if on:
        spec["nodeName"] = on
    meta = {"name": name, "namespace": "n", "labels": labels or {}, "uid": name}
    return {
        "metadata": meta,
        "spec": {"containers": [container], **spec},
        "status": {"phase": "Running" if on else "Pending"},
    }


def snapshot(nodes: list[Obj], pods: list[Obj] | None = None, **more: Any) -> Snapshot:
    by_node: dict[str, list[Obj]] = {}
    for one in pods or []:
        by_node.setdefault(one["spec"]["nodeName"], []).append(one)
    return Snapshot(nodes={n["metadata"]["name"]: n for n in nodes}, pods=by_node, **more)


def term(key: str, *values: str, operator: str = "In") -> Obj:
    return {"key": key, "operator": operator, **({"values": list(values)} if values else {})}


def required(*expressions: Obj) -> Obj:
    terms = [{"matchExpressions": [e]} for e in expressions]
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}


def preferred(*terms: tuple[int, Obj]) -> Obj:
    rows = [{"weight": w, "preference": {"matchExpressions": [e]}} for w, e in terms]
    return {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": rows}}


def pods_affinity(kind: str, how: str, labels: Obj, weight: int = 100) -> Obj:
    one = {"labelSelector": {"matchLabels": labels}, "topologyKey": HOSTNAME}
    if how == "required":
        return {kind: {"requiredDuringSchedulingIgnoredDuringExecution": [one]}}
    return {kind: {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": weight, "podAffinityTerm": one}]}}


TAINT = {"key": "small", "value": "true", "effect": "NoSchedule"}
ARM, AMD = node("arm"), node("amd", "amd64")

FILTERS: list[tuple[str, Obj, list[Obj], list[Obj], list[str], list[str]]] = [
    # what, pod, nodes, pods there, nodes that pass, what is said of the others
    ("no wishes", pod(), [ARM, AMD], [], ["arm", "amd"], []),
    (
        "nodeSelector",
        pod(nodeSelector={"kubernetes.io/arch": "amd64"}),
        [ARM, AMD],
        [],
        ["amd"],
        ["1 node(s) didn't match Pod's node affinity/selector"],
    ),
    (
        "required In",
        pod(affinity=required(term("kubernetes.io/arch", "arm64"))),
        [ARM, AMD],
        [],
        ["arm"],
        ["affinity/selector"],
    ),
    (
        "required NotIn",
        pod(affinity=required(term("kubernetes.io/arch", "arm64", operator="NotIn"))),
        [ARM, AMD],
        [],
        ["amd"],
        ["affinity/selector"],
    ),
    (
        "terms are alternatives",
        pod(affinity=required(term("kubernetes.io/arch", "arm64"), term("kubernetes.io/arch", "amd64"))),
        [ARM, AMD],
        [],
        ["arm", "amd"],
        [],
    ),
    (
        "Gt",
        pod(affinity=required(term("cores", "2", operator="Gt"))),
        [node("a", cpu="2"), node("b", cpu="4")],
        [],
        ["b"],
        ["affinity/selector"],
    ),
    (
        "Exists",
        pod(affinity=required(term("gpu", operator="Exists"))),
        [ARM],
        [],
        [],
        ["1 node(s) didn't match Pod's node affinity/selector"],
    ),
    ("taint", pod(), [node("a", taints=[TAINT]), ARM], [], ["arm"], ["1 node(s) had untolerated taint {small: true}"]),
    (
        "tolerated",
        pod(tolerations=[{"key": "small", "operator": "Exists"}]),
        [node("a", taints=[TAINT])],
        [],
        ["a"],
        [],
    ),
    (
        "toleration of another value",
        pod(tolerations=[{"key": "small", "value": "no", "effect": "NoSchedule"}]),
        [node("a", taints=[TAINT])],
        [],
        [],
        ["untolerated taint"],
    ),
    (
        "toleration of another effect",
        pod(tolerations=[{"key": "small", "operator": "Exists", "effect": "NoExecute"}]),
        [node("a", taints=[TAINT])],
        [],
        [],
        ["untolerated taint"],
    ),
    ("all tolerated", pod(tolerations=[{"operator": "Exists"}]), [node("a", taints=[TAINT])], [], ["a"], []),
    (
        "PreferNoSchedule is no filter",
        pod(),
        [node("a", taints=[{**TAINT, "effect": "PreferNoSchedule"}])],
        [],
        ["a"],
        [],
    ),
    ("cordoned", pod(), [node("a", unschedulable=True)], [], [], ["1 node(s) were unschedulable"]),
    ("cpu", pod(cpu="1500m"), [ARM], [pod("o", on="arm", cpu="600m")], [], ["1 Insufficient cpu"]),
    ("cpu just fits", pod(cpu="1400m"), [ARM], [pod("o", on="arm", cpu="600m")], ["arm"], []),
    ("memory units", pod(memory="4096Mi"), [ARM], [], ["arm"], []),
    ("memory", pod(memory="4097Mi"), [ARM], [], [], ["1 Insufficient memory"]),
    ("both", pod(cpu="3", memory="5Gi"), [ARM], [], [], ["1 Insufficient cpu, 1 Insufficient memory"]),
    (
        "ended pods don't count",
        pod(cpu="2"),
        [ARM],
        [{**pod("o", on="arm", cpu="2"), "status": {"phase": "Succeeded"}}],
        ["arm"],
        [],
    ),
    (
        "anti-affinity",
        pod(affinity=pods_affinity("podAntiAffinity", "required", {"a": "1"})),
        [ARM, AMD],
        [pod("o", on="arm", labels={"a": "1"})],
        ["amd"],
        ["1 node(s) didn't match pod anti-affinity rules"],
    ),
    (
        "someone else's anti-affinity",
        pod(labels={"a": "1"}),
        [ARM, AMD],
        [pod("o", on="arm", affinity=pods_affinity("podAntiAffinity", "required", {"a": "1"}))],
        ["amd"],
        ["1 node(s) didn't satisfy existing pods anti-affinity rules"],
    ),
    (
        "affinity",
        pod(affinity=pods_affinity("podAffinity", "required", {"a": "1"})),
        [ARM, AMD],
        [pod("o", on="amd", labels={"a": "1"})],
        ["amd"],
        ["1 node(s) didn't match pod affinity rules"],
    ),
    (
        "affinity to nobody",
        pod(affinity=pods_affinity("podAffinity", "required", {"a": "1"})),
        [ARM],
        [],
        [],
        ["1 node(s) didn't match pod affinity rules"],
    ),
    (
        "first of its own group",
        pod(labels={"a": "1"}, affinity=pods_affinity("podAffinity", "required", {"a": "1"})),
        [ARM],
        [],
        ["arm"],
        [],
    ),
]


@pytest.mark.parametrize(
    ("one", "nodes", "others", "passing", "said"), [row[1:] for row in FILTERS], ids=[row[0] for row in FILTERS]
)
def test_filters(one: Obj, nodes: list[Obj], others: list[Obj], passing: list[str], said: list[str]) -> None:
    seen = snapshot(nodes, others)
    found, failing = feasible(one, seen)
    assert found == passing
    message = explain(failing, len(nodes)) if failing else ""
    assert all(text in message for text in said), message


def test_message_counts_and_sorts_the_reasons() -> None:
    nodes = [node("a", "amd64"), node("b", taints=[TAINT]), node("c"), node("d")]
    full = [pod("x", on="c", memory="4Gi"), pod("y", on="d", memory="4Gi")]
    one = pod(memory="1Gi", nodeSelector={"kubernetes.io/arch": "arm64"})
    _, failing = feasible(one, snapshot(nodes, full))
    assert explain(failing, 4) == (
        "0/4 nodes are available: 1 node(s) didn't match Pod's node affinity/selector, 1 node(s) had untolerated taint "
        "{small: true}, 2 Insufficient memory. preemption: 0/4 nodes are available: 2 No preemption victims found for "
        "incoming pod, 2 Preemption is not helpful for scheduling."
    )
    assert explain({}, 0) == "no nodes available to schedule pods"


def test_spread_over_hosts() -> None:
    rule = {
        "topologyKey": HOSTNAME,
        "maxSkew": 1,
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"a": "1"}},
    }
    one = pod(labels={"a": "1"}, topologySpreadConstraints=[rule])
    there = [pod("x", on="arm", labels={"a": "1"})]
    assert feasible(one, snapshot([ARM, AMD], there))[0] == ["amd"]
    assert feasible(one, snapshot([ARM, AMD], [*there, pod("y", on="amd", labels={"a": "1"})]))[0] == ["arm", "amd"]


CHOICES: list[tuple[str, Obj, list[Obj], list[Obj], str]] = [
    (
        "preferred arch wins over an empty node",
        pod(affinity=preferred((1, term("kubernetes.io/arch", "amd64")))),
        [ARM, AMD],
        [pod("o", on="amd", cpu="1", memory="2Gi")],
        "amd",
    ),
    (
        "a single weight of 1 is as good as 100",
        pod(affinity=preferred((100, term("kubernetes.io/arch", "amd64")))),
        [ARM, AMD],
        [pod("o", on="amd", cpu="1", memory="2Gi")],
        "amd",
    ),
    (
        "the higher weight",
        pod(affinity=preferred((10, term("kubernetes.io/arch", "amd64")), (90, term("kubernetes.io/arch", "arm64")))),
        [ARM, AMD],
        [],
        "arm",
    ),
    (
        "weights close together yield to load",
        pod(affinity=preferred((99, term("kubernetes.io/arch", "amd64")), (100, term("kubernetes.io/arch", "arm64")))),
        [ARM, AMD],
        [pod("o", on="arm", cpu="1", memory="2Gi")],
        "amd",
    ),
    ("least allocated", pod(), [ARM, AMD], [pod("o", on="arm", cpu="1", memory="2Gi")], "amd"),
    ("larger node", pod(cpu="500m", memory="1Gi"), [node("a"), node("b", cpu="4", memory="24Gi")], [], "b"),
    (
        "PreferNoSchedule",
        pod(),
        [node("a", taints=[{**TAINT, "effect": "PreferNoSchedule"}]), node("b")],
        [pod("o", on="b", cpu="500m")],
        "b",
    ),
    (
        "preferred anti-affinity",
        pod(affinity=pods_affinity("podAntiAffinity", "preferred", {"a": "1"})),
        [ARM, AMD],
        [pod("o", on="amd", labels={"a": "1"}), pod("q", on="arm", cpu="500m")],
        "arm",
    ),
    (
        "preferred affinity",
        pod(affinity=pods_affinity("podAffinity", "preferred", {"a": "1"})),
        [ARM, AMD],
        [pod("o", on="amd", labels={"a": "1"})],
        "amd",
    ),
    (
        "replicas spread",
        pod(labels={"pod-template-hash": "h"}),
        [ARM, AMD],
        [pod("o", on="arm", labels={"pod-template-hash": "h"}), pod("q", on="amd", cpu="100m")],
        "amd",
    ),
]


@pytest.mark.parametrize(
    ("one", "nodes", "others", "best"), [row[1:] for row in CHOICES], ids=[row[0] for row in CHOICES]
)
def test_scores(one: Obj, nodes: list[Obj], others: list[Obj], best: str) -> None:
    seen = snapshot(nodes, others)
    passing, _ = feasible(one, seen)
    assert choose(one, passing, seen) == best


# -- volumes -----------------------------------------------------------------------------------------------------------
def with_claim(phase: str = "Pending", volume: str = "", mode: str = "WaitForFirstConsumer") -> tuple[Obj, Snapshot]:
    spec = {"storageClassName": "s", **({"volumeName": volume} if volume else {})}
    claim = {"metadata": {"name": "c", "namespace": "n", "uid": "u"}, "spec": spec, "status": {"phase": phase}}
    pinned = {"required": {"nodeSelectorTerms": [{"matchExpressions": [term(HOSTNAME, "amd")]}]}}
    seen = snapshot(
        [ARM, AMD],
        claims={("n", "c"): claim},
        volumes={"v": {"metadata": {"name": "v"}, "spec": {"nodeAffinity": pinned}}},
        classes={"s": {"metadata": {"name": "s"}, "provisioner": "x", "volumeBindingMode": mode}},
    )
    return pod(volumes=[{"name": "d", "persistentVolumeClaim": {"claimName": "c"}}]), seen


def test_bound_volume_pins_its_pod() -> None:
    passing, failing = feasible(*with_claim("Bound", "v"))
    assert passing == ["amd"]
    assert failing["arm"][0].text == "node(s) didn't match PersistentVolume's node affinity"


def test_claim_that_waits_for_its_consumer_leaves_every_node_open() -> None:
    assert feasible(*with_claim())[0] == ["arm", "amd"]


@pytest.mark.parametrize(
    ("name", "said"),
    [("c", "pod has unbound immediate PersistentVolumeClaims"), ("gone", 'persistentvolumeclaim "gone" not found')],
)
def test_claims_that_keep_a_pod_from_every_node(name: str, said: str) -> None:
    one, seen = with_claim(mode="Immediate")
    one["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] = name
    with pytest.raises(CannotSchedule, match=said):
        feasible(one, seen)
