"""910: one worker out: cordon, drain, remove, in that order; never the server."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeContext, FakeHosts, FakeKube, FakeOracle, make_params, node, vm

from hybridlab.errors import DeadlineExceeded
from hybridlab.plan import Plan, Step
from hybridlab.stages import maintain
from hybridlab.stages.drains import evictable
from hybridlab.stages.maintain import Seen, chosen

NODES = (node("arm-1"), node("arm-2"), node("amd-1", "amd64"))
SEEN = Seen(NODES, {"amd-1": 2, "arm-2": 5}, ("arm-1", "arm-2", "amd-1"))
CORDONED = replace(SEEN, nodes=(*NODES[:2], replace(NODES[2], schedulable=False)))
OUT = replace(SEEN, nodes=NODES[:2])


def plan(seen: Seen = SEEN, **changes: Any) -> Plan:
    return maintain.plan(make_params({f"maintain.{k}": v for k, v in changes.items()}), seen, {})


def test_the_last_agent_unless_named() -> None:
    assert chosen(make_params()) == "amd-1"
    assert chosen(make_params({"maintain.node": "arm-2"})) == "arm-2"
    assert chosen(make_params(nodes=make_params().plain()["nodes"][:1])) is None


@pytest.mark.parametrize(
    ("action", "seen", "steps"),
    [
        ("replace", SEEN, ["cordon", "drain", "terminate", "remove-node"]),
        ("remove", SEEN, ["cordon", "drain", "terminate", "remove-node"]),
        ("replace", CORDONED, ["drain", "terminate", "remove-node"]),
        ("cordon", SEEN, ["cordon"]),
        ("cordon", CORDONED, []),
        ("uncordon", CORDONED, ["uncordon"]),
        ("uncordon", SEEN, []),
        ("replace", OUT, []),
        ("remove", OUT, ["terminate"]),
        ("replace", replace(SEEN, machines=()), ["cordon", "drain", "remove-node"]),
        ("remove", replace(OUT, machines=("arm-1",)), []),
    ],
)
def test_steps(action: str, seen: Seen, steps: list[str]) -> None:
    made = plan(seen, action=action)
    assert [s.id for s in made.steps] == steps
    assert all(s.args == {"node": "amd-1"} for s in made.steps)
    assert all(s.action in maintain.ACTIONS for s in made.steps)
    assert {s.id: s.undo for s in made.steps if s.undo} == ({"cordon": "uncordon"} if "cordon" in steps else {})
    effects = {"cordon": "change", "uncordon": "change", "drain": "change"}
    assert all(s.effect == effects.get(s.id, "delete") for s in made.steps)


def test_drain_tells_how_many_pods() -> None:
    assert {s.id: s.why for s in plan().steps}["drain"] == "2 pods have to move"
    assert {s.id: s.why for s in plan(node="arm-2").steps}["drain"] == "5 pods have to move"


@pytest.mark.parametrize(("action", "refused"), [("replace", True), ("remove", True), ("cordon", False)])
def test_the_server_stays(action: str, refused: bool) -> None:
    made = plan(node="arm-1", action=action)
    assert [f.level for f in made.findings] == (["refusal"] if refused else [])
    assert [s.id for s in made.steps] == ([] if refused else ["cordon"])


def test_no_worker_or_no_such_node() -> None:
    alone = make_params(nodes=make_params().plain()["nodes"][:1])
    assert [f.level for f in maintain.plan(alone, SEEN, {}).findings] == ["refusal"]
    made = plan(node="arm-9")
    assert [(f.level, f.text) for f in made.findings] == [("refusal", "there is no node arm-9")]
    assert made.steps == ()


def test_a_node_that_is_out_already_is_told() -> None:
    assert [f.level for f in plan(OUT).findings] == ["note"]
    assert plan(SEEN).findings == ()


def pod(name: str, *owners: str, phase: str = "Running", on: str = "amd-1") -> dict[str, Any]:
    meta = {"name": name, "namespace": "web", "ownerReferences": [{"kind": o} for o in owners]}
    return {"kind": "Pod", "metadata": meta, "spec": {"nodeName": on}, "status": {"phase": phase}}


@pytest.mark.parametrize(
    ("obj", "expected"),
    [
        (pod("a", "ReplicaSet"), True),
        (pod("a"), True),
        (pod("a", phase="Pending"), True),
        (pod("a", "DaemonSet"), False),
        (pod("a", "Node"), False),
        (pod("a", "Job", phase="Succeeded"), False),
        (pod("a", phase="Failed"), False),
        (pod("a", on=""), False),
    ],
)
def test_evictable(obj: dict[str, Any], expected: bool) -> None:
    assert evictable(obj) is expected


def step(action: str, name: str = "amd-1") -> Step:
    return Step(action, action, "", "", "change", {"node": name})


def test_cordon_and_uncordon(tmp_path: Path) -> None:
    ctx = FakeContext(tmp_path, kube=FakeKube())
    maintain.ACTIONS["cordon"](ctx, step("cordon"))
    assert ctx.kube.calls == [("patch", "Node", "amd-1", {"spec": {"unschedulable": True}})]
    maintain.ACTIONS["uncordon"](ctx, step("uncordon"))
    assert ctx.kube.calls[1] == ("patch", "Node", "amd-1", {"spec": {"unschedulable": None}})


def test_drain_asks_again_where_a_budget_said_not_now(tmp_path: Path) -> None:
    kube = FakeKube(pod("a", "ReplicaSet"), pod("ds", "DaemonSet"), pod("b", on="arm-2"))
    kube.evictions_refused = 2
    ctx = FakeContext(tmp_path, kube=kube)
    assert maintain.ACTIONS["drain"](ctx, step("drain")) == {"pods": 1}
    assert kube.calls == [("evict", "web", "a")] * 3
    assert {name for kind, _, name in kube.objects if kind == "Pod"} == {"ds", "b"}


def test_a_drain_that_a_budget_holds_meets_the_deadline(tmp_path: Path) -> None:
    kube = FakeKube(pod("a"))
    kube.evictions_refused = 10**6
    with pytest.raises(DeadlineExceeded, match="1 pods left: a") as caught:
        maintain.ACTIONS["drain"](FakeContext(tmp_path, kube=kube), step("drain"))
    assert "PodDisruptionBudget" in caught.value.next_move


def test_a_pod_that_is_going_is_waited_for_not_evicted_again(tmp_path: Path) -> None:
    going = pod("a")
    going["metadata"]["deletionTimestamp"] = "now"
    kube = FakeKube(going)
    ctx = FakeContext(tmp_path, kube=kube)
    ctx.clock.at[ctx.clock.now() + 2] = lambda: kube.objects.clear()
    maintain.ACTIONS["drain"](ctx, step("drain"))
    assert kube.calls == []


def test_remove_node_takes_its_password_secret_too(tmp_path: Path) -> None:
    secret = {"kind": "Secret", "metadata": {"name": "amd-1.node-password.k3s", "namespace": "kube-system"}}
    kube = FakeKube({"kind": "Node", "metadata": {"name": "amd-1"}, "spec": {}}, secret)
    ctx = FakeContext(tmp_path, kube=kube)
    assert maintain.ACTIONS["remove-node"](ctx, step("remove-node")) == {"password_secret": True}
    assert kube.objects == {}
    assert ctx.hosts.ran == []


def test_remove_node_on_ones_own_host_uninstalls(tmp_path: Path) -> None:
    changes = {f"nodes.{n}.address": f"10.1.1.{i}" for i, n in enumerate(("arm-1", "arm-2", "amd-1"), 1)}
    ctx = FakeContext(tmp_path, make_params({"site": "byo", **changes}), kube=FakeKube(), hosts=FakeHosts())
    maintain.ACTIONS["remove-node"](ctx, step("remove-node"))
    assert ("amd-1", ("/usr/local/bin/k3s-agent-uninstall.sh",)) in ctx.hosts.ran
    assert {name for name, _ in ctx.hosts.ran} == {"amd-1"}


def test_terminate_forgets_the_hosts_key(tmp_path: Path) -> None:
    oracle = FakeOracle()
    oracle.vms = [vm("amd-1", "amd64"), vm("arm-2"), vm("guest", tags={"hybridlab": "x", "hybridlab-node": "amd-1"})]
    ctx = FakeContext(tmp_path, oracle=oracle)
    assert maintain.ACTIONS["terminate"](ctx, step("terminate")) == {"id": vm("amd-1").id}
    assert oracle.calls == [("terminate", vm("amd-1").id)]
    assert ctx.hosts.forgotten == [vm("amd-1").public_ip]
    assert maintain.ACTIONS["terminate"](ctx, step("terminate")) == {"changed": False}


def test_look(tmp_path: Path) -> None:
    oracle = FakeOracle()
    oracle.vms = [vm("amd-1", "amd64"), vm("guest", tags={})]
    pods = (pod("a"), pod("b"), pod("c", on="arm-2"), pod("d", "DaemonSet"))
    ctx = FakeContext(tmp_path, oracle=oracle, kube=FakeKube(*pods, nodes=NODES))
    assert maintain.look(ctx) == Seen(NODES, {"amd-1": 2, "arm-2": 1}, ("amd-1",))
    assert maintain.look(FakeContext(tmp_path)) == Seen()


@pytest.mark.parametrize(
    ("action", "nodes", "ok"),
    [
        ("replace", NODES, False),
        ("replace", NODES[:2], True),
        ("remove", NODES, False),
        ("cordon", NODES, False),
        ("cordon", CORDONED.nodes, True),
        ("uncordon", NODES, True),
        ("uncordon", CORDONED.nodes, False),
    ],
)
def test_verify(tmp_path: Path, action: str, nodes: Any, ok: bool) -> None:
    ctx = FakeContext(tmp_path, make_params({"maintain.action": action}), kube=FakeKube(nodes=nodes))
    assert [c.ok for c in maintain.verify(ctx)] == [ok]
