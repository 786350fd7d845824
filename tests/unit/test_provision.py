"""020: what is missing in Oracle becomes a step, exactly; the hunt for capacity never doubles a VM."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import A1, ICMP_MTU, MICRO, OPERATOR, FakeContext, FakeHosts, FakeOracle, make_params, network, resource, vm

from hybridlab.errors import (
    AuthFailed,
    DeadlineExceeded,
    LimitReached,
    NotFound,
    OutOfCapacity,
    Refused,
    TooManyRequests,
    Unreachable,
)
from hybridlab.models import CloudResource, LaunchRequest, SecurityRule
from hybridlab.plan import Plan, Step, is_unknown
from hybridlab.stages import provision
from hybridlab.stages.base import apply
from hybridlab.stages.provision import Seen, mismatch, rule_changes, wanted_rules

LAYOUT: dict[str, Any] = {"layout": {"refused": []}}
CIDR = f"{OPERATOR}/32"
VMS = (vm("arm-1", ocpus=2.0, memory_gb=12.0), vm("arm-2"), vm("amd-1", "amd64"))
NETWORK_STEPS = [
    "create-vcn",
    "create-gateway",
    "set-route",
    "close-default-list",
    "create-nsg",
    "set-rules",
    "create-subnet",
]


def complete(**changes: Any) -> Seen:
    made = Seen(VMS, network(), wanted_rules(make_params(), CIDR), CIDR, True)
    return replace(made, **changes)


def plan(seen: Seen, **changes: Any) -> Plan:
    return provision.plan(make_params(changes), seen, LAYOUT)


def ids(seen: Seen, **changes: Any) -> list[str]:
    return [s.id for s in plan(seen, **changes).steps]


# -- the plan ----------------------------------------------------------------------------------------------------------
def test_from_nothing_everything_in_order() -> None:
    made = plan(Seen(operator_cidr=CIDR))
    assert [s.id for s in made.steps] == [
        *NETWORK_STEPS,
        "make-ssh-key",
        "launch:arm-1",
        "launch:arm-2",
        "launch:amd-1",
    ]
    assert {s.id: s.effect for s in made.steps if s.effect != "create"} == dict.fromkeys(
        ("set-route", "close-default-list", "set-rules"), "change"
    )
    assert {s.id: s.undo for s in made.steps if s.undo} == {
        "create-vcn": "delete-vcn",
        "create-gateway": "delete-gateway",
        "create-nsg": "delete-nsg",
        "create-subnet": "delete-subnet",
        **{f"launch:{n}": "terminate" for n in ("arm-1", "arm-2", "amd-1")},
    }
    launch = made.steps[-1]
    assert dict(launch.args) == {"node": "amd-1", "shape": MICRO, "ocpus": 1, "memory_gb": 1, "boot_volume_gb": 50}
    assert {s.batch for s in made.steps if s.action == "launch"} == {"vms"}
    assert made.steps[0].args == {"cidr": "10.0.0.0/16"}
    assert made.steps[6].args == {"cidr": "10.0.0.0/24"}
    assert all(s.action in provision.ACTIONS for s in made.steps)
    assert all(is_unknown(n["private_ip"]) for n in made.expected["nodes"])


def test_what_is_there_needs_nothing() -> None:
    made = plan(complete())
    assert made.steps == ()
    assert made.findings == ()
    assert [n["private_ip"] for n in made.expected["nodes"]] == [v.private_ip for v in VMS]
    assert made.expected["nodes"][0] == {
        "name": "arm-1",
        "role": "server",
        "arch": "arm64",
        "memory_gb": 12,
        "private_ip": VMS[0].private_ip,
    }


@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        ("vcn", ["create-vcn", "set-route", "close-default-list"]),
        ("internet-gateway", ["create-gateway", "set-route"]),
        ("route-table", ["set-route"]),
        ("security-list", ["close-default-list"]),
        ("nsg", ["create-nsg"]),
        ("subnet", ["create-subnet"]),
    ],
)
def test_one_resource_missing(kind: str, steps: list[str]) -> None:
    gone = tuple(r for r in network() if r.kind != kind)
    assert ids(complete(resources=gone)) == steps
    # not ours, or going away, is as good as missing
    if kind in ("vcn", "internet-gateway", "nsg", "subnet"):
        others: tuple[dict[str, Any], ...] = (
            {"tags": {"hybridlab": "other"}},
            {"tags": {}},
            {"state": "TERMINATING"},
            {"state": "TERMINATED"},
        )
        for other in others:
            changed = tuple(replace(r, **other) if r.kind == kind else r for r in network())
            assert ids(complete(resources=changed)) == steps


def with_detail(resource_id: str, **detail: Any) -> tuple[CloudResource, ...]:
    return tuple(replace(r, detail=detail) if r.id == resource_id else r for r in network())


@pytest.mark.parametrize(
    ("rules", "needed"),
    [
        ([], True),
        ([["0.0.0.0/0", "another-gateway"]], True),
        ([["10.9.0.0/16", "internet-gateway-id"]], True),
        ([["10.9.0.0/16", "drg"], ("0.0.0.0/0", "internet-gateway-id")], False),
    ],
)
def test_the_route(rules: list[Any], needed: bool) -> None:
    assert ids(complete(resources=with_detail("table-id", rules=rules))) == (["set-route"] if needed else [])


@pytest.mark.parametrize(
    ("ingress", "needed"),
    [
        ((), False),
        ((ICMP_MTU,), False),
        ((SecurityRule("ingress", "tcp", "0.0.0.0/0", 22, 22), ICMP_MTU), True),
        ((SecurityRule("ingress", "all", "10.0.0.0/16"),), True),
    ],
)
def test_the_default_security_list(ingress: tuple[SecurityRule, ...], needed: bool) -> None:
    found = ids(complete(resources=with_detail("list-id", ingress=ingress)))
    assert found == (["close-default-list"] if needed else [])


# -- rules -------------------------------------------------------------------------------------------------------------
def test_the_wanted_rules_exactly() -> None:
    rules = [(r.direction, r.protocol, r.peer, r.port_min, r.port_max) for r in wanted_rules(make_params(), CIDR)]
    assert rules == [
        ("ingress", "all", "group", None, None),
        ("ingress", "tcp", CIDR, 22, 22),
        ("ingress", "tcp", CIDR, 6443, 6443),
        ("ingress", "icmp", "0.0.0.0/0", 3, 4),
        ("egress", "all", "0.0.0.0/0", None, None),
    ]
    extra = wanted_rules(make_params({"expose.method": "traefik"}), CIDR)[5:]
    assert [(r.direction, r.protocol, r.peer, r.port_min, r.port_max) for r in extra] == [
        ("ingress", "tcp", "0.0.0.0/0", 80, 80),
        ("ingress", "tcp", "0.0.0.0/0", 443, 443),
    ]


WANTED = wanted_rules(make_params(), CIDR)
SSH = WANTED[1]


@pytest.mark.parametrize(
    "drift",
    [
        {"direction": "egress"},
        {"protocol": "udp"},
        {"peer": "0.0.0.0/0"},
        {"port_min": 21},
        {"port_max": 23},
        {"port_min": None, "port_max": None},
    ],
    ids=str,
)
def test_a_rule_that_drifted_is_removed_and_the_wanted_one_added(drift: dict[str, Any]) -> None:
    changed = replace(SSH, id="r1", **drift)
    live = (WANTED[0], changed, *WANTED[2:])
    assert rule_changes(WANTED, live) == ([SSH], [changed])
    made = plan(complete(rules=live))
    assert [s.id for s in made.steps] == ["set-rules"]
    step = made.steps[0]
    assert step.why == "rules: 1 missing, 1 not wanted"
    assert [r["peer"] for r in step.args["add"]] == [CIDR]
    assert step.args["add"][0] == {
        "direction": "ingress",
        "protocol": "tcp",
        "peer": CIDR,
        "port_min": 22,
        "port_max": 22,
        "description": "SSH from the operator",
    }


def test_one_rule_gone_or_too_many() -> None:
    made = plan(complete(rules=WANTED[1:]))
    assert (made.steps[0].why, made.steps[0].args["remove"]) == ("rules: 1 missing", [])
    assert made.steps[0].args["add"] == [
        {"direction": "ingress", "protocol": "all", "peer": "group", "description": "all traffic among the nodes"}
    ]
    made = plan(complete(rules=(*WANTED, SecurityRule("ingress", "tcp", "0.0.0.0/0", 3306, 3306))))
    assert (made.steps[0].why, made.steps[0].args["add"]) == ("rules: 1 not wanted", [])


def test_order_descriptions_and_ids_of_rules_do_not_matter() -> None:
    live = tuple(replace(r, description="other", id=f"id-{i}") for i, r in enumerate(reversed(WANTED)))
    assert rule_changes(WANTED, live) == ([], [])


def test_an_operator_who_moved_changes_two_rules() -> None:
    made = plan(complete(operator_cidr="192.0.2.1/32"))
    assert made.steps[0].why == "rules: 2 missing, 2 not wanted"
    assert {r["peer"] for r in made.steps[0].args["add"]} == {"192.0.2.1/32"}


def test_the_operators_address(tmp_path: Path) -> None:
    ctx = FakeContext(tmp_path)
    assert provision.operator_cidr(ctx) == CIDR
    ctx.params = make_params({"provision.operator_cidr": "192.0.2.0/24"})
    assert provision.operator_cidr(ctx) == "192.0.2.0/24"


# -- VMs ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("state", ["STOPPED", "STOPPING"])
def test_a_stopped_vm_is_started(state: str) -> None:
    made = plan(complete(instances=(VMS[0], replace(VMS[1], state=state), VMS[2])))
    assert [(s.id, s.action, s.effect, s.args) for s in made.steps] == [
        ("start:arm-2", "start", "change", {"node": "arm-2"})
    ]
    assert made.steps[0].why == f"it is {state.lower()}"


@pytest.mark.parametrize("state", ["TERMINATING", "TERMINATED"])
def test_a_vm_that_goes_away_is_launched_anew(state: str) -> None:
    made = plan(complete(instances=(VMS[0], replace(VMS[1], state=state), VMS[2])))
    assert [s.id for s in made.steps] == ["launch:arm-2"]
    assert is_unknown(made.expected["nodes"][1]["private_ip"])


@pytest.mark.parametrize("state", ["PROVISIONING", "STARTING", "RUNNING"])
def test_a_vm_that_comes_is_left(state: str) -> None:
    assert ids(complete(instances=(VMS[0], replace(VMS[1], state=state), VMS[2]))) == []


@pytest.mark.parametrize(
    ("tags", "steps"),
    [({"hybridlab": "homelab"}, []), ({}, ["tag-volume:arm-2"]), ({"hybridlab": "other"}, ["tag-volume:arm-2"])],
)
def test_a_boot_volume_carries_our_tag(tags: dict[str, str], steps: list[str]) -> None:
    volume = resource("boot-volume", id=VMS[1].boot_volume_id, tags=tags, detail={"size_gb": 50, "attached": True})
    assert ids(complete(resources=(*network(), volume))) == steps


def test_a_launch_tags_the_boot_volume(ctx: FakeContext) -> None:
    launch(ctx)
    assert ("tag", "ocid1.bootvolume.oc1..arm-1") in ctx.oracle.calls


def test_the_key_is_made_before_the_first_launch() -> None:
    assert ids(complete(ssh_key=False, instances=VMS[:2])) == ["make-ssh-key", "launch:amd-1"]


ARM, MICRO_WISH = make_params().wishes[0], make_params().wishes[2]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, ""),
        ({"shape": "VM.Standard.A2.Flex"}, "shape VM.Standard.A2.Flex, not VM.Standard.A1.Flex"),
        ({"arch": "amd64"}, "architecture amd64, not arm64"),
        ({"ocpus": 1.0}, "1 OCPU and 12 GB, not 2 and 12"),
        ({"memory_gb": 6.0}, "2 OCPU and 6 GB, not 2 and 12"),
        ({"ocpus": 1.0, "memory_gb": 6.0}, "1 OCPU and 6 GB, not 2 and 12"),
        ({"boot_volume_gb": 49}, "boot volume 49 GB, not 50"),
        ({"boot_volume_gb": 51}, ""),
        ({"boot_volume_gb": None}, ""),
    ],
)
def test_mismatch(fields: dict[str, Any], said: str) -> None:
    assert mismatch(ARM, replace(VMS[0], **fields)) == said
    if said:
        made = plan(complete(instances=(replace(VMS[0], **fields), *VMS[1:])))
        assert [(f.level, f.subject) for f in made.findings] == [("refusal", "arm-1")]
        assert said in made.findings[0].text
        assert made.steps == ()


def test_a_micros_size_is_oracles() -> None:
    assert mismatch(MICRO_WISH, replace(VMS[2], ocpus=0.125)) == ""


def test_a_degraded_vm_is_accepted_where_that_is_allowed() -> None:
    small = replace(VMS[0], ocpus=1.0, memory_gb=6.0)
    assert mismatch(ARM, small, degrade=True) == ""
    assert mismatch(ARM, replace(small, memory_gb=5.0), degrade=True) != ""
    assert ids(complete(instances=(small, *VMS[1:])), **{"provision.degrade": True}) == []


def test_machines_that_are_not_wanted_or_not_ours() -> None:
    others = (
        vm("old-1"),
        vm("website", tags={}),
        vm("x", tags={"hybridlab": "another", "hybridlab-node": "arm-1"}),
    )
    made = plan(complete(instances=(*VMS, *others)))
    assert made.steps == ()
    assert [(f.level, f.subject) for f in made.findings] == [("warning", "old-1"), ("note", "website")]
    # a VM of another cluster is never taken for ours
    assert ids(complete(instances=(others[2], *VMS[1:]))) == ["launch:arm-1"]


def test_a_layout_that_was_refused_refuses_this_too() -> None:
    made = provision.plan(make_params(), complete(), {"layout": {"refused": ["1 too many"]}})
    assert [(f.level, f.text) for f in made.findings] == [("refusal", "1 too many")]


def test_byo_has_nothing_to_provision() -> None:
    changes = {f"nodes.{n}.address": f"10.1.1.{i}" for i, n in enumerate(("arm-1", "arm-2", "amd-1"), 1)}
    made = provision.plan(make_params({"site": "byo", **changes}), Seen(), LAYOUT)
    assert made.steps == ()
    assert [n["private_ip"] for n in made.expected["nodes"]] == ["10.1.1.1", "10.1.1.2", "10.1.1.3"]


# -- actions -----------------------------------------------------------------------------------------------------------
@pytest.fixture
def ctx(tmp_path: Path) -> FakeContext:
    made = FakeContext(tmp_path)
    made.secrets.put("ssh_key.pub", "ssh-ed25519 AAAA test\n")
    made.secrets.put("ssh_key", "private")
    return made


def test_from_nothing_to_verified_and_then_no_change(tmp_path: Path) -> None:
    ctx = FakeContext(tmp_path)
    first = provision.plan(ctx.params, provision.look(ctx), LAYOUT)
    apply(ctx, first, provision.ACTIONS)
    assert [c.name for c in provision.verify(ctx) if not c.ok] == []
    assert len(provision.verify(ctx)) == 5
    assert provision.plan(ctx.params, provision.look(ctx), LAYOUT).steps == ()
    created = [t for t in ctx.oracle.things if t.kind in ("vcn", "internet-gateway", "nsg", "subnet")]
    assert [t.tags for t in created] == [{"hybridlab": "homelab"}] * 4
    tags = {v.name: dict(v.tags) for v in ctx.oracle.vms}
    assert tags == {n: {"hybridlab": "homelab", "hybridlab-node": n} for n in ("arm-1", "arm-2", "amd-1")}
    request = ctx.oracle.launches[0][0]
    key = ctx.secrets.get("ssh_key.pub")
    assert key is not None
    assert request.authorized_keys == key.reveal().strip()
    assert request.authorized_keys.startswith("ssh-ed25519 ")
    assert {r.name: r.image_id for r, _ in ctx.oracle.launches} == {
        "arm-1": "image-arm64",
        "arm-2": "image-arm64",
        "amd-1": "image-amd64",
    }
    assert (request.subnet_id, request.nsg_id, request.user_data) == ("subnet-id", "nsg-id", "")
    assert {name for name, _, _ in ctx.hosts.waited} == {"arm-1", "arm-2", "amd-1"}


def test_rules_are_repaired_one_by_one(ctx: FakeContext) -> None:
    ctx.oracle.things = list(network())
    kept = [replace(r, id=f"keep-{i}") for i, r in enumerate(WANTED[1:])]
    ctx.oracle.group_rules = [*kept, SecurityRule("ingress", "tcp", "0.0.0.0/0", 22, 22, id="bad")]
    step = provision.plan(ctx.params, provision.look(ctx), LAYOUT).steps[0]
    assert provision.ACTIONS["set-rules"](ctx, step) == {"id": "nsg-id", "added": 1, "removed": 1}
    assert ctx.oracle.calls == [("add-rules", "nsg-id", 1), ("remove-rules", "nsg-id", ("bad",))]
    assert rule_changes(WANTED, ctx.oracle.group_rules) == ([], [])


@pytest.mark.parametrize(
    ("spoil", "failed"),
    [
        (lambda o: o.set_state("arm-2", "STOPPED"), "VM arm-2"),
        (lambda o: o.vms.pop(), "VM amd-1"),
        (lambda o: o.group_rules.pop(), "security group"),
        (lambda o: o.group_rules.append(SecurityRule("ingress", "tcp", "0.0.0.0/0", 1, 1)), "security group"),
        (lambda o: o.set_security_list("list-id", [SSH]), "default security list"),
        (lambda o: o.vms.__setitem__(0, vm("arm-1")), "VM arm-1"),
    ],
)
def test_verify_sees(ctx: FakeContext, spoil: Any, failed: str) -> None:
    ctx.oracle.things, ctx.oracle.vms, ctx.oracle.group_rules = list(network()), list(VMS), list(WANTED)
    assert all(c.ok for c in provision.verify(ctx))
    spoil(ctx.oracle)
    assert [c.name for c in provision.verify(ctx) if not c.ok] == [failed]


def test_the_key_pair_is_made_once_and_kept_secret(tmp_path: Path) -> None:
    ctx = FakeContext(tmp_path)
    step = Step("make-ssh-key", "make-ssh-key", "", "", "create")
    made = provision.ACTIONS["make-ssh-key"](ctx, step)
    private = ctx.secrets.get("ssh_key")
    assert private is not None
    assert "OPENSSH PRIVATE KEY" in private.reveal()
    assert made["public_key"].startswith("ssh-ed25519 ")
    assert provision.ACTIONS["make-ssh-key"](ctx, step) == {"changed": False}
    again = ctx.secrets.get("ssh_key")
    assert again is not None
    assert again.reveal() == private.reveal()


# -- the hunt ----------------------------------------------------------------------------------------------------------
FULL = OutOfCapacity("no", status=500, code="InternalError", why="Out of host capacity.")


def launch(ctx: FakeContext, name: Any = "arm-1", **changes: Any) -> dict[str, Any]:
    if changes:
        ctx.params = make_params(changes)
    ctx.oracle.things = list(network())
    step = next(s for s in plan(Seen(operator_cidr=CIDR), **changes).steps if s.id == f"launch:{name}")
    return dict(provision.ACTIONS["launch"](ctx, step))


def asked(ctx: FakeContext) -> list[str]:
    return [r.availability_domain for r, _ in ctx.oracle.launches]


def test_one_domain_after_another_then_a_pause(ctx: FakeContext) -> None:
    ctx.oracle.answers = [FULL] * 4
    made = launch(ctx)
    assert asked(ctx) == ["AD-1", "AD-2", "AD-3", "AD-1", "AD-2"]
    assert made["availability_domain"] == "AD-2"
    assert [a["answer"] for a in made["attempts"]] == ["out of capacity"] * 4 + ["accepted"]
    assert len(ctx.clock.slept) == 1
    assert 22.5 <= ctx.clock.slept[0] <= 37.5  # 30 s, a quarter up or down
    assert len({token for _, token in ctx.oracle.launches}) == 5
    assert ctx.hosts.waited[0][0] == "arm-1"


def test_the_pause_grows_and_the_deadline_holds(ctx: FakeContext) -> None:
    ctx.oracle.answers = [FULL] * 1000
    with pytest.raises(DeadlineExceeded) as caught:
        launch(ctx, **{"provision.capacity_deadline_s": 300})
    assert sum(ctx.clock.slept) == pytest.approx(300)
    naps = ctx.clock.slept[:-1]
    assert all(0.75 * 30 * 1.5**i <= nap <= 1.25 * 30 * 1.5**i for i, nap in enumerate(naps))
    assert len(ctx.oracle.launches) == 3 * (len(ctx.clock.slept) + 1)  # one more round when the time is up
    assert "no capacity for arm-1 within 300 s" in caught.value.what
    assert f"{len(ctx.oracle.launches)} attempts, last answer: out of capacity" in caught.value.why
    assert "degrade" in caught.value.next_move
    assert ctx.oracle.vms == []


def test_pauses_are_never_longer_than_ten_minutes(ctx: FakeContext) -> None:
    ctx.oracle.answers = [FULL] * 120
    launch(ctx, **{"provision.capacity_deadline_s": 1e6})
    assert max(ctx.clock.slept) <= 750


def test_a_micro_is_asked_for_only_where_it_is_offered(ctx: FakeContext) -> None:
    ctx.oracle.answers = [FULL]
    assert launch(ctx, "amd-1")["availability_domain"] == "AD-3"
    assert asked(ctx) == ["AD-3", "AD-3"]


def test_degrade_asks_for_less_where_allowed(ctx: FakeContext) -> None:
    ctx.oracle.answers = [FULL] * 4
    launch(ctx, **{"provision.degrade": True})
    sizes = [(r.ocpus, r.memory_gb) for r, _ in ctx.oracle.launches]
    assert sizes == [(2, 12)] * 3 + [(1, 6)] * 2
    assert ctx.clock.slept == []


@pytest.mark.parametrize("name", ["amd-1", "arm-2"])
def test_degrade_does_not_ask_twice_for_the_same(ctx: FakeContext, name: str) -> None:
    domains = 1 if name == "amd-1" else 3
    ctx.oracle.answers = [FULL] * domains
    launch(ctx, name, **{"provision.degrade": True})
    assert len(ctx.oracle.launches) == domains + 1
    assert len(ctx.clock.slept) == 1


def test_without_degrade_the_size_stays(ctx: FakeContext) -> None:
    ctx.oracle.answers = [FULL] * 4
    launch(ctx)
    assert {(r.ocpus, r.memory_gb) for r, _ in ctx.oracle.launches} == {(2, 12)}


def test_throttled_requests_wait_longer_each_time_with_a_new_token(ctx: FakeContext) -> None:
    ctx.oracle.answers = [TooManyRequests("slow down", status=429)] * 3
    made = launch(ctx)
    assert asked(ctx) == ["AD-1"] * 4
    assert [a["answer"] for a in made["attempts"]] == ["accepted"]
    for nap, whole in zip(ctx.clock.slept, (2, 4, 8), strict=True):
        assert whole / 2 <= nap <= whole
    assert len({token for _, token in ctx.oracle.launches}) == 4


def test_throttled_too_often_moves_on(ctx: FakeContext) -> None:
    ctx.oracle.answers = [TooManyRequests("slow down", status=429)] * 7
    assert launch(ctx)["availability_domain"] == "AD-2"
    assert max(ctx.clock.slept) <= 60


def test_a_lost_answer_is_asked_again_with_the_same_token(ctx: FakeContext) -> None:
    ctx.oracle.answers = [Unreachable("reset", why="connection reset")]
    made = launch(ctx)
    tokens = [token for _, token in ctx.oracle.launches]
    assert len(tokens) == 2
    assert tokens[0] == tokens[1]
    assert ctx.clock.slept[0] == 2
    assert [v.name for v in ctx.oracle.vms] == ["arm-1"]
    assert made["availability_domain"] == "AD-1"


def test_a_vm_whose_answer_was_lost_is_found_not_doubled(ctx: FakeContext) -> None:
    def made_but_lost(request: LaunchRequest) -> None:
        ctx.oracle.add(request)
        raise Unreachable("reset", why="connection reset")

    ctx.oracle.answers = [made_but_lost]
    made = launch(ctx)
    assert len(ctx.oracle.launches) == 1
    assert [v.name for v in ctx.oracle.vms] == ["arm-1"]
    assert made["attempts"][0]["answer"] == "answer lost, VM found"


def test_a_vm_that_an_earlier_run_launched_is_taken(ctx: FakeContext) -> None:
    ctx.oracle.vms = [VMS[0]]
    assert launch(ctx)["attempts"] == []
    assert ctx.oracle.launches == []


def test_answers_lost_again_and_again_end_as_unknown(ctx: FakeContext) -> None:
    ctx.oracle.answers = [Unreachable("reset")] * 9
    with pytest.raises(Unreachable):
        launch(ctx)
    assert len(ctx.oracle.launches) == 4
    assert len({token for _, token in ctx.oracle.launches}) == 1


def test_a_phantom_limit_clears_by_itself(ctx: FakeContext) -> None:
    ctx.oracle.answers = [LimitReached("no", why="standard-a1-core-count")]
    made = launch(ctx)
    assert asked(ctx) == ["AD-1", "AD-2"]
    assert "phantom" in made["attempts"][0]["answer"]


def test_a_real_limit_ends_the_hunt(ctx: FakeContext) -> None:
    ctx.oracle.vms = [vm("website", tags={})]
    ctx.oracle.answers = [LimitReached("no", why="standard-a1-core-count")]
    with pytest.raises(LimitReached):
        launch(ctx)
    assert len(ctx.oracle.launches) == 1


@pytest.mark.parametrize("other", [vm("w", "amd64", tags={}), vm("w", tags={}, state="TERMINATED")])
def test_what_does_not_count_against_the_limit(ctx: FakeContext, other: Any) -> None:
    ctx.oracle.vms = [other]
    ctx.oracle.answers = [LimitReached("no", why="standard-a1-core-count")]
    assert "phantom" in launch(ctx)["attempts"][0]["answer"]


def test_a_domain_without_the_shape_is_not_asked_again(ctx: FakeContext) -> None:
    ctx.oracle.answers = [NotFound("no", status=404, code="NotAuthorizedOrNotFound"), FULL, FULL, FULL]
    launch(ctx)
    assert asked(ctx) == ["AD-1", "AD-2", "AD-3", "AD-2", "AD-3"]


def test_no_domain_takes_the_shape(ctx: FakeContext) -> None:
    ctx.oracle.answers = [NotFound("no", status=404, code="NotAuthorizedOrNotFound")] * 3
    with pytest.raises(NotFound, match=f"no availability domain takes {A1}") as caught:
        launch(ctx)
    assert "NotAuthorizedOrNotFound" in caught.value.why
    assert ctx.clock.slept == []


@pytest.mark.parametrize("error", [AuthFailed("who?", status=401), Refused("bad", status=400)])
def test_what_no_other_domain_will_change_is_raised(ctx: FakeContext, error: Refused) -> None:
    ctx.oracle.answers = [error]
    with pytest.raises(type(error)):
        launch(ctx)
    assert len(ctx.oracle.launches) == 1


def test_a_launch_waits_until_the_vm_runs(ctx: FakeContext) -> None:
    ctx.oracle.boot_state = "PROVISIONING"
    ctx.clock.at[ctx.clock.now() + 5] = lambda: ctx.oracle.set_state("arm-1", "RUNNING")
    launch(ctx)
    assert ctx.clock.now() >= 1005
    assert ctx.hosts.waited[0][0] == "arm-1"


def test_a_vm_that_dies_while_it_starts(ctx: FakeContext) -> None:
    ctx.oracle.boot_state = "PROVISIONING"
    ctx.clock.at[ctx.clock.now() + 5] = lambda: ctx.oracle.set_state("arm-1", "TERMINATED")
    with pytest.raises((Refused, NotFound)):
        launch(ctx)
    assert ctx.hosts.waited == []


def test_a_vm_that_never_runs_meets_the_deadline(ctx: FakeContext) -> None:
    ctx.oracle.boot_state = "PROVISIONING"
    with pytest.raises(DeadlineExceeded, match="VM arm-1 to run"):
        launch(ctx)


@pytest.mark.parametrize("state", ["STOPPED", "STOPPING"])
def test_starting_a_vm(ctx: FakeContext, state: str) -> None:
    ctx.oracle.vms = [replace(VMS[1], state=state)]
    if state == "STOPPING":
        ctx.clock.at[ctx.clock.now() + 3] = lambda: ctx.oracle.set_state("arm-2", "STOPPED")
    step = Step("start:arm-2", "start", "", "", "change", {"node": "arm-2"})
    assert provision.ACTIONS["start"](ctx, step) == {"id": VMS[1].id}
    assert ctx.oracle.calls == [("start", VMS[1].id)]
    assert (ctx.clock.now() > 1000) is (state == "STOPPING")
    assert [w[:2] for w in ctx.hosts.waited] == [("arm-2", VMS[1].public_ip)]


def test_starting_a_vm_that_is_gone(ctx: FakeContext) -> None:
    with pytest.raises(NotFound):
        provision.ACTIONS["start"](ctx, Step("start:x", "start", "", "", "change", {"node": "arm-2"}))


def test_a_step_needs_what_comes_before_it(ctx: FakeContext) -> None:
    with pytest.raises(NotFound, match="our vcn is not there"):
        provision.ACTIONS["create-gateway"](ctx, Step("x", "create-gateway", "", "", "create"))
    ctx.oracle.things = [resource("vcn", tags={"hybridlab": "another"})]
    with pytest.raises(NotFound, match="our vcn is not there"):
        provision.ACTIONS["create-nsg"](ctx, Step("x", "create-nsg", "", "", "create"))


def test_look_reads_the_rules_of_our_group_only(tmp_path: Path) -> None:
    oracle = FakeOracle()
    oracle.group_rules = list(WANTED)
    ctx = FakeContext(tmp_path, oracle=oracle, hosts=FakeHosts())
    assert provision.look(ctx).rules == ()
    oracle.things = list(network())
    seen = provision.look(ctx)
    assert (seen.rules, seen.operator_cidr, seen.ssh_key) == (WANTED, CIDR, False)
