"""Benchmark rounds into medians, ratios with intervals, and weights that only a clear difference may set."""

from __future__ import annotations

from typing import Any

import pytest

from hybridlab.stages.scores import compare, rates, scores, weights

ARCH = {"arm-1": "arm64", "arm-2": "arm64", "amd-1": "amd64"}


def rounds(*speeds: float, share: float = 1.0, test: str = "cpu_single") -> list[dict[str, Any]]:
    return [{test: {"rate": s, "unit": "MB/s", "cpu_share": share}} for s in speeds]


def evidence(arm: list[Any], amd: list[Any], **more: Any) -> dict[str, Any]:
    return {"arch": {"arm-1": "arm64", "amd-1": "amd64"}, "rounds": {"arm-1": arm, "amd-1": amd}, **more}


CLEAR = evidence(rounds(200, 202, 198), rounds(100, 101, 99))


def test_rates() -> None:
    assert rates({"t": {"rate": 2, "unit": "x"}}) == {"t": (2.0, "x", 1.0)}
    assert rates({"t": {"rate": 2, "unit": "x", "cpu_share": 0.5}})["t"][2] == 0.5


def test_medians_and_spread() -> None:
    rows = {s.node: s for s in scores(evidence(rounds(1, 9, 2), rounds(4, 4, 4, share=0.5)))}
    arm = rows["arm-1"]
    assert (arm.median, arm.low, arm.high, arm.unit, arm.arch, arm.test) == (2, 1, 9, "MB/s", "arm64", "cpu_single")
    assert arm.cv == pytest.approx(4.3589 / 4, rel=1e-3)
    assert (rows["amd-1"].cv, rows["amd-1"].cpu_share) == (0, 0.5)
    assert scores(evidence(rounds(5), rounds(5)))[0].cv == 0


def test_the_ratio_is_arm_over_amd_with_its_interval() -> None:
    (found,) = compare(CLEAR)
    assert found.ratio == pytest.approx(2.0, rel=0.01)
    assert found.low <= found.ratio <= found.high
    assert (found.significant, found.why) == (True, "2.00 times as fast on arm64")
    (turned,) = compare(evidence(rounds(100, 101, 99), rounds(200, 202, 198)))
    assert turned.ratio == pytest.approx(0.5, rel=0.01)
    assert turned.significant


def test_the_interval_is_the_same_every_time() -> None:
    assert compare(CLEAR) == compare(CLEAR)


def test_the_interval_widens_with_the_spread() -> None:
    (steady,) = compare(CLEAR)
    (loose,) = compare(evidence(rounds(150, 260, 200), rounds(100, 101, 99)))
    assert loose.high - loose.low > steady.high - steady.low
    assert 1.4 < loose.low < 1.6
    assert 2.4 < loose.high < 2.7


def test_nodes_of_one_architecture_are_averaged() -> None:
    data = {
        "arch": ARCH,
        "rounds": {"arm-1": rounds(400, 400, 400), "arm-2": rounds(100, 100, 100), "amd-1": rounds(100, 100, 100)},
    }
    assert compare(data)[0].ratio == pytest.approx(2.0)  # the geometric mean of 4 and 1


@pytest.mark.parametrize(
    ("arm", "amd", "why"),
    [
        (rounds(200, 202), rounds(100, 101), "only 2 rounds"),
        (rounds(101, 99, 100), rounds(100, 101, 99), "no clear difference"),
        (rounds(200, 300, 250), rounds(100, 101, 99), "unsteady (over 10 % spread) on arm-1"),
        (rounds(200, 202, 198), rounds(100, 101, 99, share=0.89), "did not get its CPU: amd-1"),
    ],
)
def test_doubts(arm: list[Any], amd: list[Any], why: str) -> None:
    (found,) = compare(evidence(arm, amd))
    assert not found.significant
    assert why in found.why
    chosen, said = weights(evidence(arm, amd))
    assert chosen is None
    assert why in said


def test_at_the_edges_of_doubt() -> None:
    assert compare(evidence(rounds(200, 202, 198), rounds(100, 101, 99, share=0.9)))[0].significant
    assert compare(evidence(rounds(180, 200, 219), rounds(100, 101, 99)))[0].significant  # 9.8 % spread


def test_weights_by_the_steering_test() -> None:
    assert weights(CLEAR)[0] == {"arm64": 100, "amd64": 50}
    turned = evidence(rounds(100, 101, 99), rounds(200, 202, 198))
    assert weights(turned)[0] == {"arm64": 50, "amd64": 100}
    assert "cpu_single measured: 2.00 times as fast on arm64 (95 % interval" in weights(CLEAR)[1]
    huge = evidence(rounds(1e5, 1e5, 1e5), rounds(1, 1, 1))
    assert weights(huge)[0] == {"arm64": 100, "amd64": 1}


def test_other_tests_do_not_steer() -> None:
    data = evidence(rounds(200, 202, 198, test="fsync"), rounds(100, 101, 99, test="fsync"))
    assert compare(data)[0].significant
    assert weights(data) == (None, "the benchmark did not compare two architectures")


def test_one_architecture_compares_nothing() -> None:
    only_amd = {"arch": {"a": "amd64"}, "rounds": {"a": rounds(1, 1, 1)}}
    assert compare(only_amd) == ()
    data = {"arch": {"arm-1": "arm64"}, "rounds": {"arm-1": rounds(1, 1, 1)}}
    assert compare(data) == ()
    assert weights(data)[0] is None


def test_rounds_without_a_result_are_left_out() -> None:
    (found,) = compare(evidence(rounds(200, 0, 198, 202), rounds(100, 100, 99, 101)))
    assert found.ratio == pytest.approx(2.0, rel=0.02)
