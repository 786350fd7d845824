"""The steps and actions that bring data into claims, by each claim's way."""

from __future__ import annotations

from collections.abc import Mapping

from hybridlab.compose.model import LABEL_NAME
from hybridlab.errors import BadInput
from hybridlab.models import Json
from hybridlab.plan import Step
from hybridlab.ports import Context
from hybridlab.stages.base import Action
from hybridlab.stages.helperpod import pod_ready, why_waiting
from hybridlab.stages.migrate.copying import copy_claim
from hybridlab.stages.migrate.dockerside import stopped
from hybridlab.stages.migrate.dumps import dump_into_claim, load_dump
from hybridlab.stages.migrate.project import Move, load_move
from hybridlab.stages.migrate.transfers import Transfer, seat, transfers, workloads
from hybridlab.stages.objects import Obj, deployment_ready
from hybridlab.wait import wait_until

READY_DEADLINE_S = 600.0
NOTE = "migrate"  # the key of the move in the context's notes


def copy_step(transfer: Transfer, host: str) -> Step:
    claim = transfer.claim
    how = {"copy": "", "stop": ", stopped meanwhile", "dump": f", a dump of {transfer.service}"}[transfer.method]
    return Step(
        f"copy:{claim.name}",
        "copy",
        f"claim {claim.name}",
        f"{claim.kind} {claim.source} on {host}, used by {', '.join(claim.services)}{how}",
        "create",
        {"claim": claim.name, "source": claim.source, "method": transfer.method},
        # one at a time where services are stopped: another copy must not start them under this one
        batch="" if transfer.method == "stop" else "copies",
    )


def load_step(transfer: Transfer, host: str) -> Step:
    claim, tool = transfer.claim, transfer.tool
    return Step(
        f"load:{claim.name}",
        "load",
        f"claim {claim.name}",
        f"{tool.database if tool else ''} dump of {transfer.service} on {host}, into the new one before others call it",
        "create",
        {"claim": claim.name, "service": transfer.service},
    )


def move_of(ctx: Context) -> Move:
    """The move that the look found, or a new one. Raises BadInput where the params name no compose file."""
    move: Move | None = ctx.notes.get(NOTE) or load_move(ctx, ctx.params_base)
    if move is None:
        raise BadInput("migrate.compose is empty", next_move="name a compose file in the params")
    return move


def transfer_of(ctx: Context, step: Step) -> Transfer:
    """The transfer of a step's claim."""
    return next(t for t in transfers(ctx.params, move_of(ctx)) if t.claim.name == step.args["claim"])


def copy(ctx: Context, step: Step) -> Mapping[str, Json]:
    """Fill a claim that nothing uses: a copy, a copy with its services stopped, or a dump as a file."""
    transfer, move = transfer_of(ctx, step), move_of(ctx)
    project, place = move.project.name, seat(move, transfer.claim)
    if transfer.method == "dump" and transfer.tool is not None:
        return dump_into_claim(ctx, transfer.claim, transfer.service, project, transfer.tool, place)
    if transfer.method == "stop":
        with stopped(ctx, transfer.claim.services, project, grace_s=ctx.params.cut_over.stop_timeout_s):
            return copy_claim(ctx, transfer.claim, project, seat=place)
    return copy_claim(ctx, transfer.claim, project, seat=place)


def load(ctx: Context, step: Step) -> Mapping[str, Json]:
    """Wait for the new database, then load the old one's dump into it."""
    transfer, move = transfer_of(ctx, step), move_of(ctx)
    if transfer.tool is None:
        raise BadInput(f"claim {transfer.claim.name} is not filled from a dump any more", next_move="plan again")
    workload = workloads(move)[transfer.service]
    wait_for_workload(ctx, workload, READY_DEADLINE_S)
    return load_dump(ctx, transfer.claim, transfer.service, move.project.name, transfer.tool, pod_label(workload))


def pod_label(workload: Obj) -> str:
    return str(workload["spec"]["template"]["metadata"]["labels"][LABEL_NAME])


def wait_for_workload(ctx: Context, workload: Obj, deadline_s: float) -> None:
    """Until a Deployment or StatefulSet has all its pods Ready; other kinds have nothing to wait for here."""
    kind, name = workload["kind"], workload["metadata"]["name"]
    if kind not in ("Deployment", "StatefulSet"):
        return
    namespace = ctx.params.migrate.namespace

    def state(_: object) -> str:
        pods = ctx.kube.list("v1", "Pod", namespace, labels=f"{LABEL_NAME}={pod_label(workload)}")
        return "; ".join(why_waiting(ctx.kube, p) for p in pods if not pod_ready(p)) or "no pod"

    wait_until(
        lambda: ctx.kube.get("apps/v1", kind, name, namespace),
        deployment_ready,
        what=f"{name} to be Ready",
        deadline_s=deadline_s,
        clock=ctx.clock,
        describe=state,
        next_move=f"look at: kubectl -n {namespace} get pods",
    )


MOVING: Mapping[str, Action] = {"copy": copy, "load": load}
