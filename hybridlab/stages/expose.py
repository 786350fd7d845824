"""060: the way in: a Cloudflare Tunnel (no open port, no address of one's own), or Traefik on ports 80 and 443."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from hybridlab.errors import BadInput
from hybridlab.models import Check, Finding, Json
from hybridlab.params import Params
from hybridlab.plan import Plan, Step
from hybridlab.ports import Context
from hybridlab.stages.base import Action, Upstream
from hybridlab.stages.objects import MANAGED, Differences, apply_object, apply_steps, deployment_ready, look_objects
from hybridlab.wait import wait_until

NAME = "expose"
NEEDS = ("bootstrap",)
NAMESPACE = "cloudflared"
SECRET = "tunnel-token"
READY_DEADLINE_S = 300.0


@dataclass(frozen=True)
class Seen:
    """The objects against what is wanted, and whether there is a token, by its hash only."""

    objects: Differences = field(default_factory=Differences)
    token_hash: str = ""  # of the token we have; empty when there is none
    live_hash: str = ""  # of the token in the cluster
    traefik: bool = False  # whether Traefik's Deployment is there


def wanted_objects(params: Params) -> tuple[dict[str, Json], ...]:
    """cloudflared as a plain Deployment, remotely managed; the Secret is applied by an action of its own."""
    if params.expose.method != "cloudflare":
        return ()
    labels = {"app.kubernetes.io/name": "cloudflared", **MANAGED}
    select = {"app.kubernetes.io/name": "cloudflared"}
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": dict(MANAGED)}}
    container = {
        "name": "cloudflared",
        "image": params.expose.image,
        "args": ["tunnel", "--no-autoupdate", "--metrics", "0.0.0.0:2000", "run"],
        "env": [{"name": "TUNNEL_TOKEN", "valueFrom": {"secretKeyRef": {"name": SECRET, "key": "token"}}}],
        "ports": [{"name": "metrics", "containerPort": 2000}],
        "livenessProbe": {"httpGet": {"path": "/ready", "port": 2000}, "failureThreshold": 3, "periodSeconds": 10},
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "128Mi"}},
    }
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "cloudflared", "namespace": NAMESPACE, "labels": labels},
        "spec": {
            "replicas": params.expose.replicas,
            "selector": {"matchLabels": select},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "enableServiceLinks": False,
                    "affinity": {
                        "podAntiAffinity": {
                            "preferredDuringSchedulingIgnoredDuringExecution": [
                                {
                                    "weight": 100,
                                    "podAffinityTerm": {
                                        "labelSelector": {"matchLabels": select},
                                        "topologyKey": "kubernetes.io/hostname",
                                    },
                                }
                            ]
                        }
                    },
                    "containers": [container],
                },
            },
        },
    }
    return namespace, deployment


def look(ctx: Context) -> Seen:
    """Look at cloudflared's objects and compare the tokens by hash."""
    kube, params = ctx.kube_or_none, ctx.params
    token = ctx.site.tunnel_token() if params.expose.method == "cloudflare" else None
    live = kube.get("v1", "Secret", SECRET, NAMESPACE) if kube else None
    held = base64.b64decode((live or {}).get("data", {}).get("token", "")).decode()
    return Seen(
        objects=look_objects(kube, wanted_objects(params)),
        token_hash=_hash(token),
        live_hash=_hash(held),
        traefik=bool(kube and kube.get("apps/v1", "Deployment", "traefik", "kube-system")),
    )


def _hash(token: str | None) -> str:
    return hashlib.sha256(token.encode()).hexdigest()[:12] if token else ""


def plan(params: Params, seen: Seen, upstream: Upstream) -> Plan:
    """Namespace, token, Deployment; or for Traefik nothing but what bootstrap's configuration makes K3s do."""
    expose, findings, steps = params.expose, [], []
    if expose.method == "cloudflare":
        if not seen.token_hash:
            findings.append(
                Finding(
                    "refusal",
                    "tunnel token",
                    "there is none",
                    f"set {expose.token_env}, or expose.token_file: "
                    "the token of a remotely managed tunnel (Cloudflare: Zero Trust → Networks → Tunnels)",
                )
            )
        for step in apply_steps(wanted_objects(params), seen.objects, "cloudflared: the way in without an open port"):
            steps.append(step)
        if seen.token_hash != seen.live_hash:
            why = "the cluster has none yet" if not seen.live_hash else "the token changed"
            token = Step(
                "put-token",
                "put-token",
                f"Secret/{NAMESPACE}/{SECRET}",
                why,
                "change" if seen.live_hash else "create",
                {"sha256": seen.token_hash},
                undo="delete",
            )
            steps.insert(1 if steps and steps[0].target.startswith("Namespace/") else 0, token)
    elif expose.method == "traefik":
        findings.append(
            Finding(
                "note",
                "Traefik",
                "K3s installs it itself, and 020 opens ports 80 and 443 to the world; "
                "ingress-nginx was retired in March 2026 and gets no more fixes",
            )
        )
        if not seen.traefik:
            steps.append(
                Step("await-traefik", "await-traefik", "Deployment/kube-system/traefik", "K3s is installing it", "none")
            )
    else:
        findings.append(Finding("note", "expose.method none", "services are reached inside the cluster only"))
    return Plan(NAME, tuple(steps), {"method": expose.method}, tuple(findings))


def _put_token(ctx: Context, step: Step) -> Mapping[str, Json]:
    token = ctx.site.tunnel_token()
    if not token:
        raise BadInput("the tunnel token is gone", next_move=f"set {ctx.params.expose.token_env}")
    ctx.secrets.put("tunnel_token", token)
    made = ctx.kube.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": SECRET, "namespace": NAMESPACE, "labels": dict(MANAGED)},
            "type": "Opaque",
            "data": {"token": base64.b64encode(token.encode()).decode()},
        }
    )
    return {"uid": made["metadata"]["uid"]}


def _await_traefik(ctx: Context, step: Step) -> Mapping[str, Json]:
    _await_deployment(ctx, "traefik", "kube-system")
    return {}


def _await_deployment(ctx: Context, name: str, namespace: str) -> dict[str, Json] | None:
    def state(obj: dict[str, Json] | None) -> str:
        if obj is None:
            return "not there"
        status = obj.get("status", {})
        return f"{status.get('availableReplicas', 0)} of {obj['spec'].get('replicas', 1)} pods available"

    return wait_until(
        lambda: ctx.kube.get("apps/v1", "Deployment", name, namespace),
        deployment_ready,
        what=f"Deployment {namespace}/{name} to be available",
        deadline_s=READY_DEADLINE_S,
        clock=ctx.clock,
        describe=state,
        next_move=f"look at: kubectl -n {namespace} describe deployment {name}",
    )


ACTIONS: Mapping[str, Action] = {"apply": apply_object, "put-token": _put_token, "await-traefik": _await_traefik}


def verify(ctx: Context) -> tuple[Check, ...]:
    """The pods of the way in are available; whether Cloudflare routes to them shows in its own dashboard."""
    method = ctx.params.expose.method
    if method == "none":
        return ()
    name, namespace = ("cloudflared", NAMESPACE) if method == "cloudflare" else ("traefik", "kube-system")
    found = _await_deployment(ctx, name, namespace)
    pods = ctx.kube.list("v1", "Pod", namespace, labels=f"app.kubernetes.io/name={name}")
    nodes = sorted({p["spec"].get("nodeName", "") for p in pods})
    count = (found or {}).get("status", {}).get("availableReplicas", 0)
    return (Check(name, True, f"{count} pods available on {', '.join(nodes)}"),)
