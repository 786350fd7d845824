"""Traffic between pods: what is asked, what answers mean, when it is asked again, and that nothing stays behind."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeContext, PodKube, make_params, node

from hybridlab.errors import HybridlabError, Unreachable
from hybridlab.models import Check, ExecResult
from hybridlab.stages.bootstrap import podtraffic

NODES = ("arm-1", "arm-2", "amd-1")
IPS = {"arm-1": "10.42.0.5", "arm-2": "10.42.1.5", "amd-1": "10.42.2.5"}
DNS = "kubernetes.default.svc.cluster.local"
Answers = Callable[[str, str, str, int], tuple[str, str]]
"""From a node to an address, by protocol and size: the helper's state and error."""


def all_well(source: str, address: str, protocol: str, size: int) -> tuple[str, str]:
    return ("open" if address == DNS else "echo"), ""


class Cluster(PodKube):
    """Nodes whose probing pods answer as ``answers`` says; they get the pods' addresses when they listen."""

    def __init__(self, answers: Answers = all_well, nodes: Sequence[str] = NODES) -> None:
        super().__init__(self._probe, {"kind": "Namespace", "metadata": {"name": "kube-system"}})
        self.answers = answers
        self.node_rows = tuple(node(name, "amd64" if name == "amd-1" else "arm64") for name in nodes)
        self.where = lambda pod: str(pod["spec"]["nodeSelector"]["kubernetes.io/hostname"])
        self.probed = 0

    def apply(self, obj: Mapping[str, Any], *, dry_run: bool = False, force: bool = True) -> dict[str, Any]:
        made = super().apply(obj)
        if made["kind"] == "Pod":
            made["status"]["podIP"] = IPS[made["spec"]["nodeName"]]
        if made["kind"] == "Namespace":
            made["status"] = {"phase": "Active"}
        return made

    def _probe(self, pod: str, argv: tuple[str, ...], stdin: bytes) -> str:
        self.probed += 1
        assert argv[:2] == ("probe", "--size")
        source, rows = pod.removeprefix("probe-"), []
        for target in argv[5:]:
            address, _, rest = target.rpartition(":")
            state, error = self.answers(source, address, rest.partition("/")[2], int(argv[2]))
            rows.append({"target": target, "state": state, **({"error": error} if error else {})})
        return json.dumps(rows)


def context(folder: Path, cluster: Cluster | None = None, changes: Mapping[str, Any] | None = None) -> FakeContext:
    ctx = FakeContext(folder, make_params(changes), kube=cluster or Cluster())
    ctx.clock.time = 1_767_000_000.0
    return ctx


def check(ctx: FakeContext) -> Check:
    found = podtraffic.traffic_check(ctx)
    assert len(found) == 1
    return found[0]


def broken(source: str, target: str, protocol: str = "tcp", state: str = "filtered", error: str = "") -> Answers:
    def answers(frm: str, address: str, kind: str, size: int) -> tuple[str, str]:
        hit = frm == source and address == (DNS if target == DNS else IPS[target]) and kind == protocol
        return (state, error) if hit else all_well(frm, address, kind, size)

    return answers


# -- measuring ---------------------------------------------------------------------------------------------------------
def test_every_pod_asks_all_others_and_nothing_stays_behind(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    paths = podtraffic.measure(ctx, list(ctx.kube.nodes()))
    assert set(paths) == {(a, b) for a in NODES for b in NODES if a != b}
    assert set(paths.values()) == {"ok"}
    assert ("Namespace", "", podtraffic.NAMESPACE) not in ctx.kube.objects
    assert not [key for key in ctx.kube.objects if key[1] == podtraffic.NAMESPACE]


def test_what_is_asked(tmp_path: Path) -> None:
    asked: list[tuple[str, str, str, int]] = []

    def answers(*asks: Any) -> tuple[str, str]:
        asked.append(asks)
        return all_well(*asks)

    ctx = context(tmp_path, Cluster(answers))
    podtraffic.measure(ctx, list(ctx.kube.nodes()))
    mine = {(address, kind, size) for source, address, kind, size in asked if source == "arm-1"}
    others = [IPS["arm-2"], IPS["amd-1"]]
    small, large = {(ip, "tcp", 64) for ip in others}, {(ip, "udp", 1372) for ip in others}
    assert mine == small | large | {(DNS, "tcp", 64)}
    assert 1372 + 28 <= 1420, "a packet of 1400 bytes fits VXLAN's 1450 and WireGuard's 1420"


def test_pods_land_on_their_nodes_whatever_taints_those_have(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    made: list[dict[str, Any]] = []
    apply = ctx.kube.apply
    ctx.kube.apply = lambda obj, **options: made.append(obj) or apply(obj, **options)  # type: ignore[func-returns-value]
    podtraffic.measure(ctx, list(ctx.kube.nodes()))
    pods = {o["metadata"]["name"]: o["spec"] for o in made if o["kind"] == "Pod"}
    assert {name: s["nodeSelector"]["kubernetes.io/hostname"] for name, s in pods.items()} == {
        f"probe-{name}": name for name in NODES
    }
    assert all(s["tolerations"] == [{"operator": "Exists"}] for s in pods.values())
    listen = pods["probe-arm-1"]["containers"][0]["command"]
    assert listen[2:] == ["listen", "--tcp", "7000", "--udp", "7000", "--seconds", "600"]


@pytest.mark.parametrize(
    ("answers", "bad"),
    [
        (broken("arm-1", "amd-1"), {("arm-1", "amd-1"): "TCP filtered"}),
        (
            broken("arm-1", "amd-1", state="rejected", error="No route to host"),
            {("arm-1", "amd-1"): "TCP rejected (No route to host)"},
        ),
        (broken("arm-2", "arm-1", "udp", "silent"), {("arm-2", "arm-1"): "UDP of 1372 bytes silent"}),
        (broken("arm-2", "arm-1", state="open"), {("arm-2", "arm-1"): "TCP open"}),
        (
            broken("amd-1", DNS, state="error", error="Name does not resolve"),
            {
                ("amd-1", "arm-1"): "DNS or the API's service: error (Name does not resolve)",
                ("amd-1", "arm-2"): "DNS or the API's service: error (Name does not resolve)",
            },
        ),
        (broken("amd-1", DNS, state="silent"), dict.fromkeys(
            [("amd-1", "arm-1"), ("amd-1", "arm-2")], "DNS or the API's service: silent")),
    ],
)  # fmt: skip
def test_each_broken_answer_is_told_by_its_path(
    tmp_path: Path, answers: Answers, bad: Mapping[tuple[str, str], str]
) -> None:
    ctx = context(tmp_path, Cluster(answers))
    paths = podtraffic.measure(ctx, list(ctx.kube.nodes()))
    assert {path: state for path, state in paths.items() if state != "ok"} == bad


@pytest.mark.parametrize(
    ("said", "stderr", "why"),
    [
        (b"", "", "it said nothing"),
        (b"", "Killed", "Killed"),
        (b"Traceback (most recent call last)", "", "Traceback (most recent call last)"),
        (b"[1, 2]", "", "[1, 2]"),
        (b'[{"target": "10.42.1.5:7000/tcp"}]', "", "10.42.1.5:7000/tcp"),
        (b"\xff\xfe", "", "\ufffd"),
    ],
)
def test_an_answer_that_is_none_fails_the_check(tmp_path: Path, said: bytes, stderr: str, why: str) -> None:
    ctx = context(tmp_path)
    ctx.kube.exec = lambda *_, **__: ExecResult(137, said, stderr)
    found = check(ctx)
    assert not found.ok
    assert found.evidence.startswith("could not be measured: the probe's answer can't be read: ")
    assert why in found.evidence
    assert "lack of memory" in found.next_move


def test_a_path_that_nobody_answered_for_is_not_proved(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    whole = ctx.kube.inside
    ctx.kube.inside = lambda pod, argv, stdin: json.dumps(
        [
            row
            for row in json.loads(whole(pod, argv, stdin))
            if not (pod == "probe-arm-1" and IPS["amd-1"] in row["target"])
        ]
    )
    paths = podtraffic.measure(ctx, list(ctx.kube.nodes()))
    assert {path: state for path, state in paths.items() if state != "ok"} == {("arm-1", "amd-1"): "TCP not asked"}


def test_the_first_thing_in_the_way_is_told_not_the_last(tmp_path: Path) -> None:
    def answers(frm: str, address: str, kind: str, size: int) -> tuple[str, str]:
        return ("silent", "") if frm == "arm-1" and address == IPS["arm-2"] else all_well(frm, address, kind, size)

    ctx = context(tmp_path, Cluster(answers))
    paths = podtraffic.measure(ctx, list(ctx.kube.nodes()))
    assert paths["arm-1", "arm-2"] == "TCP silent"
    assert paths["arm-1", "amd-1"] == "ok"


# -- the check ---------------------------------------------------------------------------------------------------------
def test_good_paths_are_kept_as_evidence_and_not_asked_again(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    first = check(ctx)
    assert first == Check(
        "pod-traffic", True, "6 paths between pods carry TCP, large UDP packets and DNS", first.next_move
    )
    asked = ctx.kube.probed
    kept = ctx.evidence.load("pod-traffic")
    assert kept is not None
    ctx.clock.time = _time_of(kept.made) + 3600
    again = check(ctx)
    assert again.ok
    assert f", measured {kept.made[:16]}" in again.evidence
    assert ctx.kube.probed == asked


def _time_of(iso: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(iso).timestamp()


@pytest.mark.parametrize("why", ["a step of 030", "another version", "another node", "a day later", "it was broken"])
def test_what_makes_it_ask_again(tmp_path: Path, why: str) -> None:
    cluster = Cluster(broken("arm-1", "arm-2") if why == "it was broken" else all_well)
    ctx = context(tmp_path, cluster)
    check(ctx)
    asked, kept = cluster.probed, ctx.evidence.load("pod-traffic")
    assert kept is not None
    ctx.clock.time = _time_of(kept.made) + (25 * 3600 if why == "a day later" else 60)
    if why == "a step of 030":
        ctx.ledger.add("bootstrap", "open-firewall:arm-1", "done", effect="change")
    if why == "another version":
        cluster.node_rows = (node("arm-1", version="v1.34.3+k3s1"), *cluster.node_rows[1:])
    if why == "another node":
        cluster.node_rows = cluster.node_rows[:2]
    cluster.answers = all_well
    found = check(ctx)
    assert found.ok
    assert "measured" not in found.evidence
    assert cluster.probed > asked


@pytest.mark.parametrize(("event", "effect"), [("done", "none"), ("failed", "change"), ("started", "change")])
def test_what_changed_nothing_does_not_make_it_ask_again(tmp_path: Path, event: Any, effect: Any) -> None:
    ctx = context(tmp_path)
    check(ctx)
    asked, kept = ctx.kube.probed, ctx.evidence.load("pod-traffic")
    assert kept is not None
    ctx.clock.time = _time_of(kept.made) + 60
    ctx.ledger.add("bootstrap", "probe", event, effect=effect)
    check(ctx)
    assert ctx.kube.probed == asked


def test_broken_paths_fail_the_check_with_a_next_move(tmp_path: Path) -> None:
    found = check(context(tmp_path, Cluster(broken("arm-1", "amd-1", "udp", "silent"))))
    assert not found.ok
    assert found.evidence == "arm-1 → amd-1: UDP of 1372 bytes silent"
    assert "the rules and the MTU" in found.next_move


def test_off_says_that_nothing_is_proved(tmp_path: Path) -> None:
    ctx = context(tmp_path, changes={"bootstrap.prove_traffic": False})
    found = check(ctx)
    assert (found.ok, found.evidence) == (True, "not proved: bootstrap.prove_traffic is off")
    assert ctx.kube.probed == 0


@pytest.mark.parametrize("nodes", [("arm-1",), ()])
def test_one_node_has_nobody_to_talk_to(tmp_path: Path, nodes: tuple[str, ...]) -> None:
    assert podtraffic.traffic_check(context(tmp_path, Cluster(nodes=nodes))) == ()


def test_nodes_that_are_not_ready_or_not_ours_are_not_asked(tmp_path: Path) -> None:
    cluster = Cluster()
    cluster.node_rows = (node("arm-1"), node("arm-2", ready=False), node("stranger"))
    assert podtraffic.traffic_check(context(tmp_path, cluster)) == ()


@pytest.mark.parametrize(
    ("error", "move"),
    [
        (Unreachable("the API broke off", why="reset"), "set bootstrap.prove_traffic to false"),
        (Unreachable("the API broke off", why="reset", next_move="look at k3s"), "look at k3s"),
    ],
)
def test_what_could_not_be_measured_is_not_proved_and_leaves_nothing(
    tmp_path: Path, error: HybridlabError, move: str
) -> None:
    ctx = context(tmp_path)

    def fails(*_: Any, **__: Any) -> ExecResult:
        raise error

    ctx.kube.exec = fails
    found = check(ctx)
    assert not found.ok
    assert found.evidence == "could not be measured: the API broke off: reset"
    assert move in found.next_move
    assert ctx.evidence.load("pod-traffic") is None
    assert ("Namespace", "", podtraffic.NAMESPACE) not in ctx.kube.objects


def test_a_pod_that_never_runs_is_told_with_its_reason(tmp_path: Path) -> None:
    cluster = Cluster()
    ctx = context(tmp_path, cluster)
    apply = cluster.apply

    def waiting(obj: Mapping[str, Any], **options: Any) -> dict[str, Any]:
        made = apply(obj, **options)
        if made["kind"] == "Pod" and made["spec"]["nodeName"] == "amd-1":
            state = {"waiting": {"reason": "ErrImagePull", "message": "no such host"}}
            made["status"] = {"phase": "Pending", "containerStatuses": [{"state": state}]}
        return made

    cluster.apply = waiting  # type: ignore[method-assign]
    found = check(ctx)
    assert not found.ok
    assert "ErrImagePull no such host" in found.evidence
    assert "describe pod probe-amd-1" in found.next_move
    assert ("Namespace", "", podtraffic.NAMESPACE) not in cluster.objects


@pytest.mark.parametrize(("replicas", "comes"), [(0, True), (0, False)])
def test_dns_is_waited_for(tmp_path: Path, replicas: int, comes: bool) -> None:
    ctx = context(tmp_path)
    meta = {"name": "coredns", "namespace": "kube-system"}
    dns = ctx.kube.put({"kind": "Deployment", "metadata": meta, "status": {"availableReplicas": replicas}})
    if comes:
        ctx.clock.at[ctx.clock.time + 20] = lambda: dns["status"].update(availableReplicas=1)
        assert check(ctx).ok
        assert sum(ctx.clock.slept) >= 20
    else:
        found = check(ctx)
        assert not found.ok
        assert "CoreDNS to be available" in found.evidence
        assert "describe deployment coredns" in found.next_move


def test_a_namespace_of_someone_else_is_left_alone(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    theirs = {"kind": "Namespace", "metadata": {"name": podtraffic.NAMESPACE}, "status": {"phase": "Active"}}
    ctx.kube.put(theirs)
    found = check(ctx)
    assert not found.ok
    assert "is not ours" in found.evidence
    assert ("Namespace", "", podtraffic.NAMESPACE) in ctx.kube.objects
