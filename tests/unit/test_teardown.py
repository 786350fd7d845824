"""900: what is tagged ours goes, from the inside out; guests, and what they use, are left alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeContext, FakeHosts, FakeOracle, make_params, network, resource, vm

from hybridlab.errors import Conflict, DeadlineExceeded, NotFound
from hybridlab.plan import Plan, Step
from hybridlab.stages import hostundo, teardown
from hybridlab.stages.base import apply
from hybridlab.stages.teardown import Seen

VMS = (vm("arm-1"), vm("arm-2"))
GUEST = vm("website", tags={})


def plan(seen: Seen) -> Plan:
    return teardown.plan(make_params(), seen, {})


def ids(seen: Seen) -> list[str]:
    return [s.id for s in plan(seen).steps]


def test_everything_in_order() -> None:
    orphan = resource("boot-volume", name="orphan", detail={"attached": False})
    shuffled = tuple(reversed((*network(), orphan)))
    made = plan(Seen(VMS, shuffled, kubeconfig=True))
    assert [s.id for s in made.steps] == [
        "terminate:arm-1",
        "terminate:arm-2",
        "delete:boot-volume:orphan",
        "delete:subnet:homelab",
        "delete:nsg:homelab",
        "delete:internet-gateway:homelab",
        "delete:vcn:homelab",
        "forget-kubeconfig",
    ]
    assert {s.effect for s in made.steps} == {"delete"}
    assert [s.batch for s in made.steps[:3]] == ["vms", "vms", ""]
    assert all(s.action in teardown.ACTIONS for s in made.steps)
    assert made.steps[4].args == {"kind": "nsg", "name": "homelab"}
    assert [f.subject for f in made.findings] == ["backups"]


def test_nothing_there_nothing_to_do() -> None:
    made = plan(Seen())
    assert (made.steps, made.findings) == ((), ())


def test_the_boot_volume_of_a_vm_goes_with_it() -> None:
    volume = resource("boot-volume", id=VMS[0].boot_volume_id)
    assert ids(Seen(VMS[:1], (volume,))) == ["terminate:arm-1"]
    assert ids(Seen((), (volume,))) == ["delete:boot-volume:homelab"]


@pytest.mark.parametrize("tags", [{}, {"hybridlab": "another"}, {"owner": "homelab"}], ids=str)
def test_what_is_not_ours_is_left_alone(tags: dict[str, str]) -> None:
    theirs = tuple(replace(r, tags=tags) for r in network())
    assert ids(Seen((vm("x", tags=tags, subnet_id="elsewhere"),), theirs)) == []


@pytest.mark.parametrize("state", ["TERMINATED", "TERMINATING"])
def test_what_goes_already_needs_no_step(state: str) -> None:
    going = tuple(replace(r, state=state) for r in network())
    assert ids(Seen((vm("arm-1", state=state),), going)) == []


@pytest.mark.parametrize("tags", [{}, {"hybridlab": "another"}])
def test_a_guest_keeps_the_network_and_is_told(tags: dict[str, str]) -> None:
    made = plan(Seen((*VMS, replace(GUEST, tags=tags)), network()))
    assert [s.id for s in made.steps] == ["terminate:arm-1", "terminate:arm-2", "delete:nsg:homelab"]
    assert (made.findings[0].level, made.findings[0].subject) == ("warning", "website")


def test_a_guest_that_is_gone_keeps_nothing() -> None:
    assert "delete:vcn:homelab" in ids(Seen((replace(GUEST, state="TERMINATED"),), network()))


def test_a_vm_in_a_subnet_of_its_own_is_no_guest() -> None:
    theirs = resource("subnet", id="theirs", tags={})
    seen = Seen((replace(GUEST, subnet_id="theirs"),), (*network(), theirs))
    assert "delete:vcn:homelab" in ids(seen)


def test_a_vm_elsewhere_is_only_told() -> None:
    made = plan(Seen((*VMS, replace(GUEST, subnet_id="elsewhere")), network()))
    assert "delete:vcn:homelab" in [s.id for s in made.steps]
    assert ("note", "website") in [(f.level, f.subject) for f in made.findings]


def test_ones_own_hosts_are_cleaned() -> None:
    made = plan(Seen(marked_hosts=("pi-1", "nuc-1")))
    assert [(s.id, s.batch, s.args) for s in made.steps] == [
        ("clean:pi-1", "hosts", {"node": "pi-1"}),
        ("clean:nuc-1", "hosts", {"node": "nuc-1"}),
    ]


# -- actions -----------------------------------------------------------------------------------------------------------
@pytest.fixture
def ctx(tmp_path: Path) -> FakeContext:
    oracle = FakeOracle()
    oracle.vms, oracle.things = [*VMS, vm("arm-1", tags={}, id="not-ours", subnet_id="elsewhere")], list(network())
    made = FakeContext(tmp_path, oracle=oracle)
    made.state.mkdir(parents=True)
    (made.state / "kubeconfig").write_text("x")
    for name in ("k3s_token", "k3s_node_token", "kube_client_key", "ssh_key"):
        made.secrets.put(name, f"value of {name}")
    return made


def test_all_gone_and_nothing_else_touched(ctx: FakeContext) -> None:
    apply(ctx, plan(teardown.look(ctx)), teardown.ACTIONS)
    assert [c.ok for c in teardown.verify(ctx)] == [True, True]
    assert [v.id for v in ctx.oracle.vms] == ["not-ours"]
    assert {t.kind for t in ctx.oracle.things} == {"route-table", "security-list"}
    deleted = [c[1] for c in ctx.oracle.calls if c[0] == "delete"]
    assert deleted == ["subnet", "nsg", "internet-gateway", "vcn"]
    assert sorted(ctx.hosts.forgotten) == sorted(str(v.public_ip) for v in VMS)
    assert not (ctx.state / "kubeconfig").exists()
    assert ctx.secrets.values() == ("value of ssh_key",)
    assert ctx.refreshed == 1
    assert plan(teardown.look(ctx)).steps == ()


def test_a_conflict_is_waited_out(ctx: FakeContext) -> None:
    ctx.oracle.refusals["subnet"] = [Conflict("no", status=409, why="a VNIC is attached")] * 3
    step = Step("d", "delete", "", "", "delete", {"kind": "subnet", "name": "homelab"})
    teardown.ACTIONS["delete"](ctx, step)
    assert len(ctx.oracle.calls) == 4
    ctx.oracle.things = list(network())
    ctx.oracle.refusals["subnet"] = [Conflict("no", status=409, why="a VNIC is attached")] * 10_000
    with pytest.raises(DeadlineExceeded, match="a VNIC is attached"):
        teardown.ACTIONS["delete"](ctx, step)


def test_a_resource_that_is_gone_is_fine(ctx: FakeContext) -> None:
    ctx.oracle.refusals["nsg"] = [NotFound("gone", status=404)]
    step = Step("d", "delete", "", "", "delete", {"kind": "nsg", "name": "homelab"})
    teardown.ACTIONS["delete"](ctx, step)
    ctx.oracle.things = []
    ctx.oracle.calls.clear()
    teardown.ACTIONS["delete"](ctx, step)
    assert ctx.oracle.calls == []


def test_a_resource_of_the_same_name_that_is_not_ours_stays(ctx: FakeContext) -> None:
    ctx.oracle.things = [resource("vcn", tags={})]
    teardown.ACTIONS["delete"](ctx, Step("d", "delete", "", "", "delete", {"kind": "vcn", "name": "homelab"}))
    assert ctx.oracle.calls == []


def test_verify_tells_what_is_left(ctx: FakeContext) -> None:
    checks = {c.name: (c.ok, c.evidence) for c in teardown.verify(ctx)}
    assert checks["VMs"] == (False, "arm-1, arm-2")
    assert checks["network and volumes"][0] is False
    assert "vcn homelab" in checks["network and volumes"][1]


def test_verify_with_a_guest(ctx: FakeContext) -> None:
    ctx.oracle.vms = [GUEST]
    ctx.oracle.things = [t for t in network() if t.kind != "nsg"]
    checks = {c.name: c.ok for c in teardown.verify(ctx)}
    assert checks == {"VMs": True, "network and volumes": True, "not ours": True}
    ctx.oracle.things = list(network())  # the group could go and did not
    assert not {c.name: c.ok for c in teardown.verify(ctx)}["network and volumes"]


def own_hosts(tmp_path: Path, answer: Any) -> FakeContext:
    changes = {f"nodes.{n}.address": f"10.1.1.{i}" for i, n in enumerate(("arm-1", "arm-2", "amd-1"), 1)}
    return FakeContext(tmp_path, make_params({"site": "byo", **changes}), hosts=FakeHosts(answer))


def test_only_marked_hosts_are_ones_own(tmp_path: Path) -> None:
    marks = {"arm-1": "homelab\n", "arm-2": "another\n", "amd-1": ""}
    ctx = own_hosts(tmp_path, lambda name, argv: (0, marks[name]) if argv[0] == "cat" else (0, ""))
    assert teardown.look(ctx).marked_hosts == ("arm-1",)


@pytest.mark.parametrize(("name", "script"), [("arm-1", "k3s-uninstall.sh"), ("arm-2", "k3s-agent-uninstall.sh")])
def test_cleaning_a_host(tmp_path: Path, name: str, script: str) -> None:
    ctx = own_hosts(tmp_path, lambda n, argv: (1, "") if argv[0] == "cat" else (0, ""))
    teardown.ACTIONS["clean"](ctx, Step("c", "clean", "", "", "delete", {"node": name}))
    ran = [argv for _, argv in ctx.hosts.ran]
    assert (f"/usr/local/bin/{script}",) in ran
    assert ran[-1] == ("rm", "-rf", "/etc/hybridlab"), "the marker goes last"
    assert ("rm", "-f", "/swapfile-hybridlab") in ran


def test_only_our_line_of_fstab_goes(tmp_path: Path) -> None:
    theirs = "UUID=1 / ext4 defaults 0 1\n# /swapfile-hybridlab was here\n/swapfile none swap sw 0 0\n"
    assert hostundo.with_swap(theirs) == theirs + "/swapfile-hybridlab none swap sw 0 0\n"
    assert hostundo.with_swap(hostundo.with_swap(theirs)) == hostundo.with_swap(theirs)
    assert hostundo.without_swap(hostundo.with_swap(theirs)) == theirs
    assert hostundo.with_swap("a") == "a\n/swapfile-hybridlab none swap sw 0 0\n"
    assert hostundo.with_swap("") == "/swapfile-hybridlab none swap sw 0 0\n"
