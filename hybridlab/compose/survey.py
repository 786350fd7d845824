"""Everything that must be known of all services before the first manifest: names, ports, kinds, placements."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from hybridlab.compose.constraints import Constraints, constraints
from hybridlab.compose.fidelity import Record
from hybridlab.compose.files import FileBook, Meta
from hybridlab.compose.images import architecture_in_name, buildx_command, parse_reference
from hybridlab.compose.mentions import find_mentions, names_of
from hybridlab.compose.model import Options, Placement, Project, ServiceNeeds
from hybridlab.compose.names import is_label, label, service_names
from hybridlab.compose.network import Port, Published, ports_of, published
from hybridlab.compose.place import place
from hybridlab.compose.probes import has_check
from hybridlab.compose.resources import Resources, resources
from hybridlab.compose.volumes import VolumePlan, plan_volumes
from hybridlab.compose.workload import Decision, decide
from hybridlab.errors import BadInput
from hybridlab.models import ImageInfo, NodeCapacity


@dataclass
class Survey:
    """What the modules that write manifests read; keys are Compose's service names."""

    project: Project
    options: Options
    record: Record
    meta: Meta
    files: FileBook
    names: dict[str, str]  # service → Kubernetes name
    aliases: dict[str, dict[str, str]]  # service → its other names → the key they come from
    used: dict[str, frozenset[str]]  # name → services that use it
    renamed: dict[str, str]  # names that DNS cannot carry → what to write instead
    references: dict[str, str]
    images: dict[str, ImageInfo | None]
    volumes: VolumePlan
    ports: dict[str, tuple[Port, ...]] = field(default_factory=dict)
    published: dict[str, tuple[Published, ...]] = field(default_factory=dict)
    resources: dict[str, Resources] = field(default_factory=dict)
    constraints: dict[str, Constraints] = field(default_factory=dict)
    decisions: dict[str, Decision] = field(default_factory=dict)
    placements: dict[str, Placement] = field(default_factory=dict)
    commands: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def jobs(self) -> frozenset[str]:
        return frozenset(service for service, decision in self.decisions.items() if decision.kind == "Job")

    @property
    def checked(self) -> frozenset[str]:
        services = self.project.services
        return frozenset(name for name in self.names if has_check(services[name], self.images[name]))


_TUNNEL = re.compile(r"vpn|gluetun|wireguard|tailscale|wg-easy|\btor\b", re.IGNORECASE)


def survey(
    project: Project,
    images: Mapping[str, ImageInfo],
    nodes: Sequence[NodeCapacity],
    options: Options,
    record: Record,
    meta: Meta,
) -> Survey:
    """Look at the whole project once; decides everything that one service's manifest needs to know of the others."""
    wanted = references(project, options)
    runnable = list(wanted)
    for name in project.services:
        if name not in runnable:
            record.refused(name, "image", "neither image nor build: nothing to run in a cluster")
    names = service_names(runnable)
    all_names = names_of(project)
    mentions = find_mentions(project, all_names)
    files = FileBook(project, meta, record)
    aliases = {name: {alias: key for alias, key in all_names[name].items() if alias != name} for name in runnable}
    seen = Survey(
        project,
        options,
        record,
        meta,
        files,
        names,
        aliases,
        dict(mentions.by_name),
        _renamed(names, aliases),
        wanted,
        {name: _image(images, project, name, wanted[name]) for name in runnable},
        plan_volumes(project, options, files, record),
    )
    for name in runnable:
        spec = project.services[name]
        seen.ports[name] = ports_of(name, spec, seen.images[name], mentions.ports[name], record)
        seen.published[name] = published(name, spec, record, balanced=options.publish == "load-balancer")
        seen.resources[name] = resources(name, spec, record)
    _decide_all(seen)
    for name in runnable:
        seen.constraints[name] = constraints(name, project.services[name], nodes, record)
    for name, decision in seen.decisions.items():
        single = any(claim.access_mode == "ReadWriteOnce" for claim in seen.volumes.claims if name in claim.services)
        if decision.replicas > 1 and single:
            seen.volumes.groups.setdefault(name, label(name))  # all replicas where the claim is
    _place_all(seen, nodes)
    for name in runnable:
        seen.commands[name] = _commands(seen, name, nodes)
    return seen


def references(project: Project, options: Options | None = None) -> dict[str, str]:
    """Service → image reference, for all that can run: what to ask the registries about before ``convert``."""
    return {
        name: reference_of(project, name, options or Options())
        for name, spec in project.services.items()
        if spec.get("image") or spec.get("build")
    }


def reference_of(project: Project, service: str, options: Options) -> str:
    """The image to run: as given, or the name a build would get (project-service, behind the chosen registry)."""
    image = project.services[service].get("image")
    if image:
        return str(image)
    name = f"{label(project.name)}-{label(service)}"
    return f"{options.registry.rstrip('/')}/{name}:latest" if options.registry else f"{name}:latest"


def _image(images: Mapping[str, ImageInfo], project: Project, service: str, reference: str) -> ImageInfo | None:
    found = images.get(reference)
    if found is None:
        try:
            parsed = parse_reference(reference)
        except BadInput as error:
            return ImageInfo(reference, known=False, problem=str(error))
        found = images.get(str(parsed)) or images.get(parsed.familiar)
    if found is None and not project.services[service].get("image"):
        return ImageInfo(reference, known=False, problem="built from source, and nobody has pushed it yet")
    return found


def _renamed(names: Mapping[str, str], aliases: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Names that are no DNS label, whatever their case. A dotted alias may be a real domain and stays."""
    out = {}
    for service, name in names.items():
        if not is_label(service.lower()):
            out[service] = name
        for alias, key in aliases[service].items():
            if not is_label(alias.lower()) and ("." not in alias or key == "container_name"):
                out.setdefault(alias, name)
    return out


def _decide_all(seen: Survey) -> None:
    waited = frozenset(
        target
        for spec in seen.project.services.values()
        for target, how in (spec.get("depends_on") or {}).items()
        if (how or {}).get("condition") == "service_completed_successfully"
    )
    for service, name in seen.names.items():
        called = any(_called(seen, service, alias) for alias in (service, *seen.aliases[service]))
        seen.decisions[service] = decide(
            service,
            name,
            seen.project,
            seen.references[service],
            seen.volumes.mounts[service],
            seen.volumes.claims,
            waited,
            called,
            seen.record,
        )
        _keep_behind_vpn(seen, service)
        seen.record.why(service, f"{seen.decisions[service].kind}: {seen.decisions[service].reason}")


def _keep_behind_vpn(seen: Survey, service: str) -> None:
    """A service in another's network namespace would talk in the open here: not started where that is a tunnel."""
    mode, _, target = str(seen.project.services[service].get("network_mode") or "").partition(":")
    if mode not in ("service", "container") or seen.decisions[service].kind == "Job":
        return
    owners = [name for name in seen.names if target in (name, *seen.aliases[name])]
    spec = seen.project.services[owners[0]] if owners else {}
    added = {str(name).upper().removeprefix("CAP_") for name in spec.get("cap_add") or []}
    if "NET_ADMIN" in added or _TUNNEL.search(f"{target} {spec.get('image', '')}"):
        why = f"not started (replicas 0): outside {target}'s network its traffic would go in the open"
        seen.decisions[service] = replace(seen.decisions[service], replicas=0, reason=why)
        seen.record.refused(service, "network_mode", f"{why}; add its container to {target}'s pod, then start it")


def _called(seen: Survey, service: str, name: str) -> bool:
    """Whether others speak to it, rather than only start after it."""
    users = seen.used.get(name, frozenset())
    return any(service not in (seen.project.services[user].get("depends_on") or {}) for user in users) or bool(
        users and seen.ports[service]
    )


def _place_all(seen: Survey, nodes: Sequence[NodeCapacity]) -> None:
    """Place one after the other, so that what one takes is gone for the next; a group needs one node for all."""
    free = list(nodes)
    placed: set[str] = set()
    for service in seen.names:
        group = seen.volumes.groups.get(service)
        members = [name for name in seen.names if seen.volumes.groups.get(name) == group] if group else [service]
        waiting = [name for name in members if name not in placed]
        needs = ServiceNeeds(
            service,
            seen.references[service],
            _platform(seen, service),
            sum(_cost(seen, name)[0] for name in waiting),
            sum(_cost(seen, name)[1] for name in waiting),
            _common(seen, members) if group else None,
            seen.decisions[service].kind == "DaemonSet",
        )
        placement = place(needs, seen.images[service], free, seen.options.preference)
        seen.placements[service] = placement
        placed.add(service)
        free = _take(free, placement, *_cost(seen, service)) if not needs.everywhere else free


def _cost(seen: Survey, service: str) -> tuple[int, int]:
    asked = seen.resources[service]
    return asked.cpu_m, asked.memory


def _platform(seen: Survey, service: str) -> str:
    return str(seen.project.services[service].get("platform") or seen.constraints[service].platform)


def _common(seen: Survey, members: Sequence[str]) -> frozenset[str] | None:
    """Architectures that every member with a known image can run on."""
    known = [info.architectures for name in members if (info := seen.images[name]) is not None and info.known]
    return frozenset.intersection(*known) if known else None


def _take(nodes: list[NodeCapacity], placement: Placement, cpu_m: int, memory: int) -> list[NodeCapacity]:
    if not placement.architectures or not (cpu_m or memory):
        return nodes
    tolerated = {str(t.get("key")) for t in placement.tolerations}
    fitting = [
        node
        for node in nodes
        if node.ready
        and node.arch == placement.architectures[0]
        and node.cpu_free_m >= cpu_m
        and node.memory_free >= memory
        and all(taint[0] in tolerated for taint in node.taints if taint[2] != "PreferNoSchedule")
    ]
    if not fitting:
        return nodes
    best = max(fitting, key=lambda node: (node.memory_free, node.name))
    less = replace(best, cpu_free_m=best.cpu_free_m - cpu_m, memory_free=best.memory_free - memory)
    return [less if node is best else node for node in nodes]


def _commands(seen: Survey, service: str, nodes: Sequence[NodeCapacity]) -> tuple[str, ...]:
    """What a person must run before this service can: build for the nodes there are, or join tags."""
    spec, reference, placement = seen.project.services[service], seen.references[service], seen.placements[service]
    wanted = sorted({node.arch for node in nodes}, key=lambda arch: (-seen.options.preference.weight(arch), arch))
    if placement.kind == "none" and placement.remedy:
        return (placement.remedy,)
    info = seen.images[service]
    named = architecture_in_name(reference)
    if named is not None and placement.kind != "none":
        return (named.remedy,)
    if placement.kind == "none" or (spec.get("build") and (info is None or not info.known)):
        return (buildx_command(reference, wanted, spec.get("build")),)
    return ()
