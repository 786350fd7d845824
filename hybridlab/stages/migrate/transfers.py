"""How each claim's data are taken: copied, copied while stopped, or dumped, by the params' choice. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from hybridlab.compose import ClaimSource, Placement
from hybridlab.models import Finding
from hybridlab.params import Params
from hybridlab.stages.helperpod import Seat
from hybridlab.stages.migrate.dumps import Tool, data_mount, tool_for
from hybridlab.stages.migrate.project import WORKLOADS, Move
from hybridlab.stages.objects import Obj

RUNNABLE = ("any", "prefer", "only")


@dataclass(frozen=True)
class Transfer:
    """One claim and how it is filled. ``service`` and ``tool``: of a dump, whose and with what."""

    claim: ClaimSource
    method: Literal["copy", "stop", "dump"] = "copy"
    service: str = ""
    tool: Tool | None = None

    @property
    def loads(self) -> bool:
        """Whether the new database must run before its data can come."""
        return self.tool is not None and bool(self.tool.load)


def placed(move: Move) -> dict[str, Placement]:
    """The services whose image has a place to run."""
    return {name: p for name, p in move.manifests.placements.items() if p.kind in RUNNABLE}


def owned(move: Move) -> list[tuple[Obj, str]]:
    """Every object with the service it belongs to."""
    return list(zip(move.manifests.objects, move.manifests.owners, strict=True))


def workloads(move: Move) -> dict[str, Obj]:
    """The workload of each placed service."""
    good = placed(move)
    return {owner: obj for obj, owner in owned(move) if obj["kind"] in WORKLOADS and owner in good}


def transfers(params: Params, move: Move) -> tuple[Transfer, ...]:
    """How each claim that a placed service uses is filled, in the manifests' order."""
    found = []
    mine = workloads(move)
    for claim in move.manifests.claims:
        users = [s for s in claim.services if s in mine]
        if users:
            found.append(_transfer(params, move, claim, users, mine))
    return tuple(found)


def _transfer(params: Params, move: Move, claim: ClaimSource, users: list[str], mine: Mapping[str, Obj]) -> Transfer:
    methods = {s: choice.method for s, choice in params.migrate.data.items() if s in users}
    for service, method in methods.items():
        tool = tool_for(str(move.project.services[service].get("image", "")))
        if method == "dump" and tool is not None and data_mount(mine[service], claim.name) in tool.folders:
            return Transfer(claim, "dump", service, tool)
    return Transfer(claim, "stop" if {"stop", "dump"} & set(methods.values()) else "copy")


def callers(service: str, move: Move) -> set[str]:
    """The services that depend on this one, directly or through others."""
    found: set[str] = set()
    while True:
        more = {
            name
            for name, spec in move.project.services.items()
            if name not in found and set(spec.get("depends_on") or ()) & {service, *found}
        }
        if not more:
            return found
        found |= more


def seat(move: Move, claim: ClaimSource) -> Seat:
    """Where a helper that fills a claim must land: where the services on it will run, with all their other claims."""
    mine = workloads(move)
    users, together = {s for s in claim.services if s in mine}, {claim.name}
    while True:
        more = {c.name for c in move.manifests.claims if users & set(c.services)} - together
        together |= more
        users |= {s for c in move.manifests.claims if c.name in together for s in c.services if s in mine}
        if not more:
            break
    spec = mine[min(users, key=list(mine).index)]["spec"]["template"]["spec"] if users else {}
    return Seat(
        tuple(sorted(together - {claim.name})),
        spec.get("nodeSelector") or {},
        (spec.get("affinity") or {}).get("nodeAffinity") or {},
        tuple(spec.get("tolerations") or ()),
    )


def choice_findings(params: Params, move: Move) -> list[Finding]:
    """What is wrong with migrate.data, and what a reader should know of the choices."""
    found = []
    taken = {t.service: t for t in transfers(params, move)}
    for service, choice in params.migrate.data.items():
        subject = f"migrate.data.{service}"
        if service not in move.project.services:
            near = difflib.get_close_matches(service, move.project.services, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"one of: {', '.join(move.project.services)}"
            found.append(Finding("refusal", subject, "there is no such service", hint))
        elif choice.method == "dump" and service in placed(move) and service not in taken:
            image = move.project.services[service].get("image", "")
            found.append(
                Finding(
                    "refusal",
                    subject,
                    f"no dump is known for {image}, or it keeps its data elsewhere than its image does",
                    "choose stop: its files are copied while it is at rest",
                )
            )
        elif choice.method == "dump" and "appendonly" in str(move.project.services[service].get("command")):
            text = "with appendonly the server reads its append-only files, not the dump"
            found.append(Finding("warning", subject, text, "choose stop"))
    return found
