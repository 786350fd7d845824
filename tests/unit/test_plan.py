"""The hash of a plan: what an approval approves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hybridlab.errors import BadInput, StrictFindings
from hybridlab.models import Finding
from hybridlab.plan import Plan, Step, canonical, is_unknown, plan_hash, unknown

STEP = Step("launch:arm-1", "launch", "VM arm-1", "wanted", "create", {"ocpus": 2, "image": "i"}, "terminate", "vms")
OTHER = Step("set-rules", "set-rules", "group", "2 missing", "change")
PLAN = Plan("provision", (STEP, OTHER), {"a": 1})
PARAMS: dict[str, Any] = {"cluster": "homelab", "storage": {"replicas": 3}}


def with_step(**fields: Any) -> Plan:
    return replace(PLAN, steps=(replace(STEP, **fields), OTHER))


def test_hash_is_twelve_hex_digits_and_stable() -> None:
    assert len(plan_hash(PARAMS, PLAN)) == 12
    int(plan_hash(PARAMS, PLAN), 16)
    assert plan_hash({"storage": {"replicas": 3}, "cluster": "homelab"}, PLAN) == plan_hash(PARAMS, PLAN)


@pytest.mark.parametrize(
    "plan",
    [
        with_step(why="another reason"),
        with_step(args={"image": "i", "ocpus": 2}),
        replace(PLAN, expected={"a": 2}),
        replace(PLAN, findings=(Finding("note", "s", "t"),)),
    ],
    ids=["why", "order of args", "expected", "findings"],
)
def test_hash_does_not_feel(plan: Plan) -> None:
    assert plan_hash(PARAMS, plan) == plan_hash(PARAMS, PLAN)


@pytest.mark.parametrize(
    "plan",
    [
        with_step(id="launch:arm-2"),
        with_step(action="start"),
        with_step(target="VM arm-2"),
        with_step(effect="delete"),
        with_step(args={"ocpus": 4, "image": "i"}),
        with_step(args={"ocpus": 2}),
        with_step(undo=""),
        with_step(batch=""),
        replace(PLAN, steps=(OTHER, STEP)),
        replace(PLAN, steps=(STEP,)),
        replace(PLAN, stage="bootstrap"),
    ],
)
def test_hash_feels(plan: Plan) -> None:
    assert plan_hash(PARAMS, plan) != plan_hash(PARAMS, PLAN)


def test_hash_feels_params() -> None:
    assert plan_hash({**PARAMS, "storage": {"replicas": 1}}, PLAN) != plan_hash(PARAMS, PLAN)
    assert plan_hash({}, PLAN) != plan_hash(PARAMS, PLAN)


def test_hash_does_not_feel_cloud_ids_but_their_kind() -> None:
    def of(image: str) -> str:
        return plan_hash(PARAMS, with_step(args={"image": image}))

    first = of("ocid1.image.oc1.eu-frankfurt-1.aaaa")
    assert of("ocid1.image.oc1.phx.zzzz-9") == first
    assert of("ocid1.volume.oc1.eu-frankfurt-1.aaaa") != first


def test_canonical() -> None:
    assert canonical({"b": [1, "ü"], "a": None}) == '{"a":null,"b":[1,"ü"]}'
    assert canonical({"id": "ocid1.vcn.oc1..aaa", "x": 1}) == '{"id":"ocid1.vcn","x":1}'
    assert canonical("see ocid1.vcn.oc1..aaa for more") == '"see ocid1.vcn for more"'


def test_unknown_values() -> None:
    assert is_unknown(unknown("arm-1.private_ip"))
    assert not is_unknown("10.0.0.2")
    assert not is_unknown("⟨half")
    assert not is_unknown("half⟩")
    assert not is_unknown(None)


def test_plan_says_whether_it_changes_and_what_it_refuses() -> None:
    refusal, warning = Finding("refusal", "a", "no"), Finding("warning", "b", "hm")
    assert PLAN.changes
    assert not replace(PLAN, steps=()).changes
    assert replace(PLAN, findings=(warning, refusal)).refusals == (refusal,)
    assert PLAN.refusals == ()
    PLAN.expect_applicable()


@pytest.mark.parametrize(
    ("strict", "kind", "status"),
    [((True, True), StrictFindings, 1), ((True, False), BadInput, 2), ((False, True), BadInput, 2)],
)
def test_a_refused_plan_ends_with_one_only_where_strict_alone_refuses(
    strict: tuple[bool, ...], kind: type[BadInput], status: int
) -> None:
    refusals = tuple(Finding("refusal", f"of strict {given}", "no", "try", strict=given) for given in strict)
    with pytest.raises(kind, match="provision can't be applied: no") as caught:
        replace(PLAN, findings=refusals).expect_applicable()
    assert (caught.value.exit_code, caught.value.where) == (status, f"of strict {all(strict)}")
