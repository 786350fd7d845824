"""What each step of the cut-over does, and how all of it is taken back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from hybridlab.compose.model import LABEL_NAME
from hybridlab.errors import HybridlabError, Refused
from hybridlab.ledger import now_iso
from hybridlab.models import Json
from hybridlab.plan import Step
from hybridlab.ports import Context, Kube
from hybridlab.quantity import parse_quantity
from hybridlab.sections import HealthCheck
from hybridlab.stages.base import Action
from hybridlab.stages.cut_over.health import healthy
from hybridlab.stages.cut_over.order import start_order
from hybridlab.stages.cut_over.ports import SWITCHED
from hybridlab.stages.cut_over.tunnel import leave_tunnel, need_connector, switch_tunnel, unswitch_tunnel
from hybridlab.stages.migrate import dockerside, moving
from hybridlab.stages.migrate.copying import copy_claim, source_size
from hybridlab.stages.migrate.room import Load, need_node_disks, need_room, room_of
from hybridlab.stages.migrate.side import WHERE
from hybridlab.stages.migrate.transfers import seat, transfers, workloads
from hybridlab.stages.nodes import on_all_names
from hybridlab.stages.objects import Obj
from hybridlab.wait import wait_until

NAME = "cut_over"
MARK = "hybridlab.io/cut-over-sha256"
"""Annotation on a claim: what was copied into it after the services had stopped on the Docker host."""
REST_DEADLINE_S = 300.0
ENDED = ("undone", "verified")
BACK = "hybridlab run 075 --set cut_over.direction=back"


# -- what is so --------------------------------------------------------------------------------------------------------
def is_up(live: Mapping[str, Json] | None) -> bool:
    """Whether a workload is there and wants pods."""
    if live is None:
        return False
    return live["kind"] not in ("Deployment", "StatefulSet") or int(live["spec"].get("replicas", 1)) > 0


def stopped_by_us(ctx: Context) -> tuple[str, ...]:
    """The containers that this stage stopped and did not start again, by the ledger; the last one first."""
    last: dict[str, bool] = {}
    for row in ctx.ledger.rows(stage=NAME):
        word, _, name = row.step.partition(":")
        if word == "stop":
            last.pop(name, None)
            last[name] = row.event != "undone"
    return tuple(name for name, is_stopped in reversed(last.items()) if is_stopped)


# -- the cluster's side ------------------------------------------------------------------------------------------------
def _workload(ctx: Context, service: str) -> Obj:
    return workloads(moving.move_of(ctx))[service]


def _rest(ctx: Context, step: Step) -> Mapping[str, Json]:
    return {"changed": rest(ctx, step.args["service"])}


def rest(ctx: Context, service: str) -> bool:
    """Take a service's pods away and wait until they are gone; what can't be scaled is deleted."""
    obj, kube, namespace = _workload(ctx, service), ctx.kube, ctx.params.migrate.namespace
    api, kind, name = obj["apiVersion"], obj["kind"], obj["metadata"]["name"]
    live = kube.get(api, kind, name, namespace)
    if is_up(live):
        if kind in ("Deployment", "StatefulSet"):
            kube.patch(api, kind, name, namespace, {"spec": {"replicas": 0}})
        else:
            kube.delete(api, kind, name, namespace)
    labels = f"{LABEL_NAME}={moving.pod_label(obj)}"
    wait_until(
        lambda: kube.list("v1", "Pod", namespace, labels=labels),
        lambda pods: not pods,
        what=f"the pods of {service} to be gone",
        deadline_s=REST_DEADLINE_S,
        clock=ctx.clock,
        describe=lambda pods: ", ".join(p["metadata"]["name"] for p in pods),
        next_move=f"look at: kubectl -n {namespace} get pods -l {labels}",
    )
    return is_up(live)


def _start(ctx: Context, step: Step) -> Mapping[str, Json]:
    obj = _workload(ctx, step.args["service"])
    ctx.kube.apply(obj)
    moving.wait_for_workload(ctx, obj, ctx.params.cut_over.ready_deadline_s)
    return {"ready": True}


def _check(ctx: Context, step: Step) -> Mapping[str, Json]:
    return healthy(ctx, HealthCheck.model_validate(dict(step.args)), moving.move_of(ctx))


# -- the data ----------------------------------------------------------------------------------------------------------
def _copy(ctx: Context, step: Step) -> Mapping[str, Json]:
    claim, move = moving.transfer_of(ctx, step).claim, moving.move_of(ctx)
    return copy_claim(ctx, claim, move.project.name, seat=seat(move, claim), final=False)


def _delta(ctx: Context, step: Step) -> Mapping[str, Json]:
    claim, move = moving.transfer_of(ctx, step).claim, moving.move_of(ctx)
    done = copy_claim(ctx, claim, move.project.name, seat=seat(move, claim))
    return _marked(ctx, step, done)


def _dump(ctx: Context, step: Step) -> Mapping[str, Json]:
    return _marked(ctx, step, moving.copy(ctx, step))


def _load(ctx: Context, step: Step) -> Mapping[str, Json]:
    return _marked(ctx, step, moving.load(ctx, step))


def _marked(ctx: Context, step: Step, done: Mapping[str, Json]) -> Mapping[str, Json]:
    _mark(ctx, step.args["claim"], str(done["sha256"]))
    return done


def _mark(ctx: Context, claim: str, value: str | None) -> None:
    body = {"metadata": {"annotations": {MARK: value}}}
    ctx.kube.patch("v1", "PersistentVolumeClaim", claim, ctx.params.migrate.namespace, body)


# -- the Docker host's side --------------------------------------------------------------------------------------------
def _stop_old(ctx: Context, step: Step) -> Mapping[str, Json]:
    return {"stopped": list(dockerside.stop(ctx, [step.args["container"]], grace_s=ctx.params.cut_over.stop_timeout_s))}


def _start_old(ctx: Context, step: Step) -> Mapping[str, Json]:
    name = step.args["container"]
    dockerside.start(ctx, [name])
    ctx.ledger.add(NAME, f"stop:{name}", "undone", effect="change", target=step.target)
    return {"started": [name]}


# -- before, between and after -----------------------------------------------------------------------------------------
def _preflight(ctx: Context, step: Step) -> Mapping[str, Json]:
    """Whether claims and disks have room, the server takes every workload, and the way in is there. Changes nothing."""
    move = moving.move_of(ctx)
    need_connector(ctx, move)
    sizes: dict[str, int] = {}
    places = {}
    for transfer in transfers(ctx.params, move):
        if transfer.method == "dump":
            continue
        size = source_size(ctx, transfer.claim, move.project.name)
        room = int(parse_quantity(transfer.claim.size))
        sizes[transfer.claim.name] = size
        places[transfer.claim.name] = seat(move, transfer.claim)
        if size > room:
            raise Refused(
                f"claim {transfer.claim.name} is too small",
                why=f"{transfer.claim.source} has {size:,} bytes, the claim {room:,}",
                next_move="raise migrate.claim_gb, delete the claim, and run 070 again",
            )
    rooms = on_all_names(list(sizes), lambda name: room_of(ctx, name, places[name]))
    loads = [Load(name, size, rooms[name]) for name, size in sizes.items()]
    need_room(ctx, loads)
    need_node_disks(ctx, sum(load.more for load in loads))
    for obj in workloads(move).values():
        ctx.kube.apply(obj, dry_run=True)
    free = {name: room.free for name, room in rooms.items()}
    return {"bytes": sizes, "free": free, "workloads": len(workloads(move))}


def _switch_port(ctx: Context, step: Step) -> Mapping[str, Json]:
    return {"uid": ctx.kube.apply(step.args["object"])["metadata"]["uid"]}


def _unswitch(ctx: Context, step: Step) -> Mapping[str, Json]:
    return {"changed": ctx.kube.delete("v1", "Service", step.args["name"], ctx.params.migrate.namespace)}


def _finish(ctx: Context, step: Step) -> Mapping[str, Json]:
    return _note_side(ctx, "cluster")


def _finish_back(ctx: Context, step: Step) -> Mapping[str, Json]:
    _forget_data(ctx)
    return _note_side(ctx, "docker")


def _note_side(ctx: Context, side: str) -> Mapping[str, Json]:
    value = f"{side} {now_iso()}"
    body = {"metadata": {"annotations": {WHERE: value}}}
    ctx.kube.patch("v1", "Namespace", ctx.params.migrate.namespace, None, body)
    return {"side": side}


def _forget_data(ctx: Context) -> None:
    """The claims' data are no longer the last word: the next cut-over takes them anew."""
    namespace = ctx.params.migrate.namespace
    for transfer in transfers(ctx.params, moving.move_of(ctx)):
        if ctx.kube.get("v1", "PersistentVolumeClaim", transfer.claim.name, namespace) is not None:
            _mark(ctx, transfer.claim.name, None)


# -- taking it back ----------------------------------------------------------------------------------------------------
def roll_back(ctx: Context) -> tuple[str, ...]:
    """Services at rest in the cluster, those that we stopped started on the Docker host; what was undone, in order.

    May be repeated; every undone step has its row in the ledger.
    """
    undone = []
    kube: Kube = ctx.kube
    namespace = ctx.params.migrate.namespace
    for port in kube.list("v1", "Service", namespace, labels=f"{SWITCHED}=true"):
        name = port["metadata"]["name"]
        kube.delete("v1", "Service", name, namespace)
        undone.append(_undone(ctx, f"switch:{name.removesuffix('-published')}", f"Service {name}"))
    if leave_tunnel(ctx):
        undone.append(_undone(ctx, "switch:tunnel", "cloudflared"))
    move = moving.move_of(ctx)
    for service in reversed(start_order(move.project, workloads(move))):
        if rest(ctx, service):
            undone.append(_undone(ctx, f"start:{service}", f"service {service}"))
    for name in stopped_by_us(ctx):
        dockerside.start(ctx, [name])
        undone.append(_undone(ctx, f"stop:{name}", f"container {name}"))
    _forget_data(ctx)
    _note_side(ctx, "docker")
    return tuple(undone)


def _undone(ctx: Context, step: str, target: str) -> str:
    ctx.ledger.add(NAME, step, "undone", effect="change", target=target)
    ctx.say(f"{target}: {step} undone")
    return step


def _guarded(action: Action) -> Action:
    """The action; when it fails, everything is rolled back where the params say so, and the failure told."""

    def act(ctx: Context, step: Step) -> Mapping[str, Json]:
        try:
            return action(ctx, step)
        except HybridlabError as error:
            if not ctx.params.cut_over.roll_back:
                error.next_move = f"{error.next_move}; to go back: {BACK}".removeprefix("; ")
                raise
            lock: threading.Lock = ctx.notes.setdefault("cut_over-roll-back", threading.Lock())
            try:
                with lock:
                    undone = roll_back(ctx)
            except HybridlabError as second:
                ctx.ledger.add(NAME, step.id, "unknown", target=step.target, detail={"roll_back": str(second)})
                error.next_move = f"rolling back failed too ({second.what}): run {BACK}"
                raise error from second
            # a fact, not a move: it must be told as well where the step's outcome is unknown
            told = f"rolled back ({len(undone)} steps): the services run on the Docker host again"
            error.why = f"{error.why}; {told}".removeprefix("; ")
            raise

    return act


def _table() -> dict[str, Action]:
    plain: dict[str, Callable[[Context, Step], Mapping[str, Json]]] = {
        "preflight": _preflight,
        "rest": _rest,
        "copy": _copy,
        "start-old": _start_old,
        "unswitch": _unswitch,
        "unswitch-tunnel": unswitch_tunnel,
        "finish-back": _finish_back,
    }
    guarded = {
        "stop-old": _stop_old,
        "delta": _delta,
        "dump": _dump,
        "load": _load,
        "start": _start,
        "check": _check,
        "switch-port": _switch_port,
        "switch-tunnel": switch_tunnel,
        "finish": _finish,
    }
    return {**plain, **{name: _guarded(action) for name, action in guarded.items()}}


ACTIONS: Mapping[str, Action] = _table()
