"""Pictures where people would rather look than read: allowance, paths between nodes, speeds, what runs where."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from hybridlab.cluster import Cluster, StageRun
from hybridlab.errors import BadInput
from hybridlab.stages import layout, scores
from hybridlab.stages.bootstrap.matrix import BEFORE, connectivity
from hybridlab.stages.nodes import node_hosts
from hybridlab.ui.colours import ARCH_COLOURS, GREEN, GREY, RED
from hybridlab.ui.moves import move_figure


def figure(stage: StageRun) -> go.Figure | None:
    """The picture of a stage as it stands; None where it has none yet."""
    draw = _FIGURES.get(stage.name)
    if draw is None:
        raise BadInput(f"stage {stage.name} has no picture", next_move="show(stage.look()) has its tables")
    made = draw(stage.cluster)
    return made.update_layout(**_STYLE) if made is not None else None


_STYLE: Mapping[str, Any] = {
    "template": "plotly_white",
    "font": {"family": "system-ui, sans-serif", "size": 13},
    "margin": {"l": 60, "r": 20, "t": 60, "b": 40},
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "legend": {"orientation": "h", "y": -0.15},
}


def allowance_figure(cluster: Cluster) -> go.Figure:
    """Each resource of the layout as a share of what each dated allowance gives."""
    rows = []
    for allowance in layout.allowances():
        if allowance.name == "payg":
            continue
        for line in layout.compare(cluster.params.wishes, allowance):
            share = 100 * line.wanted / line.allowed if line.allowed else 0
            text = f"{line.wanted:g} of {line.allowed:g}"
            rows.append((line.resource, allowance.name, share, text, "over" if not line.ok else "fits"))
    frame = pd.DataFrame(rows, columns=["resource", "allowance", "percent", "text", "verdict"])
    made = px.bar(
        frame,
        x="percent",
        y="resource",
        color="verdict",
        text="text",
        facet_col="allowance",
        orientation="h",
        color_discrete_map={"fits": GREEN, "over": RED},
        category_orders={"verdict": ["fits", "over"]},
        title="The wanted nodes against the free allowance",
        labels={"percent": "% of the allowance", "resource": ""},
    )
    made.add_vline(x=100, line_dash="dot", line_color=GREY)
    made.for_each_annotation(lambda a: a.update(text=a.text.split("=")[-1]))
    return made


def connectivity_figure(cluster: Cluster) -> go.Figure | None:
    """From which node to which the ports of K3s are open, measured now; beside it how it was before bootstrap."""
    hosts = node_hosts(cluster)
    if len(hosts) < 2:
        return None
    names = list(hosts)
    now = {f"{a} → {b}": state for (a, b), state in connectivity(cluster, hosts).items()}
    kept = cluster.evidence.load(BEFORE)
    pictures = {"before": kept.data["paths"], "now": now} if kept else {"now": now}
    titles = list(pictures) if len(pictures) > 1 else None
    made = make_subplots(1, len(pictures), subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.04)
    for column, paths in enumerate(pictures.values(), 1):
        made.add_trace(_path_grid(names, paths), 1, column)
    made.update_layout(title="Paths between nodes (6443/tcp, 10250/tcp, 8472/udp)")
    made.update_xaxes(title="to")
    made.update_yaxes(autorange="reversed")
    made.update_yaxes(title="from", col=1)
    return made


def _path_grid(names: list[str], paths: Mapping[str, str]) -> go.Heatmap:
    rows = [[None if a == b else paths.get(f"{a} → {b}", "not probed") for b in names] for a in names]
    return go.Heatmap(
        z=[[None if state is None else int(state == "ok") for state in row] for row in rows],
        x=names,
        y=names,
        text=[[state or "" for state in row] for row in rows],
        texttemplate="%{text}",
        showscale=False,
        zmin=0,
        zmax=1,
        colorscale=[[0, RED], [1, GREEN]],
        xgap=3,
        ygap=3,
        hovertemplate="%{y} → %{x}: %{text}<extra></extra>",
    )


def benchmark_figure(cluster: Cluster) -> go.Figure | None:
    """Medians of each node relative to the fastest, with the range over the rounds."""
    evidence = cluster.evidence.load("benchmark")
    if evidence is None:
        return None
    rows = scores.scores(evidence.data)
    best = {test: max(s.median for s in rows if s.test == test) for test in {s.test for s in rows}}
    made = go.Figure()
    for node in dict.fromkeys(s.node for s in rows):
        mine = [s for s in rows if s.node == node]
        arch = mine[0].arch
        made.add_bar(
            name=f"{node} ({arch})",
            x=[s.test for s in mine],
            y=[100 * s.median / best[s.test] for s in mine],
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [100 * (s.high - s.median) / best[s.test] for s in mine],
                "arrayminus": [100 * (s.median - s.low) / best[s.test] for s in mine],
            },
            hovertext=[f"{s.median:,.0f} {s.unit} ({s.low:,.0f}–{s.high:,.0f})" for s in mine],
            hoverinfo="name+x+text",
            marker={"color": ARCH_COLOURS.get(arch, GREY), "pattern": {"shape": "" if node.endswith("1") else "/"}},
        )
    where = " — in the lab: all nodes are this machine" if evidence.data["same_machine"] else ""
    made.update_layout(
        barmode="group", title="Speed of each node, best = 100" + where, yaxis_title="% of the best node"
    )
    return made


def placement_figure(cluster: Cluster) -> go.Figure | None:
    """Which service runs on which node, now."""
    kube = cluster.kube_or_none
    if kube is None:
        return None
    arch = {n.name: n.arch for n in kube.nodes()}
    rows = []
    for pod in kube.list("v1", "Pod"):
        node = pod["spec"].get("nodeName")
        if node and pod.get("status", {}).get("phase") == "Running":
            name = pod["metadata"].get("labels", {}).get("app.kubernetes.io/name") or pod["metadata"]["name"]
            rows.append((f"{node} ({arch.get(node, '?')})", pod["metadata"]["namespace"], name, arch.get(node, "?"), 1))
    if not rows:
        return None
    frame = pd.DataFrame(rows, columns=["node", "namespace", "pod", "arch", "count"])
    frame = pd.DataFrame(frame.groupby(["node", "namespace", "pod", "arch"], as_index=False)["count"].sum())
    made = px.treemap(
        frame,
        path=[px.Constant(cluster.params.cluster), "node", "namespace", "pod"],
        values="count",
        color="arch",
        color_discrete_map={**ARCH_COLOURS, "(?)": "#eceff1"},
        title="What runs where",
    )
    made.update_traces(root_color="#eceff1", tiling={"pad": 3})
    return made


def coverage_figure(cluster: Cluster) -> go.Figure | None:
    """Which claims the last backup holds."""
    evidence = cluster.evidence.load("backup")
    if evidence is None or not evidence.data["coverage"]:
        return None
    rows = evidence.data["coverage"]
    sizes = evidence.data["claims"]
    made = go.Figure(
        go.Bar(
            y=[r["claim"] for r in rows],
            x=[sizes.get(r["claim"].split("/")[-1], {}).get("after", {}).get("bytes", 0) / 1e6 for r in rows],
            orientation="h",
            text=["in the backup" if r["covered"] else f"not: {r['why']}" for r in rows],
            marker_color=[GREEN if r["covered"] else RED for r in rows],
        )
    )
    made.update_layout(title=f"Backup {evidence.data['name']}: every claim", xaxis_title="MB", yaxis_title="")
    return made


_FIGURES: Mapping[str, Callable[[Cluster], go.Figure | None]] = {
    "layout": allowance_figure,
    "bootstrap": connectivity_figure,
    "benchmark": benchmark_figure,
    "migrate": move_figure,
    "cut_over": move_figure,
    "maintain": placement_figure,
    "backup": coverage_figure,
}
