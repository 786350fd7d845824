"""What a stage saw, as tables: one function a stage."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

from hybridlab.cluster import Cluster
from hybridlab.ports import TAG
from hybridlab.stages import layout, migrate, scores
from hybridlab.ui.tables import BAD, GOOD, NOTE, WARN, Line, Mark, Table

View = Table | Line


def view_seen(seen: Any) -> list[View]:
    """Tables of a stage's ``Seen``, or of any frozen dataclass as names and values."""
    parts = type(seen).__module__.split(".")
    if parts[:2] == ["hybridlab", "stages"] and parts[2] in _VIEWS and type(seen).__name__ == "Seen":
        return _VIEWS[parts[2]](seen)
    if is_dataclass(seen) and not isinstance(seen, type):
        return [Table(type(seen).__name__, ("what", "value"), [(k, str(v)) for k, v in asdict(seen).items()])]
    return [Line(Mark(NOTE, "value"), repr(seen))]


def _whose(tags: Mapping[str, str]) -> str:
    return "ours" if TAG in tags else "not ours"


def _layout(seen: layout.Seen) -> list[View]:
    rows = [
        (a.name, a.until or "today", a.a1_ocpus, a.a1_memory_gb, a.micros, a.storage_gb, a.source)
        for a in seen.allowances
    ]
    columns = ("allowance", "until", "A1 OCPU", "A1 GB", "micros", "volumes GB", "source")
    views: list[View] = [Table("Dated free allowances", columns, rows)]
    if seen.live:
        views.append(Table("What the account's own limits leave", ("resource", "limit"), list(seen.live.items())))
    else:
        views.append(Line(Mark(NOTE, "limits"), "not asked: no wanted VM is missing, or the hosts are your own"))
    return views


def view_fit(wishes: Any, allowance: str) -> Table:
    """The wanted nodes against one allowance, resource by resource."""
    chosen = layout.allowance_named(allowance)
    rows = [
        (
            Mark(GOOD if line.ok else BAD, "fits" if line.ok else "over"),
            line.resource,
            line.wanted,
            line.allowed,
            line.left,
        )
        for line in layout.compare(wishes, chosen)
    ]
    return Table(f"The layout against {allowance}", ("", "resource", "wanted", "allowed", "left"), rows)


def view_comparison(cluster: Cluster) -> Table:
    """arm64 against amd64 in each test of the benchmark on record, and what follows for placements."""
    evidence = cluster.evidence.load("benchmark")
    rows = []
    for c in scores.compare(evidence.data) if evidence else ():
        mark = Mark(GOOD, "counts") if c.significant else Mark(NOTE, "does not count")
        rows.append((mark, c.test, f"{c.ratio:.2f}", f"{c.low:.2f}–{c.high:.2f}", c.why))
    return Table("arm64 ÷ amd64", ("", "test", "ratio", "95 % interval", "why"), rows)


def view_scores(cluster: Cluster) -> Table:
    """What each node reached in each test: median, range over the rounds, and the share of CPU it got."""
    evidence = cluster.evidence.load("benchmark")
    rows = [
        (s.test, s.node, s.arch, round(s.median), f"{s.low:,.0f}–{s.high:,.0f} {s.unit}", f"{100 * s.cpu_share:.0f} %")
        for s in sorted(scores.scores(evidence.data) if evidence else (), key=lambda s: (s.test, s.node))
    ]
    return Table("Measured", ("test", "node", "arch", "median", "range", "CPU obtained"), rows)


def _provision(seen: Any) -> list[View]:
    vms = [
        (
            vm.name,
            Mark(GOOD if vm.state == "RUNNING" else WARN, vm.state),
            vm.shape,
            vm.ocpus,
            vm.memory_gb,
            vm.availability_domain,
            vm.private_ip or "",
            vm.public_ip or "",
            "ours" if "hybridlab" in vm.tags else "not ours",
        )
        for vm in seen.instances
    ]
    columns = ("VM", "state", "shape", "OCPU", "GB", "domain", "private", "public", "whose")
    network = [
        (r.kind, r.name, r.state, str(r.detail.get("cidr", ""))) for r in seen.resources if r.kind != "boot-volume"
    ]
    return [
        Table("VMs in the compartment", columns, vms),
        Table("Network", ("kind", "name", "state", "range"), network),
        Line(Mark(NOTE, "operator"), f"you come from {seen.operator_cidr}"),
    ]


def _bootstrap(seen: Any) -> list[View]:
    rows = []
    for name, host in seen.hosts.items():
        rejects = len(host.rejects_live) + len(host.rejects_saved)
        firewall = Mark(GOOD, "open") if not rejects else Mark(WARN, f"{rejects} REJECT rules")
        unit = Mark(GOOD if host.unit == "active" else WARN, host.unit or "none")
        rows.append((name, host.machine, firewall, host.k3s_version or "none", unit, ", ".join(host.swap) or "none"))
    nodes = [
        (n.name, Mark(GOOD if n.ready else BAD, "Ready" if n.ready else "not Ready"), n.arch, n.version, n.internal_ip)
        for n in seen.nodes
    ]
    return [
        Table("Hosts", ("host", "machine", "firewall", "K3s", "service", "swap"), rows),
        Table("Nodes of the cluster", ("node", "state", "arch", "version", "address"), nodes),
    ]


def _benchmark(seen: Any) -> list[View]:
    mark = Mark(GOOD, "usable") if seen.usable else Mark(WARN, "to be measured")
    return [Line(mark, f"evidence: {seen.why}")]


def _storage(seen: Any) -> list[View]:
    rows = [
        (
            Mark(GOOD if v.fits else BAD, "fits" if v.fits else "no"),
            v.engine,
            "yes" if v.moves else "no",
            v.replicas,
            v.needs,
            v.why,
        )
        for v in seen.verdicts
    ]
    columns = ("", "engine", "volumes move", "copies", "needs", "verdict")
    views: list[View] = [Table("Storage engines against these nodes", columns, rows)]
    if seen.hosts:
        hosts = [
            (name, Mark(GOOD if h.ready else WARN, "ready" if h.ready else "to do"), h.package or "missing", h.service)
            for name, h in seen.hosts.items()
        ]
        views.append(Table("iSCSI on the hosts", ("host", "", "open-iscsi", "iscsid"), hosts))
    return views


def _expose(seen: Any) -> list[View]:
    token = Mark(GOOD, "there") if seen.token_hash else Mark(WARN, "none")
    return [Line(token, f"tunnel token (sha256 {seen.token_hash}…)" if seen.token_hash else "tunnel token")]


def _migrate(seen: Any) -> list[View]:
    if seen.move is None:
        return [Line(Mark(NOTE, "nothing"), "no compose file is named in the params")]
    signs = {"any": GOOD, "prefer": GOOD, "only": WARN, "none": BAD, "unknown": BAD}
    rows = []
    for service, info, placement in migrate.images_table(seen.move):
        archs = ", ".join(sorted(info.architectures)) if info and info.known else "unknown"
        image = seen.move.manifests.images.get(service, "")
        rows.append((service, image, archs, Mark(signs[placement.kind], placement.kind), _reason(placement.reason)))
    claims = [
        (c.name, c.kind, c.source, ", ".join(c.services), seen.copied.get(c.name, "")[:12] or "not yet")
        for c in seen.move.manifests.claims
    ]
    return [
        Table("Images and where they may run", ("service", "image", "architectures", "placement", "why"), rows),
        Table("Data to move", ("claim", "kind", "source", "services", "copied"), claims),
        view_fidelity(seen.move),
    ]


def _reason(text: str) -> str:
    """A placement's reason without its first words, which repeat the column of architectures."""
    return re.sub(r"^image has [a-z0-9, ]+: ", "", text)


def view_fidelity(move: Any) -> Table:
    """What of the compose file was only approximated or refused."""
    signs = {"approximated": WARN, "refused": BAD}
    rows = [
        (Mark(signs[f.verdict], f.verdict), f.service or "(project)", f.key, f.note)
        for f in move.manifests.fidelity
        if f.verdict in signs
    ]
    mapped = sum(f.verdict == "mapped" for f in move.manifests.fidelity)
    return Table(f"Compose keys: {mapped} mapped as they are, and these", ("", "service", "key", "how"), rows)


def _cut_over(seen: Any) -> list[View]:
    if seen.move is None:
        return [Line(Mark(NOTE, "nothing"), "no compose file is named in the params")]
    side = {"cluster": "in the cluster", "docker": "on the Docker host, after a cut-over was taken back"}
    where = side.get(seen.state, "on the Docker host: they were never cut over")
    since = f" since {seen.since[:19].replace('T', ' ')} UTC" if seen.since else ""
    old = {c.service: c for c in seen.there}
    rows = []
    for service, placement in seen.move.manifests.placements.items():
        here = Mark(GOOD, "Ready") if service in seen.ready else Mark(WARN, "not Ready")
        here = here if service in seen.up else Mark(NOTE, "at rest")
        there = "none" if service not in old else "runs" if old[service].running else "stopped"
        rows.append(
            (service, there, here if placement.kind in migrate.RUNNABLE else Mark(BAD, "can't run"), placement.reason)
        )
    return [
        Line(Mark(GOOD if seen.state == "cluster" else NOTE, "services"), f"{where}{since}"),
        Table("Both sides", ("service", "Docker host", "cluster", "runs on"), rows),
    ]


def _backup(seen: Any) -> list[View]:
    rows = [(c.name, c.phase, c.storage_class, ", ".join(c.pods) or "nothing", c.node) for c in seen.claims]
    return [
        Line(
            Mark(GOOD if seen.location == "Available" else WARN, seen.location or "no location"), "S3 target in Velero"
        ),
        Table("Claims", ("claim", "phase", "class", "mounted by", "node"), rows),
    ]


def _drill(seen: Any) -> list[View]:
    mark = Mark(GOOD, "proved") if seen.usable else Mark(WARN, "not proved")
    return [Line(mark, f"backup {seen.backup or '(none yet)'}: {seen.why}")]


def _teardown(seen: Any) -> list[View]:
    vms = [(vm.name, vm.state, _whose(vm.tags)) for vm in seen.instances]
    rest = [(r.kind, r.name, r.state, _whose(r.tags)) for r in seen.resources]
    return [Table("VMs", ("VM", "state", "whose"), vms), Table("Resources", ("kind", "name", "state", "whose"), rest)]


def _maintain(seen: Any) -> list[View]:
    rows = [
        (
            n.name,
            Mark(GOOD if n.ready else BAD, "Ready" if n.ready else "not Ready"),
            "yes" if n.schedulable else "cordoned",
            (seen.pods or {}).get(n.name, 0),
        )
        for n in seen.nodes
    ]
    return [Table("Nodes", ("node", "state", "schedulable", "pods to move"), rows)]


_VIEWS: dict[str, Callable[[Any], list[View]]] = {
    "layout": _layout,
    "provision": _provision,
    "bootstrap": _bootstrap,
    "benchmark": _benchmark,
    "storage": _storage,
    "expose": _expose,
    "migrate": _migrate,
    "cut_over": _cut_over,
    "backup": _backup,
    "drill": _drill,
    "teardown": _teardown,
    "maintain": _maintain,
}
