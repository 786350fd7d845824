"""075: the services stop on the Docker host and go on in the cluster; back again at any point.

The Docker host keeps its containers and volumes as they were when it stopped: going back is starting them again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hybridlab.models import Check, Finding, Json
from hybridlab.params import Params
from hybridlab.plan import Plan, Step
from hybridlab.ports import Context
from hybridlab.sections import HealthCheck
from hybridlab.stages import migrate
from hybridlab.stages.base import Upstream
from hybridlab.stages.cut_over.actions import ACTIONS, MARK, is_up, stopped_by_us
from hybridlab.stages.cut_over.health import healthy, words
from hybridlab.stages.cut_over.order import start_order
from hybridlab.stages.cut_over.ports import SWITCHED, clashes, port_service, published
from hybridlab.stages.cut_over.tunnel import switched
from hybridlab.stages.migrate.dockerside import Container, containers
from hybridlab.stages.migrate.project import WORKLOADS, Move, load_move
from hybridlab.stages.migrate.side import mark_of
from hybridlab.stages.migrate.transfers import Transfer, placed, transfers, workloads
from hybridlab.stages.objects import ref

NAME = "cut_over"
NEEDS = ("migrate",)

__all__ = ["ACTIONS", "NAME", "NEEDS", "Seen", "look", "plan", "verify"]


@dataclass(frozen=True)
class Seen:
    """Both sides. ``missing``: objects that 070 has yet to make. ``up``: services that want pods in the cluster.

    ``state``: where the services are by our own mark: "", "cluster" or "docker". ``final``: claims whose data were
    taken after the stop. ``switched``: Services that publish ports. ``ours``: containers that this stage stopped.
    ``tunnel``: cloudflared of the cluster was seen to reach the services.
    """

    move: Move | None = None
    there: tuple[Container, ...] = ()
    missing: tuple[str, ...] = ()
    up: frozenset[str] = frozenset()
    ready: frozenset[str] = frozenset()
    state: str = ""
    since: str = ""
    switched: frozenset[str] = frozenset()
    final: frozenset[str] = frozenset()
    ours: tuple[str, ...] = ()
    tunnel: bool = False


def look(ctx: Context) -> Seen:
    """Read the compose file, the containers on the Docker host, and what of the project runs in the cluster."""
    move = load_move(ctx, ctx.params_base)
    ctx.notes[migrate.NAME] = move
    kube, namespace = ctx.kube_or_none, ctx.params.migrate.namespace
    if move is None or ctx.params.migrate.docker_host is None:
        return Seen(move)
    there = containers(ctx, move.project.name)
    first = [o for o in migrate.wanted_objects(move) if o["kind"] not in WORKLOADS]
    if kube is None:
        return Seen(move, there, tuple(ref(o) for o in first))
    up, ready = set(), set()
    for service, workload in workloads(move).items():
        live = kube.get(workload["apiVersion"], workload["kind"], workload["metadata"]["name"], namespace)
        if is_up(live):
            up.add(service)
            ready |= {service} if _is_ready(live) else set()
    home = kube.get("v1", "Namespace", namespace)
    state, since = mark_of(home)
    labels = f"{SWITCHED}=true"
    ports = frozenset(s["metadata"]["name"] for s in kube.list("v1", "Service", namespace, labels=labels))
    missing = tuple(ref(o) for o in first if kube.differs(o) == ("",))
    claims = kube.list("v1", "PersistentVolumeClaim", namespace)
    final = frozenset(c["metadata"]["name"] for c in claims if MARK in c["metadata"].get("annotations", {}))
    ours = stopped_by_us(ctx)
    return Seen(move, there, missing, frozenset(up), frozenset(ready), state, since, ports, final, ours, switched(home))


def _is_ready(live: Mapping[str, Json] | None) -> bool:
    if live is None or live["kind"] not in ("Deployment", "StatefulSet"):
        return live is not None
    return int(live.get("status", {}).get("readyReplicas") or 0) >= int(live["spec"].get("replicas", 1))


def plan(params: Params, seen: Seen, upstream: Upstream) -> Plan:
    """Forward: rest, copy, stop, delta, start, check, switch. Back: the same from the other end, without data."""
    move = seen.move
    if move is None or params.migrate.docker_host is None:
        what = "migrate.compose" if move is None else "migrate.docker_host"
        note = Finding("note", what, "is empty: there is nothing to cut over")
        return Plan(NAME, (), {"state": "none"}, (note,))
    if params.cut_over.direction == "back":
        return _plan_back(params, seen, move)
    findings = _preflight(params, seen, move)
    mine = workloads(move)
    order = start_order(move.project, mine)
    running = [c for c in seen.there if c.service in mine and c.running]
    expected: dict[str, Json] = {"state": "cluster", "services": sorted(mine)}
    if seen.state == "cluster":
        # what the services wrote here since is theirs alone: nothing is ever copied over it again
        steps = [_stop(c) for s in reversed(order) for c in running if c.service == s]
        steps += [_start(s, "it is not up") for s in order if s not in seen.up and s not in _once(move)]
        return Plan(NAME, (*steps, *_switch(params, seen, move)), expected, tuple(findings))
    ways = transfers(params, move)
    first = [t.service for t in ways if t.loads]
    if not running and {t.claim.name for t in ways} <= seen.final:
        # the data were taken after the last stop, and the services here may have written since: never again
        steps = [_start(s, "everything it depends on is started") for s in order if s not in seen.ready]
        return Plan(NAME, (*steps, *_end(params, seen, move)), expected, tuple(findings))
    steps = [Step("preflight", "preflight", "both sides", "the last look before anything stops", "none")]
    steps += [
        _rest(s, "its claims are about to be written") for s in reversed(order) if s in seen.up and s not in first
    ]
    steps += [_copy(t, final=False) for t in ways if t.method != "dump"]
    steps += [_start(s, "takes its dump while the others wait") for s in order if s in first]
    for service in reversed(order):
        steps += [
            _dump(t) for t in ways if t.method == "dump" and t.service == service and not _taken(t, seen, running)
        ]
        steps += [_stop(c) for c in running if c.service == service]
    steps += [_copy(t, final=True) for t in ways if t.method != "dump"]
    steps += [_start(s, "everything it depends on is started") for s in order if s not in first]
    return Plan(NAME, (*steps, *_end(params, seen, move)), expected, tuple(findings))


def _taken(transfer: Transfer, seen: Seen, running: list[Container]) -> bool:
    """Whether a database was dumped and stopped already, by a run that broke off."""
    return transfer.claim.name in seen.final and all(c.service != transfer.service for c in running)


def _end(params: Params, seen: Seen, move: Move) -> list[Step]:
    steps = [_check(number, check) for number, check in enumerate(params.cut_over.checks, 1)]
    steps += _switch(params, seen, move)
    what = f"namespace {params.migrate.namespace}"
    return [*steps, Step("finish", "finish", what, "the services are here now", "change")]


def _once(move: Move) -> set[str]:
    """Services that run once and are gone: nobody waits for them to be up."""
    return {s for s, o in workloads(move).items() if o["kind"] in ("Job", "CronJob")}


def _plan_back(params: Params, seen: Seen, move: Move) -> Plan:
    mine = workloads(move)
    order = start_order(move.project, mine)
    stopped = [c for s in order for c in seen.there if c.service == s and not c.running]
    stopped = [c for c in stopped if not seen.ours or c.name in seen.ours]  # without a ledger: all of them
    steps = [_unswitch(name) for name in sorted(seen.switched)]
    if seen.tunnel:
        why = "its routes must name the Docker host's addresses again: set them at Cloudflare"
        steps.append(Step("unswitch:tunnel", "unswitch-tunnel", "cloudflared", why, "change"))
    steps += [_rest(s, "the Docker host takes over again") for s in reversed(order) if s in seen.up]
    steps += [
        Step(f"start-old:{c.name}", "start-old", f"container {c.name}", "as it was when it was stopped", "change",
             {"container": c.name}, undo="stop-old")
        for c in stopped
    ]  # fmt: skip
    findings = []
    if steps and seen.state == "cluster":
        text = f"what was written in the cluster since {seen.since} stays in its claims: the Docker host has not got it"
        findings.append(Finding("warning", "data", text, "copy it back by hand where it matters"))
    if steps or seen.state == "cluster":
        what = f"namespace {params.migrate.namespace}"
        steps.append(Step("finish-back", "finish-back", what, "the services are on the Docker host again", "change"))
    return Plan(NAME, tuple(steps), {"state": "docker", "services": sorted(mine)}, tuple(findings))


# -- the steps ---------------------------------------------------------------------------------------------------------
def _rest(service: str, why: str) -> Step:
    return Step(f"rest:{service}", "rest", f"service {service}", why, "change", {"service": service}, undo="start")


def _start(service: str, why: str) -> Step:
    return Step(f"start:{service}", "start", f"service {service}", why, "change", {"service": service}, undo="rest")


def _stop(container: Container) -> Step:
    return Step(
        f"stop:{container.name}",
        "stop-old",
        f"container {container.name}",
        "nothing that calls it runs any more",
        "change",
        {"container": container.name},
        undo="start-old",
    )


def _copy(transfer: Transfer, *, final: bool) -> Step:
    claim = transfer.claim
    why = "what changed since, now that nothing writes" if final else "while it runs: the stop gets shorter"
    word = "delta" if final else "copy"
    args = {"claim": claim.name, "source": claim.source}
    return Step(f"{word}:{claim.name}", word, f"claim {claim.name}", why, "change", args, batch=f"{word}s")


def _dump(transfer: Transfer) -> Step:
    why = f"{transfer.tool.database if transfer.tool else ''} dump: those who write to it have stopped"
    args = {"claim": transfer.claim.name, "service": transfer.service}
    action = "load" if transfer.loads else "dump"
    return Step(f"{action}:{transfer.claim.name}", action, f"claim {transfer.claim.name}", why, "change", args)


def _check(number: int, check: HealthCheck) -> Step:
    args = check.model_dump(mode="json")
    return Step(f"check:{number}:{check.service}", "check", f"service {check.service}", words(check), "none", args)


def _switch(params: Params, seen: Seen, move: Move) -> list[Step]:
    if params.cut_over.switch == "tunnel" and not seen.tunnel:
        why = "its routes can name the services of the cluster: asked from where it runs"
        return [Step("switch:tunnel", "switch-tunnel", "cloudflared", why, "change", undo="unswitch-tunnel")]
    if params.cut_over.switch != "ports":
        return []
    steps = []
    for service, ports in published(move).items():
        obj = port_service(params.migrate.namespace, service, ports, workloads(move)[service])
        if obj["metadata"]["name"] not in seen.switched:
            shown = ", ".join(f"{p['port']}/{p['protocol'].lower()}" for p in obj["spec"]["ports"])
            steps.append(
                Step(f"switch:{service}", "switch-port", ref(obj), f"port {shown} on the nodes, as on the Docker host",
                     "create", {"object": obj}, undo="unswitch")
            )  # fmt: skip
    return steps


def _unswitch(name: str) -> Step:
    return Step(f"unswitch:{name}", "unswitch", f"Service {name}", "its port is the Docker host's again", "delete",
                {"name": name})  # fmt: skip


# -- before anything stops ---------------------------------------------------------------------------------------------
def _preflight(params: Params, seen: Seen, move: Move) -> list[Finding]:
    found = []
    if seen.missing:
        text = f"{len(seen.missing)} objects are not in the cluster, e.g. {seen.missing[0]}"
        found.append(Finding("refusal", "070-migrate-services", text, "run 070 first"))
    known = {c.service for c in seen.there}
    if not known and seen.state != "cluster":
        text = f"no container of project {move.project.name} is on the Docker host"
        found.append(Finding("refusal", "migrate.project", text, "set it to the name that docker compose ls shows"))
    left = [s for s in move.project.services if s not in placed(move) and s in known]
    found += [
        Finding("warning", s, "stays on the Docker host: no node can run it", move.manifests.placements[s].remedy)
        for s in left
    ]
    for check in params.cut_over.checks:
        if check.service not in workloads(move):
            text = "has a health check and does not run in the cluster"
            found.append(Finding("refusal", f"cut_over.checks: {check.service}", text, "correct cut_over.checks"))
    if not params.cut_over.checks:
        text = "none: that its pods are Ready is all that is asked of a service"
        found.append(Finding("note", "cut_over.checks", text))
    for port, services in clashes(move).items() if params.cut_over.switch == "ports" else ():
        text = f"{' and '.join(services)} publish it: {services[0]} gets it, a node has it once"
        found.append(Finding("warning", f"port {port}", text, "publish the other on another port in the compose file"))
    if params.cut_over.switch == "none":
        text = "what leads to the services (DNS, proxy, tunnel) is left to you"
        found.append(Finding("note", "cut_over.switch", text))
    return found


# -- verify ------------------------------------------------------------------------------------------------------------
def verify(ctx: Context) -> tuple[Check, ...]:
    """Each service runs on one side and on one side only, and the health checks hold."""
    seen = look(ctx)
    move = seen.move
    if move is None or ctx.params.migrate.docker_host is None:
        return ()
    back = ctx.params.cut_over.direction == "back"
    old = {c.service: c.running for c in seen.there}
    checks = []
    for service in start_order(move.project, workloads(move)):
        if service in _once(move):
            continue
        here, there = service in seen.ready, old.get(service, False)
        ok = (there and service not in seen.up) if back else (here and not there)
        shown = f"{'Ready' if here else 'not Ready' if service in seen.up else 'at rest'} in the cluster"
        checks.append(
            Check(f"service {service}", ok, f"{shown}, {'running' if there else 'stopped'} on the Docker host")
        )
    if back:
        return tuple(checks)
    checks += _data_checks(ctx, move)
    for check in ctx.params.cut_over.checks:
        answer = healthy(ctx, check, move)
        checks.append(Check(f"health {check.service}", True, f"{answer['check']}: {answer['answer']}"))
    return tuple(checks)


def _data_checks(ctx: Context, move: Move) -> list[Check]:
    checks = []
    for transfer in transfers(ctx.params, move):
        claim = ctx.kube.get("v1", "PersistentVolumeClaim", transfer.claim.name, ctx.params.migrate.namespace)
        mark = str((claim or {}).get("metadata", {}).get("annotations", {}).get(MARK, ""))
        evidence = f"{mark.rpartition(':')[2][:12]}… taken after the stop" if mark else "not taken after the stop"
        checks.append(Check(f"data {transfer.claim.name}", bool(mark), evidence, "run 075 again"))
    return checks
