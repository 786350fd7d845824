"""Placement: architectures, taints, free memory and CPU."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest
from compose_kit import GI, MI, MULTI, NODES, SMALL_TAINT, image

from hybridlab.compose.model import Placement, Preference, ServiceNeeds
from hybridlab.compose.place import place
from hybridlab.models import Arch, ImageInfo, NodeCapacity, Platform

PREFERENCE = Preference()
OPEN = tuple(replace(node, taints=()) for node in NODES)
ARM_ONLY = tuple(node for node in NODES if node.arch == "arm64")


def weights(placement: Placement) -> dict[str, int]:
    terms = placement.affinity["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    return {term["preference"]["matchExpressions"][0]["values"][0]: term["weight"] for term in terms}


@pytest.mark.parametrize(
    ("platforms", "nodes", "kind", "selector"),
    [
        (("linux/amd64", "linux/arm64/v8"), OPEN, "prefer", {}),
        (("linux/amd64",), OPEN, "only", {"kubernetes.io/arch": "amd64"}),
        (("linux/arm64",), OPEN, "only", {"kubernetes.io/arch": "arm64"}),
        (("linux/amd64", "linux/arm64", "linux/s390x"), OPEN, "prefer", {}),
        (("linux/amd64", "linux/arm64"), ARM_ONLY, "only", {"kubernetes.io/arch": "arm64"}),
        (("linux/amd64",), ARM_ONLY, "none", {"kubernetes.io/arch": "amd64"}),
        (("linux/arm/v7",), OPEN, "none", {"kubernetes.io/arch": "arm"}),
        (("linux/amd64", "linux/arm64"), (), "prefer", {}),
        (("linux/amd64",), (), "only", {"kubernetes.io/arch": "amd64"}),
    ],
)
def test_kind_and_selector_follow_from_platforms_and_nodes(
    platforms: tuple[str, ...], nodes: tuple[NodeCapacity, ...], kind: str, selector: dict[str, str]
) -> None:
    placement = place(ServiceNeeds("s"), image(*platforms), nodes, PREFERENCE)
    assert placement.kind == kind
    assert placement.node_selector == selector
    assert placement.reason


def test_a_multi_arch_image_gets_one_soft_term_per_architecture() -> None:
    placement = place(ServiceNeeds("s"), MULTI, OPEN, PREFERENCE)
    assert weights(placement) == {"arm64": 100, "amd64": 1}
    assert "requiredDuringSchedulingIgnoredDuringExecution" not in placement.affinity["nodeAffinity"]
    assert placement.architectures == ("arm64", "amd64")


def test_the_preference_is_the_callers_with_its_reason() -> None:
    measured = Preference({"amd64": 90, "arm64": 10}, "benchmark of 2026-11-20")
    placement = place(ServiceNeeds("s"), MULTI, OPEN, measured)
    assert weights(placement) == {"amd64": 90, "arm64": 10}
    assert placement.architectures[0] == "amd64"
    assert "benchmark of 2026-11-20" in placement.reason


def test_an_architecture_without_a_node_gets_no_term() -> None:
    placement = place(ServiceNeeds("s"), image("linux/amd64", "linux/arm64", "linux/riscv64"), OPEN, PREFERENCE)
    assert set(weights(placement)) == {"arm64", "amd64"}


def test_a_third_kind_of_node_is_shut_out_when_the_image_cannot_run_there() -> None:
    nodes = (*OPEN, replace(OPEN[0], name="risc-1", arch=cast(Arch, "riscv64")))
    placement = place(ServiceNeeds("s"), MULTI, nodes, PREFERENCE)
    required = placement.affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert required["nodeSelectorTerms"][0]["matchExpressions"][0]["values"] == ["amd64", "arm64"]


@pytest.mark.parametrize(
    ("platform", "kind", "selector"),
    [
        ("linux/amd64", "only", {"kubernetes.io/arch": "amd64"}),
        ("linux/arm64/v8", "only", {"kubernetes.io/arch": "arm64"}),
        ("linux/x86_64", "only", {"kubernetes.io/arch": "amd64"}),
        ("linux/arm/v7", "none", {"kubernetes.io/arch": "amd64"}),
        ("wasi/wasm", "unknown", {}),
    ],
)
def test_composes_platform_is_honoured(platform: str, kind: str, selector: dict[str, str]) -> None:
    placement = place(ServiceNeeds("s", platform=platform), MULTI, OPEN, PREFERENCE)
    assert (placement.kind, placement.node_selector) == (kind, selector)


def test_the_small_nodes_taint_is_tolerated_by_what_must_run_there_only() -> None:
    must = place(ServiceNeeds("s"), image("linux/amd64"), NODES, PREFERENCE)
    assert must.tolerations == ({"key": SMALL_TAINT[0], "operator": "Equal", "value": "true", "effect": "NoSchedule"},)
    assert "amd-1" in must.reason
    may = place(ServiceNeeds("s"), MULTI, NODES, PREFERENCE)
    assert may.tolerations == ()
    assert may.architectures == ("arm64",)


def test_an_untainted_amd64_node_needs_no_toleration() -> None:
    nodes = (*NODES, NodeCapacity("amd-2", "amd64", 1000, GI))
    assert place(ServiceNeeds("s"), image("linux/amd64"), nodes, PREFERENCE).tolerations == ()


def test_what_fits_only_on_the_tainted_node_for_memory_tolerates_it() -> None:
    nodes = (NodeCapacity("arm-1", "arm64", 1000, 100 * MI), replace(NODES[2], memory_free=2 * GI))
    placement = place(ServiceNeeds("s", memory=GI), MULTI, nodes, PREFERENCE)
    assert placement.kind == "prefer"
    assert placement.architectures == ("amd64",)
    assert placement.tolerations
    assert "arm-1" in placement.reason
    assert "1024Mi" in placement.reason


@pytest.mark.parametrize(
    ("needs", "words"),
    [
        (ServiceNeeds("s", memory=11 * GI), ("11264Mi", "arm-1", "arm-2", "amd-1")),
        (ServiceNeeds("s", cpu_m=4000), ("4000m", "1800m free")),
    ],
)
def test_no_room_anywhere_is_said_with_numbers(needs: ServiceNeeds, words: tuple[str, ...]) -> None:
    placement = place(needs, MULTI, NODES, PREFERENCE)
    assert placement.kind == "none"
    assert all(word in placement.reason for word in words)
    assert placement.remedy


def test_exactly_what_is_free_still_fits() -> None:
    nodes = (NodeCapacity("amd-1", "amd64", 500, 256 * MI),)
    assert place(ServiceNeeds("s", memory=256 * MI, cpu_m=500), MULTI, nodes, PREFERENCE).kind == "only"
    assert place(ServiceNeeds("s", memory=256 * MI + 1, cpu_m=500), MULTI, nodes, PREFERENCE).kind == "none"


def test_a_node_that_is_not_ready_does_not_count() -> None:
    nodes = (NODES[0], replace(NODES[2], ready=False))
    assert place(ServiceNeeds("s"), image("linux/amd64"), nodes, PREFERENCE).kind == "none"


@pytest.mark.parametrize(
    "info", [None, ImageInfo("app:1", known=False, problem="registry says 404")], ids=["not asked", "unknown"]
)
def test_an_unknown_image_is_placed_nowhere_in_particular(info: ImageInfo | None) -> None:
    placement = place(ServiceNeeds("s", image="app:1"), info, NODES, PREFERENCE)
    assert placement.kind == "unknown"
    assert placement.node_selector == {}
    if info is not None:
        assert "registry says 404" in placement.reason


def test_an_unknown_image_that_names_its_architecture_is_kept_off_the_others() -> None:
    placement = place(ServiceNeeds("s", image="a/helper:x86_64-v1"), None, NODES, PREFERENCE)
    assert placement.kind == "unknown"
    assert placement.node_selector == {"kubernetes.io/arch": "amd64"}
    assert placement.tolerations


def test_everywhere_means_every_node_the_image_runs_on() -> None:
    both = place(ServiceNeeds("s", everywhere=True), MULTI, NODES, PREFERENCE)
    assert both.kind == "any"
    assert not both.affinity
    assert both.tolerations
    one = place(ServiceNeeds("s", everywhere=True), image("linux/arm64"), NODES, PREFERENCE)
    assert (one.kind, one.node_selector) == ("only", {"kubernetes.io/arch": "arm64"})


def test_a_shared_claim_narrows_the_choice() -> None:
    placement = place(ServiceNeeds("s", allowed=frozenset({"amd64"})), MULTI, OPEN, PREFERENCE)
    assert (placement.kind, placement.node_selector) == ("only", {"kubernetes.io/arch": "amd64"})


@pytest.mark.parametrize(
    ("platforms", "warned"),
    [
        (("linux/amd64/v3", "linux/arm64/v8"), True),
        (("linux/amd64", "linux/amd64/v3"), False),
        (("linux/arm64/v8",), False),
    ],
)
def test_variants_that_node_labels_do_not_carry_are_warned_about(platforms: tuple[str, ...], warned: bool) -> None:
    assert bool(place(ServiceNeeds("s"), image(*platforms), OPEN, PREFERENCE).warnings) is warned


@pytest.mark.parametrize(
    ("weights", "first"), [({"arm64": 100, "amd64": 1}, "arm64"), ({"arm64": 1, "amd64": 100}, "amd64")]
)
def test_the_reason_names_the_preferred_architecture_first(weights: dict[str, int], first: str) -> None:
    both = ImageInfo("a:1", True, index=True, platforms=(Platform("linux", "amd64"), Platform("linux", "arm64")))
    nodes = [NodeCapacity("arm-1", "arm64", 2000, 2**33), NodeCapacity("amd-1", "amd64", 2000, 2**33)]
    made = place(ServiceNeeds("web", "a:1"), both, nodes, Preference(weights))
    assert f"prefers {first} (weights {first} 100, " in made.reason
    assert made.architectures[0] == first
    terms = made.affinity["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert [t["weight"] for t in terms] == [100, 1]
    assert terms[0]["preference"]["matchExpressions"][0]["values"] == [first]
