"""The way in by a tunnel: cloudflared runs in the cluster and reaches from there what the tunnel's routes may name.

The routes themselves are set at Cloudflare; whoever holds the token is a connector, so nothing here can move them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from hybridlab.errors import Refused
from hybridlab.models import Json
from hybridlab.plan import Step
from hybridlab.ports import Context
from hybridlab.stages.helperpod import pod_ready, running_helper
from hybridlab.stages.migrate import moving
from hybridlab.stages.migrate.dumps import tool_for
from hybridlab.stages.migrate.project import Move
from hybridlab.stages.migrate.transfers import workloads

TUNNEL = "hybridlab.io/cut-over-tunnel"
"""Annotation on the services' namespace: how many addresses cloudflared reached when the tunnel was switched."""
CLOUDFLARED = "cloudflared"
NEXT = "run 060-expose-services with a tunnel token, or set cut_over.switch to none"


def switched(namespace: Mapping[str, Json] | None) -> bool:
    return TUNNEL in ((namespace or {}).get("metadata", {}).get("annotations") or {})


def is_cloudflared(image: str) -> bool:
    return CLOUDFLARED in image.rsplit("/", 1)[-1]


def own_connectors(move: Move) -> list[str]:
    """The services of the project that are cloudflared themselves: they start with the others."""
    return [s for s in workloads(move) if is_cloudflared(str(move.project.services[s].get("image", "")))]


def need_connector(ctx: Context, move: Move) -> None:
    """Before anything stops: without one the way in would be missing at the end. Raises Refused."""
    if ctx.params.cut_over.switch == "tunnel" and not own_connectors(move):
        _connector(ctx)


def _connector(ctx: Context) -> dict[str, Json]:
    pods = [pod for pod in ctx.kube.list("v1", "Pod") if _has_cloudflared(pod) and pod_ready(pod)]
    if not pods:
        raise Refused("no cloudflared is Ready in the cluster", where="cut_over.switch: tunnel", next_move=NEXT)
    # the project's own is the one that its tunnel's routes were made for
    return next((p for p in pods if p["metadata"]["namespace"] == ctx.params.migrate.namespace), pods[0])


def _has_cloudflared(pod: Mapping[str, Json]) -> bool:
    return any(is_cloudflared(str(c["image"])) for c in pod["spec"]["containers"])


def addresses(ctx: Context, move: Move) -> list[str]:
    """NAME.NAMESPACE:PORT of what a route may name: every TCP port of the services' Services but databases'."""
    mine = workloads(move)
    images = {s: str(move.project.services[s].get("image", "")) for s in mine}
    labels = {moving.pod_label(mine[s]) for s, image in images.items() if not tool_for(image)}
    namespace = ctx.params.migrate.namespace
    return [
        f"{service['metadata']['name']}.{namespace}:{port['port']}"
        for service in ctx.kube.list("v1", "Service", namespace)
        if set((service["spec"].get("selector") or {}).values()) & labels
        for port in service["spec"].get("ports", [])
        if port.get("protocol", "TCP") == "TCP"
    ]


def switch_tunnel(ctx: Context, step: Step) -> Mapping[str, Json]:
    """Ask for a connection to each address from where cloudflared runs, and tell the routes that may name them.

    Raises Refused when no cloudflared is Ready, or when it would reach nothing at all.
    """
    pod, asked = _connector(ctx), addresses(ctx, moving.move_of(ctx))
    namespace = str(pod["metadata"]["namespace"])
    with running_helper(ctx, namespace, "hybridlab-tunnel", {}) as call:
        rows = json.loads(call("probe", *(f"{address}/tcp" for address in asked))) if asked else []
    good = [row["target"].removesuffix("/tcp") for row in rows if row["state"] in ("open", "echo")]
    if asked and not good:
        raise Refused(
            "cloudflared reaches none of the services",
            where=f"namespace {namespace}",
            why="; ".join(f"{row['target']}: {row.get('error') or row['state']}" for row in rows[:3]),
            next_move=f"look at: kubectl -n {ctx.params.migrate.namespace} get endpoints",
        )
    routes = [f"http://{address}" for address in good]
    ctx.say("routes of the tunnel may name: " + ", ".join(routes))
    _note(ctx, f"{len(routes)} addresses")
    return {"cloudflared": f"{namespace}/{pod['metadata']['name']}", "routes": routes}


def unswitch_tunnel(ctx: Context, step: Step) -> Mapping[str, Json]:
    """Forget the switch, and say what only Cloudflare's dashboard can undo."""
    leave_tunnel(ctx)
    return {}


def leave_tunnel(ctx: Context) -> bool:
    """The same for a roll-back; returns whether the tunnel was switched."""
    if not switched(ctx.kube.get("v1", "Namespace", ctx.params.migrate.namespace)):
        return False
    ctx.say("routes of the tunnel that name services of the cluster must name the Docker host's again")
    _note(ctx, None)
    return True


def _note(ctx: Context, value: str | None) -> None:
    body = {"metadata": {"annotations": {TUNNEL: value}}}
    ctx.kube.patch("v1", "Namespace", ctx.params.migrate.namespace, None, body)
