"""040: ARM against AMD, measured: a portable suite on every node, rounds interleaved, medians with their spread."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field

from hybridlab.models import Check, Finding, Json
from hybridlab.params import Params
from hybridlab.plan import Plan, Step
from hybridlab.ports import Context
from hybridlab.stages.base import Action, Upstream
from hybridlab.stages.nodes import HELPER, arch_of, install_helper, node_hosts, on_all
from hybridlab.stages.scores import rates

NAME = "benchmark"
NEEDS = ("provision",)
EVIDENCE = "benchmark"
SAME_MACHINE = (
    "in the lab all nodes are this machine (a micro is throttled to its share): no word about real ARM or AMD"
)


@dataclass(frozen=True)
class Seen:
    """Which nodes there are, and whether the evidence we have may still be relied on (else why not)."""

    nodes: Mapping[str, str] = field(default_factory=dict)  # name → instance id
    usable: bool = False
    why: str = "there is none yet"


def inputs(params: Params, nodes: Mapping[str, str]) -> dict[str, Json]:
    """A rebuilt node, or another suite, makes evidence stale."""
    return {"nodes": sorted(nodes.items()), "rounds": params.benchmark.rounds, "seconds": params.benchmark.seconds}


def look(ctx: Context) -> Seen:
    """Which machines the nodes are, and how old the last measurement is."""
    nodes = {name: node.instance_id for name, node in node_hosts(ctx).items()}
    evidence, why = ctx.evidence.usable(
        EVIDENCE,
        inputs=_raw_inputs(ctx.params, nodes),
        max_age_h=ctx.params.benchmark.max_age_h,
        now=ctx.clock.now(),
    )
    return Seen(nodes, evidence is not None, why)


def _raw_inputs(params: Params, nodes: Mapping[str, str]) -> dict[str, Json]:
    # ids are hashed here: canonical JSON drops cloud ids, and a rebuilt node must count as another one
    marks = {name: instance.rsplit(".", 1)[-1] for name, instance in nodes.items()}
    return inputs(params, marks)


def plan(params: Params, seen: Seen, upstream: Upstream) -> Plan:
    """One step that measures every node, or none while the evidence is good."""
    findings = [Finding("note", "lab", SAME_MACHINE)] if params.site == "lab" else []
    if seen.usable:
        findings.append(Finding("note", "evidence", f"measured already: {seen.why}"))
        return Plan(NAME, (), {"measured": True}, tuple(findings))
    names = [w.name for w in params.wishes]
    step = Step(
        "measure",
        "measure",
        ", ".join(names),
        f"how fast is each node? {seen.why}",
        "create",
        {"nodes": names, "rounds": params.benchmark.rounds, "seconds": params.benchmark.seconds},
    )
    return Plan(NAME, (step,), {"measured": True}, tuple(findings))


def _measure(ctx: Context, step: Step) -> Mapping[str, Json]:
    """Run the suite round by round, all nodes in turn within a round, so that drift hits all alike.

    On real sites the nodes of a round run at the same time (they are different machines); in the lab one by one.
    """
    hosts = node_hosts(ctx)
    on_all(hosts, lambda node: install_helper(ctx, node))
    rounds: dict[str, list[dict[str, Json]]] = {name: [] for name in hosts}
    argv = ["python3", HELPER, "bench", "--rounds", "1", "--seconds", str(step.args["seconds"]), "--dir", "/var/tmp"]
    for number in range(step.args["rounds"]):
        order = list(hosts)
        random.shuffle(order)
        for name in order:
            ctx.say(f"round {number + 1} of {step.args['rounds']}: {name}")
            result = ctx.hosts.run(hosts[name].host, argv, timeout_s=300)
            rounds[name] += json.loads(result.stdout)["rounds"]
    facts = {
        name: json.loads(ctx.hosts.run(node.host, ["python3", HELPER, "facts"], timeout_s=60).stdout)
        for name, node in hosts.items()
    }
    data = {
        "rounds": rounds,
        "arch": {name: arch_of(ctx, node) for name, node in hosts.items()},
        "facts": facts,
        "same_machine": ctx.params.site == "lab",
    }
    nodes = {name: node.instance_id for name, node in hosts.items()}
    ctx.evidence.save(EVIDENCE, data, inputs=_raw_inputs(ctx.params, nodes))
    return {"nodes": len(hosts), "rounds": step.args["rounds"]}


ACTIONS: Mapping[str, Action] = {"measure": _measure}


def verify(ctx: Context) -> tuple[Check, ...]:
    """Every node was measured in every round."""
    evidence = ctx.evidence.load(EVIDENCE)
    if evidence is None:
        return (Check("benchmark", False, "there is no evidence", "run 040 again"),)
    checks = []
    for wish in ctx.params.wishes:
        rounds = evidence.data["rounds"].get(wish.name, [])
        tests = sorted({t for one in rounds for t in rates(one)})
        ok = len(rounds) == ctx.params.benchmark.rounds and bool(tests)
        checks.append(Check(f"node {wish.name}", ok, f"{len(rounds)} rounds of {', '.join(tests) or 'nothing'}"))
    return tuple(checks)
