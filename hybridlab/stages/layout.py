"""010: the wanted nodes against the dated free allowance, the account's live limits, and what it costs elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from itertools import combinations_with_replacement

from hybridlab.errors import ParamsError
from hybridlab.models import Check, CloudInstance, Finding, Limit, NodeWish
from hybridlab.params import Params
from hybridlab.plan import Plan
from hybridlab.ports import TAG, Context
from hybridlab.stages.base import Action, Upstream
from hybridlab.stages.nodes import instances_by_node

NAME = "layout"
NEEDS: tuple[str, ...] = ()
ACTIONS: Mapping[str, Action] = {}  # this stage only judges

SERVER_MIN_OCPUS, SERVER_MIN_GB = 2, 2  # K3s' documented minimum for a server: 2 cores, 2 GB
BOOT_VOLUME_MIN_GB = 50


@dataclass(frozen=True)
class Allowance:
    """What is free, as of a date: see hybridlab/data/allowances.json for the sources."""

    name: str
    since: str
    until: str | None
    source: str
    a1_ocpus: float
    a1_memory_gb: float
    micros: int
    storage_gb: int
    volumes_max: int


@dataclass(frozen=True)
class Line:
    """One resource of a layout against what is allowed. ``limited_by`` says what the smaller bound is."""

    resource: str
    wanted: float
    allowed: float
    limited_by: str

    @property
    def left(self) -> float:
        return self.allowed - self.wanted

    @property
    def ok(self) -> bool:
        return self.wanted <= self.allowed


@dataclass(frozen=True)
class Layout:
    """A combination of nodes that fits: OCPUs of each ARM node (6 GB each OCPU), and how many micros."""

    arm_ocpus: tuple[int, ...]
    micros: int

    def __str__(self) -> str:
        arm = [f"{o}C{6 * o}G" for o in self.arm_ocpus]
        return " + ".join(["arm " + a for a in arm] + ["amd 1C1G"] * self.micros)


@dataclass(frozen=True)
class Seen:
    """The allowances there are, and for site oracle and lab the account's live limits and shapes."""

    allowances: tuple[Allowance, ...]
    live: Mapping[str, float]  # resource → limit less what foreign machines use; empty where it could not be asked
    shapes: Mapping[str, tuple[str, ...]]  # shape → availability domains; empty where not asked
    foreign: Mapping[str, float] = field(default_factory=dict)  # resource → what machines that aren't ours use


@cache
def allowances() -> tuple[Allowance, ...]:
    """The dated allowances, oldest first."""
    text = resources.files("hybridlab.data").joinpath("allowances.json").read_text(encoding="utf-8")
    rows = json.loads(text)["allowances"]
    return tuple(
        Allowance(
            name=row["name"],
            since=row["from"],
            until=row["until"],
            source=row["source"],
            a1_ocpus=row["a1_ocpus"],
            a1_memory_gb=row["a1_memory_gb"],
            micros=row["micros"],
            storage_gb=row["storage_gb"],
            volumes_max=row["volumes_max"],
        )
        for row in rows
    )


def allowance_named(name: str) -> Allowance:
    for allowance in allowances():
        if allowance.name == name:
            return allowance
    known = ", ".join(a.name for a in allowances())
    raise ParamsError(f"layout.allowance: there is no allowance {name!r}", next_move=f"one of: {known}")


def compare(
    wishes: tuple[NodeWish, ...],
    allowance: Allowance,
    live: Mapping[str, float] | None = None,
    foreign: Mapping[str, float] | None = None,
) -> tuple[Line, ...]:
    """What the nodes want against min(allowance less what ``foreign`` machines use, live limits), by resource."""
    arm = [w for w in wishes if w.arch == "arm64"]
    wanted_allowed: tuple[tuple[str, float, float], ...] = (
        ("A1 OCPUs", sum(w.ocpus for w in arm), allowance.a1_ocpus),
        ("A1 memory GB", sum(w.memory_gb for w in arm), allowance.a1_memory_gb),
        ("AMD micros", len(wishes) - len(arm), allowance.micros),
        ("volumes GB", sum(w.boot_volume_gb for w in wishes), allowance.storage_gb),
        ("volumes", len(wishes), allowance.volumes_max),
    )
    lines = []
    for resource, wanted, allowed in wanted_allowed:
        limit = (live or {}).get(resource)
        bound = f"allowance {allowance.name}"
        others = (foreign or {}).get(resource, 0)
        if others:
            allowed, bound = max(0, allowed - others), f"{bound} (less {others:g} that other machines use)"
        if limit is not None and limit < allowed:
            allowed, bound = limit, "the account's live limit"
        lines.append(Line(resource, wanted, allowed, bound))
    return tuple(lines)


def _bounded(allowance: Allowance, lines: Sequence[Line]) -> Allowance:
    """The allowance cut down to what the lines allow: less other machines, and within live limits."""
    allowed = {line.resource: line.allowed for line in lines}
    return replace(
        allowance,
        a1_ocpus=min(allowance.a1_ocpus, allowed["A1 OCPUs"]),
        a1_memory_gb=min(allowance.a1_memory_gb, allowed["A1 memory GB"]),
        micros=min(allowance.micros, int(allowed["AMD micros"])),
        storage_gb=min(allowance.storage_gb, int(allowed["volumes GB"])),
        volumes_max=min(allowance.volumes_max, int(allowed["volumes"])),
    )


def layouts_that_fit(allowance: Allowance) -> tuple[Layout, ...]:
    """Every layout within an allowance, best first: most memory, then a server of two cores, then both architectures.

    Exhaustive: A1 nodes of whole OCPUs with 6 GB each, boot volumes of 50 GB, at least one node.
    """
    found = []
    nodes_max = min(allowance.volumes_max, allowance.storage_gb // BOOT_VOLUME_MIN_GB)
    for micros in range(min(allowance.micros, nodes_max) + 1):
        for count in range(nodes_max - micros + 1):
            for sizes in combinations_with_replacement(range(int(allowance.a1_ocpus), 0, -1), count):
                fits = sum(sizes) <= allowance.a1_ocpus and 6 * sum(sizes) <= allowance.a1_memory_gb
                if fits and (sizes or micros):
                    found.append(Layout(sizes, micros))

    def rank(layout: Layout) -> tuple[float, ...]:
        memory = 6 * sum(layout.arm_ocpus) + layout.micros
        server_ok = max(layout.arm_ocpus, default=0) >= SERVER_MIN_OCPUS
        hybrid = bool(layout.arm_ocpus) and layout.micros > 0
        return (-hybrid, -server_ok, -memory, -len(layout.arm_ocpus))

    return tuple(sorted(found, key=rank))


def look(ctx: Context) -> Seen:
    """Read the allowances, and ask the account for its limits and shapes while a wanted VM is still missing."""
    if ctx.params.site == "byo":
        return Seen(allowances(), {}, {})
    vms = ctx.oracle.instances(max_age_s=ctx.max_age_s)
    if {w.name for w in ctx.params.wishes} <= set(instances_by_node(vms, ctx.params.cluster)):
        return Seen(allowances(), {}, {})  # nothing is to be launched: limits and shapes would be asked for nothing
    shapes: dict[str, list[str]] = {}
    for shape in ctx.oracle.shapes():
        shapes.setdefault(shape.name, []).append(shape.availability_domain)
    ours, foreign = used(vms, ctx.params.cluster)
    live = live_bounds(ctx.oracle.limits(), ours)
    return Seen(allowances(), live, {k: tuple(v) for k, v in shapes.items()}, foreign)


def used(vms: tuple[CloudInstance, ...], cluster: str) -> tuple[dict[str, float], dict[str, float]]:
    """What this cluster's machines use of each resource, and what others in the compartment do."""
    ours: dict[str, float] = {}
    foreign: dict[str, float] = {}
    for vm in vms:
        if vm.state in ("TERMINATING", "TERMINATED"):
            continue
        sums = ours if vm.tags.get(TAG) == cluster else foreign
        mine = {"A1 OCPUs": vm.ocpus, "A1 memory GB": vm.memory_gb} if vm.arch == "arm64" else {"AMD micros": 1.0}
        for resource, amount in {**mine, "volumes": 1.0, "volumes GB": float(vm.boot_volume_gb or 0)}.items():
            sums[resource] = sums.get(resource, 0) + amount
    return ours, foreign


LIMIT_NAMES: Mapping[str, tuple[str, ...]] = {
    "A1 OCPUs": ("standard-a1-core-count",),
    "A1 memory GB": ("standard-a1-memory-count",),
    "AMD micros": ("vm-standard-e2-1-micro-count", "standard-e2-micro-core-count"),
}


def live_bounds(limits: tuple[Limit, ...], ours: Mapping[str, float]) -> dict[str, float]:
    """What the account's limits leave for this cluster: what is available plus what this cluster uses itself.

    A limit scoped to availability domains counts with its roomiest domain: the VMs may go to any.
    """
    bounds = {}
    for resource, names in LIMIT_NAMES.items():
        for name in names:
            rows = [limit for limit in limits if limit.name == name]
            if rows:
                room = max(rows, key=lambda limit: limit.available + limit.used)
                total = room.available + room.used
                bounds[resource] = min(total, max(r.available for r in rows) + ours.get(resource, 0))
                break
    return bounds


def plan(params: Params, seen: Seen, upstream: Upstream) -> Plan:
    """No steps: findings about what does not fit, and the nodes that later stages may expect."""
    findings: list[Finding] = []
    if params.site != "byo":
        findings += _fit_findings(params, seen)
    server = params.server
    if server.ocpus < SERVER_MIN_OCPUS or server.memory_gb < SERVER_MIN_GB:
        findings.append(
            Finding(
                "warning",
                server.name,
                f"the server has {server.ocpus:g} OCPU and {server.memory_gb:g} GB; K3s documents a minimum of "
                f"{SERVER_MIN_OCPUS} cores and {SERVER_MIN_GB} GB",
                "expect a slow API under load, or give the server another size",
            )
        )
    only = params.wishes[0].arch
    if only and {w.arch for w in params.wishes} == {only}:
        findings.append(Finding("note", "nodes", f"all nodes are {only}: images without {only} have no place to run"))
    refused = [f.text for f in findings if f.level == "refusal"]
    nodes = [{"name": w.name, "role": w.role, "arch": w.arch, "memory_gb": w.memory_gb} for w in params.wishes]
    return Plan(NAME, (), {"nodes": nodes, "refused": refused}, tuple(findings))


def _fit_findings(params: Params, seen: Seen) -> list[Finding]:
    findings = []
    chosen = allowance_named(params.layout.allowance)
    lines = compare(params.wishes, chosen, seen.live, seen.foreign)
    for line in lines:
        if line.ok:
            continue
        cost_only = params.layout.allow_cost and line.limited_by.startswith("allowance")
        options = layouts_that_fit(_bounded(chosen, lines))
        fits = f"this fits: {options[0]}" if options else "nothing fits beside what is there: remove other machines"
        findings.append(
            Finding(
                "warning" if cost_only else "refusal",
                line.resource,
                f"the layout wants {line.wanted:g} {line.resource}, {line.limited_by} has {line.allowed:g}: "
                f"{-line.left:g} too many",
                "it will cost money" if cost_only else f"{fits}; or set layout.allow_cost",
            )
        )
    newest = allowances_now(seen.allowances)
    if chosen.until is not None and newest is not None:
        over = [line for line in compare(params.wishes, newest) if not line.ok]
        text = "; ".join(f"{line.wanted:g} of {line.allowed:g} {line.resource}" for line in over)
        findings.append(
            Finding(
                "note",
                chosen.name,
                f"this allowance ended on {chosen.until}; against {newest.name} the layout "
                + (f"is over: {text}" if over else "fits too"),
            )
        )
    for wish in params.wishes:
        if seen.shapes and wish.shape not in seen.shapes:
            findings.append(
                Finding("refusal", wish.name, f"no availability domain offers {wish.shape}", "drop the node")
            )
        if wish.arch == "amd64" and wish.memory_gb > 1:
            findings.append(
                Finding("refusal", wish.name, "a free AMD VM (VM.Standard.E2.1.Micro) has 1 GB", "give memory_gb: 1")
            )
    return findings


def allowances_now(known: tuple[Allowance, ...]) -> Allowance | None:
    """The free (not pay-as-you-go) allowance that has no end."""
    return next((a for a in known if a.until is None and a.name.startswith("since")), None)


def monthly_elsewhere_usd(params: Params) -> float:
    """What as many nodes would cost a month at ``layout.compare_usd_per_node`` (the article: DigitalOcean, $12)."""
    return params.layout.compare_usd_per_node * len(params.nodes)


def verify(ctx: Context) -> tuple[Check, ...]:
    """The layout fits where it is going to be built."""
    if ctx.params.site == "byo":
        return (Check("layout", True, f"{len(ctx.params.nodes)} hosts of your own"),)
    chosen = allowance_named(ctx.params.layout.allowance)
    checks = []
    seen = look(ctx)
    for line in compare(ctx.params.wishes, chosen, seen.live, seen.foreign):
        paid = ctx.params.layout.allow_cost and line.limited_by.startswith("allowance")
        evidence = f"{line.wanted:g} wanted, {line.allowed:g} allowed by {line.limited_by}, {line.left:g} left"
        checks.append(Check(line.resource, line.ok or paid, evidence))
    return tuple(checks)
