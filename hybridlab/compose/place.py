"""Where a service's pod may run and would rather run, from its image's platforms and the nodes there are.

Several architectures fit → a soft preference, one term per architecture (the scheduler normalises the sum, so a single
term's weight would mean nothing). One fits → nodeSelector. None fits → a selector that keeps the pod Pending rather
than failing with "exec format error". A taint is tolerated only by what can run nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hybridlab.compose.images import SPELLINGS, architecture_in_name
from hybridlab.compose.model import ARCH_LABEL, Placement, Preference, ServiceNeeds
from hybridlab.compose.units import memory_quantity
from hybridlab.models import ImageInfo, Json, NodeCapacity, Platform

_HARD = ("NoSchedule", "NoExecute")


def place(
    service: ServiceNeeds, image: ImageInfo | None, nodes: Sequence[NodeCapacity], preference: Preference
) -> Placement:
    """Decide for one service. Without nodes (no cluster yet) the image's own architectures are the only limit."""
    wanted = _platform_architecture(service.platform)
    if service.platform and wanted is None:
        return Placement(
            "unknown", f"platform {service.platform} is not a Linux architecture that nodes have labels for"
        )
    named = architecture_in_name(service.image)
    if image is None or not image.known:
        problem = image.problem if image is not None and image.problem else "the image was not looked up"
        return _unknown(service, problem, wanted, named.architecture if named else "", nodes)
    built = image.architectures
    allowed = {wanted} & built if wanted else set(built)
    basis = f"image has {_words(built)}"
    if wanted:
        basis += f", compose asks for {service.platform}"
    if service.allowed is not None:
        allowed &= service.allowed
        basis += f", services on the same claim need {_words(service.allowed)}"
    present: set[str] = {node.arch for node in nodes if node.ready} if nodes else set(allowed)
    fit = allowed & present
    warnings = _variant_warnings([p for p in image.platforms if p.architecture in fit])
    if named:
        warnings += (f"the reference itself names {named.spelled}: {named.remedy}",)
    if not fit:
        reason = f"{basis}; the nodes are {_words(present)}: no platform fits"
        selector = {ARCH_LABEL: sorted(allowed or built)[0]} if (allowed or built) else {}
        return Placement("none", reason, node_selector=selector, warnings=warnings)
    if service.everywhere:
        return _everywhere(basis, fit, present, nodes, warnings)
    return _where_it_fits(service, basis, fit, present, nodes, preference, warnings)


def _where_it_fits(
    service: ServiceNeeds,
    basis: str,
    fit: set[str],
    present: set[str],
    nodes: Sequence[NodeCapacity],
    preference: Preference,
    warnings: tuple[str, ...],
) -> Placement:
    candidates = [node for node in nodes if node.arch in fit and node.ready]
    roomy = [node for node in candidates if not _short_of(service, node)]
    if nodes and not roomy:
        selector = {ARCH_LABEL: sorted(fit)[0]} if len(fit) == 1 else {}
        lacks = "; ".join(f"{node.name}: {_short_of(service, node)}" for node in candidates)
        reason = f"{basis}, but it has room on no node: {lacks or 'no node is ready'}"
        return Placement(
            "none",
            reason,
            node_selector=selector,
            warnings=warnings,
            remedy="lower its memory or CPU request, or add a node",
        )
    open_nodes = [node for node in roomy if not _hard_taints(node)]
    tolerations = () if open_nodes or not roomy else _tolerations(roomy)
    landing = open_nodes or roomy
    reachable = {node.arch for node in landing} if nodes else fit
    order = sorted(reachable, key=lambda arch: (-preference.weight(arch), arch))
    notes = [f"{node.name} left out: {_short_of(service, node)}" for node in candidates if _short_of(service, node)]
    if tolerations:
        names = ", ".join(node.name for node in roomy)
        notes.append(f"only {names} can run it, so its taint is tolerated")
    elif nodes:
        notes += [f"{node.name} left to what can run nowhere else (tainted)" for node in roomy if _hard_taints(node)]
    tail = "".join(f"; {note}" for note in notes)
    if len(fit) == 1:
        only = next(iter(fit))
        return Placement("only", f"{basis}: {only} only{tail}", {ARCH_LABEL: only}, {}, tolerations, (only,), warnings)
    affinity: dict[str, Json] = {}
    if present - fit:
        affinity["requiredDuringSchedulingIgnoredDuringExecution"] = _required(fit)
    # A term for every architecture that fits, even one that is full or tainted now: that can change, the weights not.
    terms = sorted(fit, key=lambda arch: (-preference.weight(arch), arch))
    affinity["preferredDuringSchedulingIgnoredDuringExecution"] = [
        {"weight": preference.weight(arch), "preference": {"matchExpressions": [_in_arch([arch])]}} for arch in terms
    ]
    shown = ", ".join(f"{arch} {preference.weight(arch)}" for arch in terms)
    reason = f"{basis}: prefers {terms[0]} (weights {shown}; {preference.reason}){tail}"
    return Placement("prefer", reason, {}, {"nodeAffinity": affinity}, tolerations, tuple(order), warnings)


def _everywhere(
    basis: str, fit: set[str], present: set[str], nodes: Sequence[NodeCapacity], warnings: tuple[str, ...]
) -> Placement:
    tolerations = _tolerations(node for node in nodes if node.arch in fit)
    reason = f"{basis}: one pod on every node of {_words(fit)}"
    if tolerations:
        reason += "; it watches the node it runs on, so tainted nodes get one, too"
    if len(fit) == 1 and present - fit:
        only = next(iter(fit))
        return Placement("only", reason, {ARCH_LABEL: only}, {}, tolerations, (only,), warnings)
    affinity: dict[str, Json] = {}
    if present - fit:
        affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": _required(fit)}}
    return Placement("any", reason, {}, affinity, tolerations, tuple(sorted(fit)), warnings)


def _unknown(
    service: ServiceNeeds, problem: str, wanted: str | None, named: str, nodes: Sequence[NodeCapacity]
) -> Placement:
    pinned = wanted or named
    if not pinned:
        return Placement("unknown", f"{problem}: its architectures are not known, so it may land where it cannot run")
    source = f"compose asks for {service.platform}" if wanted else f"the reference names {pinned}"
    candidates = [node for node in nodes if node.arch == pinned and node.ready]
    blocked = candidates and all(_hard_taints(node) for node in candidates)
    return Placement(
        "unknown",
        f"{problem}; {source}",
        {ARCH_LABEL: pinned},
        {},
        _tolerations(candidates) if blocked else (),
        (pinned,),
    )


def _platform_architecture(platform: str) -> str | None:
    """``linux/arm64/v8`` → arm64; None for what is not Linux (wasi/wasm) or not given."""
    parts = platform.lower().split("/")
    if not platform or (len(parts) > 1 and parts[0] != "linux"):
        return None
    word = parts[1] if len(parts) > 1 else parts[0]
    return SPELLINGS.get(word) if len(parts) == 1 else SPELLINGS.get(word, word)


def _short_of(service: ServiceNeeds, node: NodeCapacity) -> str:
    lacks = []
    if service.memory > node.memory_free:
        lacks.append(f"asks {_mib(service.memory)} of memory, {_mib(node.memory_free)} free")
    if service.cpu_m > node.cpu_free_m:
        lacks.append(f"asks {service.cpu_m}m of CPU, {node.cpu_free_m}m free")
    return " and ".join(lacks)


def _mib(count: int) -> str:
    return memory_quantity(max(0, count) // 1048576 * 1048576)


def _hard_taints(node: NodeCapacity) -> tuple[tuple[str, str, str], ...]:
    return tuple(taint for taint in node.taints if taint[2] in _HARD)


def _tolerations(nodes: Iterable[NodeCapacity]) -> tuple[dict[str, str], ...]:
    taints = dict.fromkeys(taint for node in nodes for taint in _hard_taints(node))
    return tuple(
        {"key": key, "operator": "Equal", "value": value, "effect": effect}
        if value
        else {"key": key, "operator": "Exists", "effect": effect}
        for key, value, effect in taints
    )


def _in_arch(architectures: Iterable[str]) -> dict[str, Json]:
    return {"key": ARCH_LABEL, "operator": "In", "values": sorted(architectures)}


def _required(fit: Iterable[str]) -> dict[str, Json]:
    return {"nodeSelectorTerms": [{"matchExpressions": [_in_arch(fit)]}]}


def _variant_warnings(platforms: Iterable[Platform]) -> tuple[str, ...]:
    """kubernetes.io/arch carries no variant: an amd64/v3 image passes the selector and may still not run."""
    odd = [
        p
        for p in platforms
        if (p.architecture == "amd64" and p.variant not in ("", "v1"))
        or (p.architecture == "arm64" and p.variant not in ("", "v8"))
        or (p.architecture == "arm" and p.variant in ("v6", "v7") and not _has(platforms, "arm64"))
    ]
    plain = {p.architecture for p in platforms if p not in odd}
    return tuple(
        f"{p}: node labels carry no variant, check that the CPU has it" for p in odd if p.architecture not in plain
    )


def _has(platforms: Iterable[Platform], architecture: str) -> bool:
    return any(p.architecture == architecture for p in platforms)


def _words(items: Iterable[str]) -> str:
    return ", ".join(sorted(items)) or "none"
