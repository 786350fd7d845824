"""The picture of a move: which volumes and services there are, and where they land, before and after."""

from __future__ import annotations

import plotly.graph_objects as go

from hybridlab.cluster import Cluster
from hybridlab.compose import Placement
from hybridlab.compose.model import LABEL_NAME
from hybridlab.stages import migrate
from hybridlab.stages.migrate.moving import pod_label
from hybridlab.stages.migrate.project import Move, load_move
from hybridlab.stages.migrate.transfers import RUNNABLE, workloads
from hybridlab.ui.colours import ARCH_COLOURS, GREY, RED, SLATE, faint


def move_figure(cluster: Cluster) -> go.Figure | None:
    """The volumes of a project, the services on them, and where each lands: the nodes of now, else what may take it."""
    move: Move | None = cluster.notes.get(migrate.NAME) or load_move(cluster, cluster.params_base)
    if move is None or not move.manifests.placements:
        return None
    running = _nodes_of(cluster, move)
    names: dict[str, tuple[str, str]] = {}  # what a box stands for → its text and colour
    flows: list[tuple[str, str, str]] = []

    def box(key: str, text: str, colour: str) -> str:
        names.setdefault(key, (text, colour))
        return key

    for claim in move.manifests.claims:
        volume = box(f"v {claim.name}", f"{claim.source} ({claim.size})", GREY)
        flows += [(volume, box(f"s {service}", service, SLATE), faint(GREY)) for service in claim.services]
    for service, placement in move.manifests.placements.items():
        start = box(f"s {service}", service, SLATE)
        for where, arch in running.get(service) or [_landing(cluster, placement)]:
            colour = ARCH_COLOURS.get(arch, RED)
            flows.append((start, box(f"n {where}", where, colour), faint(colour)))
    order = list(names)
    made = go.Figure(
        go.Sankey(
            arrangement="snap",
            node={
                "label": [names[k][0] for k in order],
                "color": [names[k][1] for k in order],
                "pad": 12,
                "align": "right",
            },
            link={
                "source": [order.index(a) for a, _, _ in flows],
                "target": [order.index(b) for _, b, _ in flows],
                "value": [1] * len(flows),
                "color": [colour for _, _, colour in flows],
                "hovertemplate": "%{source.label} → %{target.label}<extra></extra>",
            },
        )
    )
    title = "Volumes → services → where they run" if running else "Volumes → services → where they may run"
    return made.update_layout(title=title, height=max(420, 34 * len(move.manifests.placements)))


def _nodes_of(cluster: Cluster, move: Move) -> dict[str, list[tuple[str, str]]]:
    """On which nodes the pods of each service run now, each node with its architecture."""
    kube = cluster.kube_or_none
    if kube is None:
        return {}
    arch = {n.name: n.arch for n in kube.nodes()}
    labels = {pod_label(obj): service for service, obj in workloads(move).items()}
    found: dict[str, list[tuple[str, str]]] = {}
    for pod in kube.list("v1", "Pod", cluster.params.migrate.namespace):
        service = labels.get(pod["metadata"].get("labels", {}).get(LABEL_NAME, ""))
        node = pod["spec"].get("nodeName")
        if service and node and pod.get("status", {}).get("phase") == "Running":
            found.setdefault(service, []).append((f"{node} ({arch.get(node, '?')})", arch.get(node, "?")))
    return found


def _landing(cluster: Cluster, placement: Placement) -> tuple[str, str]:
    """Where a service that does not run yet may land, in words, and the architecture that it would rather have."""
    if placement.kind not in RUNNABLE:
        return {"unknown": "unknown: its image was not found"}.get(placement.kind, "no node"), ""
    wanted = placement.architectures[:1] or ("any",)
    nodes = [
        w.name for w in cluster.params.wishes if w.arch in placement.architectures[:1] or not placement.architectures
    ]
    return f"{'prefers ' if placement.kind == 'prefer' else ''}{wanted[0]}: {', '.join(nodes)}", wanted[0]
