"""Benchmark rounds turned into medians, ratios with intervals, and scheduler weights. Pure."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hybridlab.models import Json

CPU_SHARE_MIN = 0.9  # below this share of a core obtained, a node was throttled or stolen from
CV_MAX = 0.10
BOOTSTRAP_ROUNDS = 2000
STEERING_TEST = "cpu_single"  # what most services wait for; fsync follows the volume, not the architecture


@dataclass(frozen=True)
class Score:
    """One class of test on one node over all rounds. ``cv`` is the coefficient of variation."""

    node: str
    arch: str
    test: str
    unit: str
    median: float
    low: float
    high: float
    cv: float
    cpu_share: float


@dataclass(frozen=True)
class Comparison:
    """arm64 against amd64 in one class: the ratio with its 95 % interval, and whether it may steer a placement."""

    test: str
    ratio: float
    low: float
    high: float
    significant: bool
    why: str


def rates(one_round: Mapping[str, Json]) -> dict[str, tuple[float, str, float]]:
    """A round's result by test: rate per wall-clock second, unit, and the share of CPU obtained."""
    return {
        str(test): (float(row["rate"]), str(row["unit"]), float(row.get("cpu_share", 1.0)))
        for test, row in one_round.items()
    }


def scores(data: Mapping[str, Json]) -> tuple[Score, ...]:
    """Medians and spread by node and test, from the rounds of the evidence."""
    found = []
    for node, rounds in data["rounds"].items():
        tests: dict[str, list[tuple[float, str, float]]] = {}
        for one in rounds:
            for test, value in rates(one).items():
                tests.setdefault(test, []).append(value)
        for test, values in tests.items():
            speeds = [v[0] for v in values]
            mean = statistics.fmean(speeds)
            cv = statistics.stdev(speeds) / mean if len(speeds) > 1 and mean else 0.0
            share = statistics.median(v[2] for v in values)
            found.append(
                Score(
                    node,
                    data["arch"][node],
                    test,
                    values[0][1],
                    statistics.median(speeds),
                    min(speeds),
                    max(speeds),
                    cv,
                    share,
                )
            )
    return tuple(found)


def compare(data: Mapping[str, Json], *, seed: int = 0) -> tuple[Comparison, ...]:
    """arm64 against amd64 by test: exp(mean(log(a/b))) over paired rounds, with a paired bootstrap interval.

    Not significant where the interval includes 1, a node varied by more than 10 %, or a node did not get its CPU.
    """
    by_arch: dict[str, list[str]] = {}
    for node, arch in data["arch"].items():
        by_arch.setdefault(arch, []).append(node)
    if set(by_arch) != {"arm64", "amd64"}:
        return ()
    all_scores = scores(data)
    found = []
    for test in dict.fromkeys(s.test for s in all_scores):
        pairs = _paired_logs(data, by_arch, test)
        if not pairs:
            continue
        ratio, low, high = _interval(pairs, seed)
        rows = [s for s in all_scores if s.test == test]
        why = _doubt(rows, len(pairs), low, high)
        found.append(Comparison(test, ratio, low, high, not why, why or f"{ratio:.2f} times as fast on arm64"))
    return tuple(found)


def _paired_logs(data: Mapping[str, Json], by_arch: Mapping[str, Sequence[str]], test: str) -> list[float]:
    logs = []
    count = min(len(rounds) for rounds in data["rounds"].values())
    for number in range(count):
        means = {}
        for arch, nodes in by_arch.items():
            values = [
                rates(data["rounds"][n][number])[test][0] for n in nodes if test in rates(data["rounds"][n][number])
            ]
            if values and min(values) > 0:
                means[arch] = statistics.fmean(math.log(v) for v in values)
        if len(means) == 2:
            logs.append(means["arm64"] - means["amd64"])
    return logs


def _interval(logs: Sequence[float], seed: int) -> tuple[float, float, float]:
    chance = random.Random(seed)
    means = sorted(statistics.fmean(chance.choices(logs, k=len(logs))) for _ in range(BOOTSTRAP_ROUNDS))
    low, high = means[int(0.025 * BOOTSTRAP_ROUNDS)], means[int(0.975 * BOOTSTRAP_ROUNDS) - 1]
    return math.exp(statistics.fmean(logs)), math.exp(low), math.exp(high)


def _doubt(rows: Sequence[Score], rounds: int, low: float, high: float) -> str:
    if rounds < 3:
        return f"only {rounds} rounds: at least 3 are needed"
    if low <= 1 <= high:
        return f"no clear difference (95 % interval {low:.2f}–{high:.2f})"
    unsteady = [s.node for s in rows if s.cv > CV_MAX]
    if unsteady:
        return f"unsteady (over 10 % spread) on {', '.join(unsteady)}"
    starved = [s.node for s in rows if s.cpu_share < CPU_SHARE_MIN]
    if starved:
        return f"did not get its CPU: {', '.join(starved)} (throttled or stolen from)"
    return ""


def weights(data: Mapping[str, Json]) -> tuple[dict[str, int] | None, str]:
    """Scheduler weights by architecture (1–100) where the difference is significant, else None; and the reason."""
    found = next((c for c in compare(data) if c.test == STEERING_TEST), None)
    if found is None:
        return None, "the benchmark did not compare two architectures"
    if not found.significant:
        return None, f"{STEERING_TEST}: {found.why}"
    speeds = {"arm64": found.ratio, "amd64": 1.0}
    top = max(speeds.values())
    made = {arch: max(1, round(100 * speed / top)) for arch, speed in speeds.items()}
    return made, f"{STEERING_TEST} measured: {found.why} (95 % interval {found.low:.2f}–{found.high:.2f})"
