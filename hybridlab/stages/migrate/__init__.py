"""070: services from Docker Compose: images placed by architecture, data copied with checksums, pods where planned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from hybridlab.compose import ClaimSource, Placement
from hybridlab.errors import BadInput
from hybridlab.models import Check, Finding, ImageInfo, Json
from hybridlab.params import Params
from hybridlab.plan import Plan, Step
from hybridlab.ports import Context
from hybridlab.stages.base import Action, Upstream
from hybridlab.stages.helperpod import pod_ready, why_waiting
from hybridlab.stages.migrate.copying import COPIED, copy_claim
from hybridlab.stages.migrate.project import WORKLOADS, Move, load_move
from hybridlab.stages.objects import Differences, Obj, apply_object, apply_steps, look_objects, ref
from hybridlab.wait import wait_until

NAME = "migrate"
NEEDS = ("storage", "benchmark")
READY_DEADLINE_S = 600.0
RUNNABLE = ("any", "prefer", "only")


@dataclass(frozen=True)
class Seen:
    """The move as it would be, the objects against it, and which claims hold copied data (digest by claim)."""

    move: Move | None = None
    objects: Differences = field(default_factory=Differences)
    copied: Mapping[str, str] = field(default_factory=dict)
    docker_host: str = ""


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
    return Seen(move, look_objects(kube, wanted_objects(move)), copied, host.address if host else "")


def placed(move: Move) -> dict[str, Placement]:
    """The services whose image has a place to run."""
    return {name: p for name, p in move.manifests.placements.items() if p.kind in RUNNABLE}


def wanted_objects(move: Move) -> tuple[Obj, ...]:
    """Everything but what belongs to services that could not run anywhere: their pods would only crash or wait."""
    good = placed(move)
    idle = {claim.name for claim in move.manifests.claims if not _has_user(claim, move)}
    return tuple(
        obj
        for obj, owner in _owned(move)
        if (not owner or owner in good)
        and not (obj["kind"] == "PersistentVolumeClaim" and obj["metadata"]["name"] in idle)
    )


def plan(params: Params, seen: Seen, upstream: Upstream) -> Plan:
    """Namespace, settings, claims and Services first; then the data; then the workloads."""
    move = seen.move
    if move is None:
        note = Finding("note", "migrate.compose", "no compose file is named: nothing to move")
        return Plan(NAME, (), {"namespace": params.migrate.namespace}, (note,))
    findings = _findings(params, move)
    wanted = wanted_objects(move)
    reasons = {ref(o): _reason(o, owner, move) for o, owner in _owned(move)}
    first = [o for o in wanted if o["kind"] not in WORKLOADS]
    last = [o for o in wanted if o["kind"] in WORKLOADS]
    steps = [_with_secrets(s) for s in apply_steps(first, seen.objects, reasons)]
    good = placed(move)
    running = {
        owner  # the service: an object's name may differ from it
        for o, owner in _owned(move)
        if o["kind"] in WORKLOADS and owner in good and seen.objects.paths.get(ref(o)) != ("",)
    }
    if seen.docker_host:
        for claim in move.manifests.claims:
            if claim.name not in seen.copied and _has_user(claim, move):
                _plan_copy(claim, move, running, steps, findings, seen.docker_host)
    elif move.manifests.claims:
        findings.append(
            Finding("note", "migrate.docker_host", "no Docker host is named: claims start empty, no data are copied")
        )
    steps += [_with_secrets(s) for s in apply_steps(last, seen.objects, reasons)]
    expected = {"namespace": params.migrate.namespace, "claims": [c.name for c in move.manifests.claims]}
    return Plan(NAME, tuple(steps), expected, tuple(findings))


def _plan_copy(
    claim: ClaimSource, move: Move, running: set[str], steps: list[Step], findings: list[Finding], host: str
) -> None:
    busy = [s for s in claim.services if s in running]
    if busy:
        findings.append(
            Finding(
                "warning",
                f"claim {claim.name}",
                f"not copied: {', '.join(busy)} runs on it already",
                "its data are whatever the service wrote; delete the workload and run 070 again to copy",
            )
        )
        return
    steps.append(
        Step(
            f"copy:{claim.name}",
            "copy",
            f"claim {claim.name}",
            f"{claim.kind} {claim.source} on {host}, used by {', '.join(claim.services)}",
            "create",
            {"claim": claim.name, "source": claim.source},
            batch="copies",
        )
    )


def _has_user(claim: ClaimSource, move: Move) -> bool:
    return any(s in placed(move) for s in claim.services)


def _owned(move: Move) -> list[tuple[Obj, str]]:
    return list(zip(move.manifests.objects, move.manifests.owners, strict=True))


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
def _move(ctx: Context) -> Move:
    move: Move | None = ctx.notes.get(NAME) or load_move(ctx, ctx.params_base)
    if move is None:
        raise BadInput("migrate.compose is empty", next_move="name a compose file in the params")
    return move


def _apply_secret(ctx: Context, step: Step) -> Mapping[str, Json]:
    name = step.args["object"]["metadata"]["name"]
    secret = next(o for o in _move(ctx).manifests.of_kind("Secret") if o["metadata"]["name"] == name)
    for key, value in {**secret.get("stringData", {}), **secret.get("data", {})}.items():
        ctx.secrets.put(_store_name(name, key), str(value))
    return {"uid": ctx.kube.apply(secret)["metadata"]["uid"]}


def _store_name(secret: str, key: str) -> str:
    plain = f"service-{secret}-{key}".lower()
    return "".join(c if c.isalnum() or c in ".-_" else "-" for c in plain)


def _copy(ctx: Context, step: Step) -> Mapping[str, Json]:
    move = _move(ctx)
    claim = next(c for c in move.manifests.claims if c.name == step.args["claim"])
    result = copy_claim(ctx, claim, move.project.name)
    return result


ACTIONS: Mapping[str, Action] = {"apply": apply_object, "apply-secret": _apply_secret, "copy": _copy}


# -- verify ------------------------------------------------------------------------------------------------------------
def verify(ctx: Context) -> tuple[Check, ...]:
    """Every placed service Ready on a node it may run on, and the claims hold what was copied."""
    move = load_move(ctx, ctx.params_base)
    if move is None:
        return ()
    namespace = ctx.params.migrate.namespace
    arch = {n.name: n.arch for n in ctx.kube.nodes()}
    services = [o for o, owner in _owned(move) if o["kind"] in WORKLOADS[:3] and owner in placed(move)]
    names = {o["metadata"]["name"]: owner for o, owner in _owned(move) if o in services}

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
    return (*checks, *_data_checks(ctx, move))


def _state(ctx: Context, pods: list[dict[str, Json]]) -> str:
    return why_waiting(ctx.kube, pods[0]) if pods else "no pod"


def _data_checks(ctx: Context, move: Move) -> list[Check]:
    if ctx.params.migrate.docker_host is None:
        return []
    checks = []
    for claim in move.manifests.claims:
        live = ctx.kube.get("v1", "PersistentVolumeClaim", claim.name, ctx.params.migrate.namespace)
        mark = (live or {}).get("metadata", {}).get("annotations", {}).get(COPIED, "")
        if _has_user(claim, move):
            evidence = f"sha256 {mark[:12]}… on both sides" if mark else "no copy is on record"
            checks.append(Check(f"data {claim.name}", bool(mark), evidence, "run 070 again"))
    return checks


def images_table(move: Move) -> list[tuple[str, ImageInfo | None, Placement]]:
    """Service, what its registry says, and where it is placed: for tables and pictures."""
    rows = []
    for service, placement in move.manifests.placements.items():
        reference = move.manifests.images.get(service, "")
        info = move.images.get(str(move.project.services[service].get("image", ""))) or move.images.get(reference)
        rows.append((service, info, placement))
    return rows
