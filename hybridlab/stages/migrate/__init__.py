"""070: services from Docker Compose: images placed by architecture, data copied with checksums, pods where planned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from hybridlab.compose import Placement
from hybridlab.models import Check, Finding, ImageInfo, Json
from hybridlab.params import Params
from hybridlab.plan import Plan, Step
from hybridlab.ports import Context
from hybridlab.stages.base import Action, Upstream
from hybridlab.stages.helperpod import pod_ready, why_waiting
from hybridlab.stages.migrate.copying import COPIED
from hybridlab.stages.migrate.moving import MOVING, copy_step, load_step, move_of
from hybridlab.stages.migrate.project import WORKLOADS, Move, load_move
from hybridlab.stages.migrate.side import back_since
from hybridlab.stages.migrate.transfers import (
    RUNNABLE,
    Transfer,
    callers,
    choice_findings,
    owned,
    placed,
    transfers,
    workloads,
)
from hybridlab.stages.objects import Differences, Obj, apply_object, apply_steps, look_objects, ref
from hybridlab.wait import wait_until

__all__ = ["ACTIONS", "NAME", "NEEDS", "RUNNABLE", "Seen", "images_table", "look", "plan", "verify", "wanted_objects"]

NAME = "migrate"
NEEDS = ("storage", "benchmark")
READY_DEADLINE_S = 600.0


@dataclass(frozen=True)
class Seen:
    """The move as it would be, the objects against it, and which claims hold copied data (digest by claim).

    ``back_since``: when 075 gave the services back to the Docker host; empty where it did not.
    """

    move: Move | None = None
    objects: Differences = field(default_factory=Differences)
    copied: Mapping[str, str] = field(default_factory=dict)
    docker_host: str = ""
    back_since: str = ""


def look(ctx: Context) -> Seen:
    """Read the compose file, ask the registries, and compare with the cluster."""
    move = load_move(ctx, ctx.params_base)
    ctx.notes[NAME] = move
    if move is None:
        return Seen()
    kube = ctx.kube_or_none
    copied = {}
    for claim in kube.list("v1", "PersistentVolumeClaim", ctx.params.migrate.namespace) if kube else ():
        mark = claim["metadata"].get("annotations", {}).get(COPIED)
        if mark:
            copied[claim["metadata"]["name"]] = mark
    host = ctx.params.migrate.docker_host
    objects = look_objects(kube, wanted_objects(move))
    return Seen(move, objects, copied, host.address if host else "", _back_since(ctx))


def _back_since(ctx: Context) -> str:
    kube = ctx.kube_or_none
    return back_since(kube.get("v1", "Namespace", ctx.params.migrate.namespace)) if kube else ""


def wanted_objects(move: Move) -> tuple[Obj, ...]:
    """Everything but what belongs to services that could not run anywhere: their pods would only crash or wait."""
    good = placed(move)
    idle = {claim.name for claim in move.manifests.claims if not any(s in good for s in claim.services)}
    return tuple(
        obj
        for obj, owner in owned(move)
        if (not owner or owner in good)
        and not (obj["kind"] == "PersistentVolumeClaim" and obj["metadata"]["name"] in idle)
    )


def plan(params: Params, seen: Seen, upstream: Upstream) -> Plan:
    """Namespace, settings, claims and Services first; then the data; then the workloads.

    A database that is loaded from a dump must run first: its workload comes before its data, the others after.
    """
    move = seen.move
    if move is None:
        note = Finding("note", "migrate.compose", "no compose file is named: nothing to move")
        return Plan(NAME, (), {"namespace": params.migrate.namespace}, (note,))
    findings = [*_findings(params, move), *choice_findings(params, move)]
    wanted = wanted_objects(move)
    reasons = {ref(o): _reason(o, owner, move) for o, owner in owned(move)}
    running = {s for s, o in workloads(move).items() if seen.objects.paths.get(ref(o)) != ("",)}
    copies, loads = _plan_data(params, seen, move, running, findings)
    early = [ref(workloads(move)[t.service]) for t in loads]
    steps = apply_steps([o for o in wanted if o["kind"] not in WORKLOADS], seen.objects, reasons)
    steps += [copy_step(t, seen.docker_host) for t in copies]
    if params.migrate.start and not seen.back_since:
        steps += apply_steps([o for o in wanted if ref(o) in early], seen.objects, reasons)
        steps += [load_step(t, seen.docker_host) for t in loads]
        late = [o for o in wanted if o["kind"] in WORKLOADS and ref(o) not in early]
        steps += apply_steps(late, seen.objects, reasons)
    else:
        findings.append(_not_started(seen, bool(loads)))
    expected = {"namespace": params.migrate.namespace, "claims": [c.name for c in move.manifests.claims]}
    return Plan(NAME, tuple(_with_secrets(s) for s in steps), expected, tuple(findings))


def _plan_data(
    params: Params, seen: Seen, move: Move, running: set[str], findings: list[Finding]
) -> tuple[list[Transfer], list[Transfer]]:
    """What is to be copied before the workloads come, and what is to be loaded into running databases."""
    copies: list[Transfer] = []
    loads: list[Transfer] = []
    if not seen.docker_host:
        if move.manifests.claims:
            text = "no Docker host is named: claims start empty, no data are copied"
            findings.append(Finding("note", "migrate.docker_host", text))
        return copies, loads
    for transfer in transfers(params, move):
        claim = transfer.claim
        if claim.name in seen.copied:
            continue
        # a database that waits for its dump runs on its claim already; those who call it must not
        users = callers(transfer.service, move) if transfer.loads else set(claim.services)
        if users & running:
            findings.append(_busy(claim.name, sorted(users & running)))
        else:
            (loads if transfer.loads else copies).append(transfer)
    return copies, loads


def _not_started(seen: Seen, loads: bool) -> Finding:
    """Why no workload is planned. What went back runs on the Docker host: both would be written to."""
    rest = ", so no dump is loaded" if loads else ""
    if seen.back_since:
        text = f"075 gave the services back to the Docker host ({seen.back_since}): none is started here{rest}"
        return Finding("warning", "workloads", text, "run 075 to move them again; it takes their data anew")
    return Finding(
        "note", "workloads", f"migrate.start is false: no workload is started{rest}", "075-cut-over starts them"
    )


def _busy(claim: str, services: list[str]) -> Finding:
    return Finding(
        "warning",
        f"claim {claim}",
        f"not copied: {', '.join(services)} {'runs' if len(services) == 1 else 'run'} on it already",
        "its data are whatever the service wrote; delete the workload and run 070 again to copy",
    )


def _reason(obj: Obj, owner: str, move: Move) -> str:
    if obj["kind"] in WORKLOADS and owner in move.manifests.placements:
        return move.manifests.placements[owner].reason
    notes: Mapping[str, str] = obj["metadata"].get("annotations", {})
    return notes.get("hybridlab.io/why") or (f"service {owner}" if owner else "shared by the services")


def _with_secrets(step: Step) -> Step:
    """A Secret's values are not in the plan; its action takes them from the conversion."""
    return replace(step, action="apply-secret") if step.target.startswith("Secret/") else step


def _findings(params: Params, move: Move) -> list[Finding]:
    found = []
    for service, placement in move.manifests.placements.items():
        image = move.manifests.images.get(service, service)
        commands = "; ".join(move.manifests.commands.get(service, ()))
        if placement.kind == "none":
            found.append(
                Finding("warning", service, f"{image}: {placement.reason}", commands or placement.remedy, True)
            )
        elif placement.kind == "unknown":
            found.append(
                Finding(
                    "warning",
                    service,
                    f"{image}: placement unknown, {placement.reason}",
                    commands or "check the image's name and your access to its registry",
                    True,
                )
            )
        else:
            found += [Finding("note", service, text, commands) for text in placement.warnings]
    for finding in move.manifests.refused():
        subject = f"{finding.service or move.project.name}: {finding.key}"
        found.append(Finding("warning", subject, f"can't be carried over: {finding.note}", "", True))
    if params.migrate.strict and any(f.strict for f in found):
        found = [replace(f, level="refusal") if f.strict else f for f in found]
    return found


# -- actions -----------------------------------------------------------------------------------------------------------
def _apply_secret(ctx: Context, step: Step) -> Mapping[str, Json]:
    name = step.args["object"]["metadata"]["name"]
    secret = next(o for o in move_of(ctx).manifests.of_kind("Secret") if o["metadata"]["name"] == name)
    for key, value in {**secret.get("stringData", {}), **secret.get("data", {})}.items():
        ctx.secrets.put(_store_name(name, key), str(value))
    return {"uid": ctx.kube.apply(secret)["metadata"]["uid"]}


def _store_name(secret: str, key: str) -> str:
    plain = f"service-{secret}-{key}".lower()
    return "".join(c if c.isalnum() or c in ".-_" else "-" for c in plain)


ACTIONS: Mapping[str, Action] = {"apply": apply_object, "apply-secret": _apply_secret, **MOVING}


# -- verify ------------------------------------------------------------------------------------------------------------
def verify(ctx: Context) -> tuple[Check, ...]:
    """Every placed service Ready on a node it may run on, and the claims hold what was copied."""
    move = load_move(ctx, ctx.params_base)
    if move is None:
        return ()
    if not ctx.params.migrate.start or _back_since(ctx):
        return tuple(_data_checks(ctx, move, started=False))
    namespace = ctx.params.migrate.namespace
    arch = {n.name: n.arch for n in ctx.kube.nodes()}
    services = [o for o, owner in owned(move) if o["kind"] in WORKLOADS[:3] and owner in placed(move)]
    names = {o["metadata"]["name"]: owner for o, owner in owned(move) if o in services}

    def pods() -> dict[str, list[dict[str, Json]]]:
        found: dict[str, list[dict[str, Json]]] = {name: [] for name in names}
        for pod in ctx.kube.list("v1", "Pod", namespace):
            label = pod["metadata"].get("labels", {}).get("app.kubernetes.io/name", "")
            owners = [n for n in names if label in (n, names[n])]
            if owners and "deletionTimestamp" not in pod["metadata"]:
                found[owners[0]].append(pod)
        return found

    def waiting(found: dict[str, list[dict[str, Json]]]) -> list[str]:
        return [name for name, mine in found.items() if not mine or not all(pod_ready(p) for p in mine)]

    found = wait_until(
        pods,
        lambda rows: not waiting(rows),
        what="the services to be Ready",
        deadline_s=READY_DEADLINE_S,
        clock=ctx.clock,
        describe=lambda rows: "; ".join(f"{n}: {_state(ctx, rows[n])}" for n in waiting(rows)[:3]),
        progress=ctx.say,
        next_move=f"look at: kubectl -n {namespace} get pods",
    )
    checks = []
    for name, mine in found.items():
        placement = move.manifests.placements[names[name]]
        nodes = [p["spec"]["nodeName"] for p in mine]
        where = ", ".join(f"{n} ({arch.get(n, '?')})" for n in nodes)
        ok = all(not placement.architectures or arch.get(n) in placement.architectures for n in nodes)
        checks.append(Check(f"service {names[name]}", ok, f"Ready on {where}; {placement.reason}"))
    return (*checks, *_data_checks(ctx, move, started=True))


def _state(ctx: Context, pods: list[dict[str, Json]]) -> str:
    return why_waiting(ctx.kube, pods[0]) if pods else "no pod"


def _data_checks(ctx: Context, move: Move, *, started: bool) -> list[Check]:
    if ctx.params.migrate.docker_host is None:
        return []
    checks = []
    for transfer in transfers(ctx.params, move):
        name = transfer.claim.name
        if transfer.loads and not started:
            continue
        live = ctx.kube.get("v1", "PersistentVolumeClaim", name, ctx.params.migrate.namespace)
        mark = str((live or {}).get("metadata", {}).get("annotations", {}).get(COPIED, ""))
        kind, _, digest = mark.rpartition(":")
        evidence = f"sha256 {digest[:12]}… on both sides" if digest else "no copy is on record"
        checks.append(Check(f"data {name}", bool(mark), f"{kind} {evidence}".strip(), "run 070 again"))
    return checks


def images_table(move: Move) -> list[tuple[str, ImageInfo | None, Placement]]:
    """Service, what its registry says, and where it is placed: for tables and pictures."""
    rows = []
    for service, placement in move.manifests.placements.items():
        reference = move.manifests.images.get(service, "")
        info = move.images.get(str(move.project.services[service].get("image", ""))) or move.images.get(reference)
        rows.append((service, info, placement))
    return rows
