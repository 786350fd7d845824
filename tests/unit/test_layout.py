"""010: what fits which allowance, and what is said about what does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fakes import A1, MICRO, FakeContext, FakeOracle, make_params, vm

from hybridlab.errors import ParamsError
from hybridlab.models import Limit
from hybridlab.stages import layout
from hybridlab.stages.layout import Layout, Line, Seen, allowance_named, allowances, compare, layouts_that_fit

OLD, NOW = allowance_named("until-2026-06"), allowance_named("since-2026-06")


def seen(**more: Any) -> Seen:
    return Seen(allowances(), **{"live": {}, "shapes": {}, **more})


def test_allowances_are_dated() -> None:
    assert (OLD.a1_ocpus, OLD.a1_memory_gb, OLD.micros, OLD.storage_gb, OLD.until) == (4, 24, 2, 200, "2026-06")
    assert (NOW.a1_ocpus, NOW.a1_memory_gb, NOW.micros, NOW.storage_gb, NOW.until) == (2, 12, 2, 200, None)
    assert layout.allowances_now(allowances()) is NOW
    assert layout.allowances_now((OLD,)) is None
    with pytest.raises(ParamsError, match="'last-year'") as caught:
        allowance_named("last-year")
    assert "since-2026-06" in caught.value.next_move


def test_the_article_against_both_allowances() -> None:
    wishes = make_params().wishes
    old = {line.resource: (line.wanted, line.allowed, line.ok) for line in compare(wishes, OLD)}
    assert old == {
        "A1 OCPUs": (3, 4, True),
        "A1 memory GB": (18, 24, True),
        "AMD micros": (1, 2, True),
        "volumes GB": (150, 200, True),
        "volumes": (3, 4, True),
    }
    over = {line.resource: line.left for line in compare(wishes, NOW) if not line.ok}
    assert over == {"A1 OCPUs": -1, "A1 memory GB": -6}


def test_exactly_what_is_allowed_fits() -> None:
    assert Line("x", 4, 4, "").ok
    assert not Line("x", 4.5, 4, "").ok
    assert Line("x", 1, 4, "").left == 3


def test_the_smaller_bound_counts() -> None:
    rows = compare(make_params().wishes, OLD, {"A1 OCPUs": 2, "A1 memory GB": 100})
    lines = {line.resource: (line.allowed, line.limited_by) for line in rows}
    assert lines["A1 OCPUs"] == (2, "the account's live limit")
    assert lines["A1 memory GB"] == (24, "allowance until-2026-06")


def test_layouts_that_fit_are_within_and_best_first() -> None:
    for allowance in (OLD, NOW):
        found = layouts_that_fit(allowance)
        assert len(set(found)) == len(found)
        for one in found:
            assert sum(one.arm_ocpus) <= allowance.a1_ocpus
            assert len(one.arm_ocpus) + one.micros in range(1, 5)
            assert one.micros <= allowance.micros
    assert layouts_that_fit(NOW)[0] == Layout((2,), 2)
    assert str(layouts_that_fit(NOW)[0]) == "arm 2C12G + amd 1C1G + amd 1C1G"
    assert Layout((2, 1), 1) in layouts_that_fit(OLD)
    assert Layout((2, 1), 1) not in layouts_that_fit(NOW)
    assert Layout((), 2) in layouts_that_fit(NOW)
    assert Layout((), 0) not in layouts_that_fit(NOW)


def findings(params: Any, state: Seen) -> dict[str, tuple[str, str]]:
    return {f.subject: (f.level, f.text) for f in layout.plan(params, state, {}).findings}


def test_fits_then_not_now() -> None:
    found = findings(make_params(), seen())
    assert set(found) == {"until-2026-06"}
    level, text = found["until-2026-06"]
    assert level == "note"
    assert "ended on 2026-06; against since-2026-06 the layout is over: 3 of 2 A1 OCPUs; 18 of 12 A1 memory GB" in text


def test_over_the_allowance_is_refused_or_costs() -> None:
    params = make_params({"layout.allowance": "since-2026-06"})
    plan = layout.plan(params, seen(), {})
    assert [(f.level, f.subject) for f in plan.findings] == [("refusal", "A1 OCPUs"), ("refusal", "A1 memory GB")]
    assert "wants 3 A1 OCPUs, allowance since-2026-06 has 2: 1 too many" in plan.findings[0].text
    assert "this fits: arm 2C12G + amd 1C1G + amd 1C1G" in plan.findings[0].next_move
    assert plan.expected["refused"] == [f.text for f in plan.findings]
    paid = layout.plan(make_params({"layout.allowance": "since-2026-06", "layout.allow_cost": True}), seen(), {})
    assert [f.level for f in paid.findings] == ["warning", "warning"]
    assert paid.findings[0].next_move == "it will cost money"
    assert paid.expected["refused"] == []


@pytest.mark.parametrize(
    ("foreign", "advice"),
    [
        (
            {"A1 OCPUs": 1, "A1 memory GB": 6, "volumes GB": 50, "volumes": 1},
            "this fits: arm 1C6G + amd 1C1G + amd 1C1G",
        ),
        ({"A1 OCPUs": 2, "A1 memory GB": 12, "AMD micros": 2, "volumes GB": 200, "volumes": 4}, "nothing fits beside"),
    ],
)
def test_what_fits_counts_what_other_machines_use(foreign: dict[str, float], advice: str) -> None:
    plan = layout.plan(make_params({"layout.allowance": "since-2026-06"}), seen(foreign=foreign), {})
    assert all(f.next_move.startswith(advice) for f in plan.findings if f.level == "refusal"), plan.findings


def test_what_fits_is_within_the_live_limits() -> None:
    plan = layout.plan(make_params({"layout.allowance": "since-2026-06"}), seen(live={"AMD micros": 0}), {})
    assert {f.next_move.partition(";")[0] for f in plan.findings if f.level == "refusal"} == {"this fits: arm 2C12G"}


def test_money_does_not_help_against_a_live_limit() -> None:
    found = findings(make_params({"layout.allow_cost": True}), seen(live={"AMD micros": 0}))
    assert found["AMD micros"][0] == "refusal"


def test_a_shape_that_no_domain_offers() -> None:
    found = findings(make_params(), seen(shapes={A1: ("AD-1",)}))
    assert found["amd-1"] == ("refusal", f"no availability domain offers {MICRO}")
    assert "arm-1" not in found
    assert "amd-1" not in findings(make_params(), seen(shapes={A1: ("AD-1",), MICRO: ("AD-3",)}))


def test_a_micro_has_one_gigabyte() -> None:
    assert findings(make_params({"nodes.amd-1.memory_gb": 2}), seen())["amd-1"][0] == "refusal"


@pytest.mark.parametrize(
    ("changes", "warned"),
    [
        ({}, False),
        ({"nodes.arm-1.ocpus": 1}, True),
        ({"nodes.arm-1.memory_gb": 1}, True),
        ({"nodes.arm-1.memory_gb": 2}, False),
    ],
)
def test_a_small_server_is_warned_about(changes: dict[str, Any], warned: bool) -> None:
    found = findings(make_params(changes), seen())
    assert (found.get("arm-1", ("",))[0] == "warning") is warned


def test_one_architecture_only() -> None:
    found = findings(make_params(nodes=make_params().plain()["nodes"][:2]), seen())
    assert found["nodes"] == ("note", "all nodes are arm64: images without arm64 have no place to run")


def test_byo_is_not_measured_against_an_allowance() -> None:
    changes = {f"nodes.{n}.address": "h" for n in ("arm-1", "arm-2", "amd-1")}
    plan = layout.plan(make_params({"site": "byo", "nodes.arm-1.ocpus": 64, **changes}), seen(), {})
    assert plan.findings == ()
    assert plan.steps == ()


def test_expected_nodes() -> None:
    assert layout.plan(make_params(), seen(), {}).expected["nodes"][2] == {
        "name": "amd-1",
        "role": "agent",
        "arch": "amd64",
        "memory_gb": 1,
    }


def test_cost_elsewhere() -> None:
    assert layout.monthly_elsewhere_usd(make_params()) == 36
    assert layout.monthly_elsewhere_usd(make_params({"layout.compare_usd_per_node": 5})) == 15


@pytest.mark.parametrize(
    ("limits", "ours", "expected"),
    [
        ((), {}, {}),
        # what others use is gone; what we use ourselves is ours
        ((Limit("standard-a1-core-count", None, 3, 1),), {"A1 OCPUs": 2.0}, {"A1 OCPUs": 3}),
        ((Limit("standard-a1-core-count", None, 3, 1),), {}, {"A1 OCPUs": 1}),
        ((Limit("standard-a1-core-count", None, 3, 1),), {"A1 OCPUs": 9.0}, {"A1 OCPUs": 4}),
        (
            tuple(
                Limit("vm-standard-e2-1-micro-count", ad, used, free)
                for ad, used, free in (("AD-1", 0, 0), ("AD-3", 1, 1))
            ),
            {"AMD micros": 1.0},
            {"AMD micros": 2},
        ),
        ((Limit("standard-e2-micro-core-count", "AD-1", 0, 2),), {}, {"AMD micros": 2}),
        ((Limit("something-else", None, 0, 7),), {}, {}),
    ],
)
def test_live_bounds(limits: tuple[Limit, ...], ours: dict[str, float], expected: dict[str, float]) -> None:
    assert layout.live_bounds(limits, ours) == expected


def test_look_and_verify_count_our_own_machines_as_ours(tmp_path: Path) -> None:
    oracle = FakeOracle()
    oracle.limit_rows = (
        Limit("standard-a1-core-count", None, 3, 1),
        Limit("standard-a1-memory-count", None, 18, 6),
        Limit("vm-standard-e2-1-micro-count", "AD-3", 1, 1),
    )
    oracle.vms = [
        vm("arm-1", ocpus=2.0, memory_gb=12.0),
        vm("arm-2"),
        vm("amd-1", "amd64"),
        vm("guest", tags={}),
        vm("theirs", tags={"hybridlab": "other", "hybridlab-node": "theirs"}),
    ]
    ctx = FakeContext(tmp_path, oracle=oracle)
    assert layout.look(ctx).live == {}  # every wanted VM is there: nothing to ask the account for
    assert layout.look(ctx).shapes == {}
    oracle.vms[0] = vm("arm-0", ocpus=2.0, memory_gb=12.0)  # ours still, and arm-1 is wanted
    state = layout.look(ctx)
    assert state.live == {"A1 OCPUs": 4, "A1 memory GB": 24, "AMD micros": 2}
    assert state.shapes == {A1: ("AD-1", "AD-2", "AD-3"), MICRO: ("AD-3",)}
    assert state.foreign == {"A1 OCPUs": 2, "A1 memory GB": 12, "volumes": 2, "volumes GB": 100}
    over = {c.name: c.evidence for c in layout.verify(ctx) if not c.ok}
    assert set(over) == {"A1 OCPUs", "A1 memory GB", "volumes", "volumes GB"}
    said = "3 wanted, 2 allowed by allowance until-2026-06 (less 2 that other machines use)"
    assert over["A1 OCPUs"].startswith(said)
    refusals = {f.subject for f in layout.plan(ctx.params, state, {}).refusals}
    assert refusals == set(over)
    oracle.vms = [v for v in oracle.vms if v.name not in ("guest", "theirs")]
    assert [c.ok for c in layout.verify(ctx)] == [True] * 5
    ctx.params = make_params({"layout.allowance": "since-2026-06"})
    assert {c.name for c in layout.verify(ctx) if not c.ok} == {"A1 OCPUs", "A1 memory GB"}
    ctx.params = make_params({"layout.allowance": "since-2026-06", "layout.allow_cost": True})
    assert all(c.ok for c in layout.verify(ctx))
