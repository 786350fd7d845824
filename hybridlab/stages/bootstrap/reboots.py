"""On request (``bootstrap.prove_reboot``): every node rebooted once, to prove that what 030 did survives that.

One node at a time, agents first, each drained before and in use again after. A request is remembered as evidence with
the node's boot id *before* the reboot is asked for: a run that was killed in between finds another boot id and only
proves what is left, and a proved node is not rebooted again until 030 changes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hybridlab.ledger import Row
from hybridlab.models import Check, NodeWish
from hybridlab.params import Params
from hybridlab.plan import Step
from hybridlab.ports import Context

KIND = "reboots"
CHANGES = ("open-firewall", "swap", "install", "upgrade", "configure")
"""Steps after which a proof says nothing any more."""


@dataclass(frozen=True)
class Request:
    """One node's reboot: the boot it was asked in and when; the boot it was proved in and when, empty until then."""

    asked_boot: str
    asked: str
    proved_boot: str = ""
    proved: str = ""


def requests(ctx: Context) -> dict[str, Request]:
    """What was asked for, by node; without those after which 030 changed the node."""
    evidence = ctx.evidence.load(KIND)
    if evidence is None or evidence.cluster != ctx.params.cluster:
        return {}
    rows = ctx.ledger.rows(stage="bootstrap")
    found = {name: Request(**fields) for name, fields in evidence.data["nodes"].items()}
    return {name: r for name, r in found.items() if not _changed_since(rows, name, r.proved or r.asked)}


def _changed_since(rows: tuple[Row, ...], name: str, when: str) -> bool:
    ids = {f"{action}:{name}" for action in CHANGES}
    return any(r.step in ids and r.event == "done" and r.effect != "none" and r.time > when for r in rows)


def remember(ctx: Context, name: str, request: Request) -> None:
    kept = {**requests(ctx), name: request}
    ctx.evidence.save(KIND, {"nodes": {n: r.__dict__ for n, r in kept.items()}}, inputs={})


# -- the plan ----------------------------------------------------------------------------------------------------------
def reboot_steps(params: Params, asked: Mapping[str, Request], changing: set[str]) -> list[Step]:
    """For each node that wants it: drain, reboot, in use again. ``changing``: nodes that this plan changes before."""
    if not params.bootstrap.prove_reboot:
        return []
    steps: list[Step] = []
    for wish in sorted(params.wishes, key=lambda w: w.role == "server"):
        request = asked.get(wish.name)
        if wish.name in changing or request is None:
            why = "do its rules, K3s and traffic survive a reboot? bootstrap.prove_reboot asks"
        elif not request.proved:
            why = f"its reboot was asked for at {request.asked[:16]}, and what came back is not proved yet"
        else:
            continue
        steps += _one(params, wish, why)
    return steps


def _one(params: Params, wish: NodeWish, why: str) -> list[Step]:
    name, args = wish.name, {"node": wish.name}
    reboot = Step(f"reboot:{name}", "reboot", name, why, "change", args)
    if len(params.wishes) == 1:
        return [reboot]  # its pods have nowhere to go
    target = f"node {name}"
    return [
        Step(f"drain-to-reboot:{name}", "drain", target, "its pods move before it is rebooted", "change", args),
        reboot,
        Step(f"use-again:{name}", "uncordon", target, "pods may come again", "change", args),
    ]


# -- the proof ---------------------------------------------------------------------------------------------------------
def reboot_checks(ctx: Context) -> tuple[Check, ...]:
    """For each node whether a reboot proved it, where that is asked for."""
    if not ctx.params.bootstrap.prove_reboot:
        return ()
    checks, asked = [], requests(ctx)
    for wish in ctx.params.wishes:
        request = asked.get(wish.name)
        ok = request is not None and bool(request.proved)
        said = f"rules, K3s and node came back by themselves, {request.proved[:16]}" if request and ok else "not proved"
        checks.append(Check(f"reboot {wish.name}", ok, said, "" if ok else "run 030 again"))
    return tuple(checks)
