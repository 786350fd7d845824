"""Which kind of workload a service is, how many of it, and the object around its pod."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from hybridlab.compose.fidelity import Record
from hybridlab.compose.images import parse_reference
from hybridlab.compose.model import ClaimSource, Obj, Project
from hybridlab.compose.mounts import Mount
from hybridlab.compose.names import MAX_STATEFUL_SET
from hybridlab.errors import BadInput
from hybridlab.models import Json

Kind = Literal["Deployment", "StatefulSet", "DaemonSet", "Job"]
# Repositories whose server must never run twice on one data directory, not even for a moment.
_DATABASES = (
    "postgres",
    "postgresql",
    "postgis",
    "pgvector",
    "timescaledb",
    "mariadb",
    "mysql",
    "percona",
    "percona-server",
    "mongo",
    "mongodb",
    "redis",
    "valkey",
    "keydb",
    "elasticsearch",
    "opensearch",
    "influxdb",
    "couchdb",
    "rabbitmq",
    "cassandra",
    "clickhouse",
    "clickhouse-server",
    "etcd",
    "neo4j",
    "meilisearch",
    "mssql",
    "server",
)
_NODE_WATCHERS = ("/proc", "/sys", "/")
_FOREVER = 2147483647


@dataclass(frozen=True)
class Decision:
    kind: Kind
    reason: str
    replicas: int = 1
    retries: int = 0  # of a Job
    restart: Literal["Always", "OnFailure", "Never"] = "Always"


def is_database(image: str) -> bool:
    try:
        name = parse_reference(image).repository.rsplit("/", 1)[-1]
    except BadInput:
        return False
    return name != "server" and (name in _DATABASES or any(name.endswith(f"-{word}") for word in _DATABASES[:8]))


def decide(
    service: str,
    name: str,
    project: Project,
    image: str,
    mounts: Sequence[Mount],
    claims: Sequence[ClaimSource],
    waited: frozenset[str],
    used: bool,
    record: Record,
) -> Decision:
    """The kind of one service. ``waited``: those somebody waits for to complete. ``used``: others call it by name."""
    spec = project.services[service]
    deploy = spec.get("deploy") or {}
    replicas = _replicas(service, spec, deploy, record)
    once = _one_shot(service, spec, deploy, waited, used, record)
    if once is not None:
        if "mode" in deploy:
            record.mapped(service, "deploy.mode", "Job: once in the cluster")
        return once
    owned = [mount.claim for mount in mounts if mount.claim]
    if str(deploy.get("mode", "")) in ("global", "global-job"):
        record.mapped(service, "deploy.mode", "DaemonSet")
        return Decision("DaemonSet", "deploy.mode global: one on every node")
    if "mode" in deploy:
        record.mapped(service, "deploy.mode", "Deployment or StatefulSet")
    watched = [path for mount in mounts if (path := (mount.source.get("hostPath") or {}).get("path")) in _NODE_WATCHERS]
    if watched and not owned and replicas == 1:
        return Decision(
            "DaemonSet", f"it reads {', '.join(watched)} of the host: what it watches is a node, so one on every node"
        )
    alone = [claim for claim in claims if claim.name in owned and len(claim.services) == 1]
    if alone and is_database(image) and len(name) <= MAX_STATEFUL_SET:
        return Decision(
            "StatefulSet", f"a database with its own claim {alone[0].name}: never two pods on one volume", replicas
        )
    reason = "runs until stopped" + (", has claims: the old pod goes before the new one comes" if owned else "")
    return Decision("Deployment", reason, replicas)


def _replicas(service: str, spec: Mapping[str, Json], deploy: Mapping[str, Json], record: Record) -> int:
    count = 1
    for key, value in (("deploy.replicas", deploy.get("replicas")), ("scale", spec.get("scale"))):
        if value is not None:
            count = int(value)
            record.mapped(service, key, f"replicas: {count}")
    return count


def _one_shot(
    service: str,
    spec: Mapping[str, Json],
    deploy: Mapping[str, Json],
    waited: frozenset[str],
    used: bool,
    record: Record,
) -> Decision | None:
    restart = str(spec.get("restart") or "")
    policy = deploy.get("restart_policy") or {}
    condition = str(policy.get("condition") or "")
    for key in policy:
        record.mapped(service, f"deploy.restart_policy.{key}", "Docker's restarts; Kubernetes has its own back-off")
    if "restart" in spec:
        record.mapped(
            service, "restart", {"": "empty: the default"}.get(restart, f"{restart}: Kubernetes keeps it running")
        )
    base, _, limit = restart.partition(":")
    if condition == "none":
        base = base or "no"
    elif condition == "on-failure":
        base, limit = base or "on-failure", limit or str(policy.get("max_attempts") or "")
    if service in waited:
        retries = (
            int(limit) if limit.isdigit() else (_FOREVER if base in ("on-failure", "always", "unless-stopped") else 0)
        )
        return Decision("Job", "others wait for it to complete", 1, retries, "OnFailure" if retries else "Never")
    if base not in ("no", "on-failure"):
        return None
    serves = [key for key in ("ports", "expose", "healthcheck") if spec.get(key)]
    if serves or used:
        why = f"it has {', '.join(serves)}" if serves else "others call it by name"
        if "restart" in spec:
            record.approximated(
                service, "restart", f"{restart}: {why}, so it is a server, and Kubernetes restarts those"
            )
        return None
    if "restart" in spec:
        record.mapped(service, "restart", f"{restart}: a Job")
    retries = 0 if base == "no" else (int(limit) if limit.isdigit() else _FOREVER)
    return Decision("Job", f"restart {base}: runs once", 1, retries, "OnFailure" if base == "on-failure" else "Never")


def workload(
    decision: Decision,
    name: str,
    meta: Obj,
    selects: Mapping[str, str],
    pod_meta: Obj,
    pod: Obj,
    *,
    has_claims: bool,
    update: Mapping[str, Json] | None = None,
) -> Obj:
    """The object: pods carry ``selects`` as labels; a claim means Recreate, since two nodes cannot both have it."""
    template: Obj = {"metadata": pod_meta, "spec": {**pod, "restartPolicy": decision.restart}}
    head: Obj = {"apiVersion": "apps/v1", "kind": decision.kind, "metadata": meta}
    if decision.kind == "Job":
        head["apiVersion"] = "batch/v1"
        return {**head, "spec": {"backoffLimit": decision.retries, "template": template}}
    spec: Obj = {}
    if decision.kind != "DaemonSet":
        spec["replicas"] = decision.replicas
    spec["selector"] = {"matchLabels": dict(selects)}
    if decision.kind == "StatefulSet":
        spec["serviceName"] = name
    if decision.kind == "Deployment":
        # One old pod fewer rather than one new pod more: the nodes are small, host ports and claims are taken.
        strategy: Obj = {"type": "Recreate"} if has_claims or pod.get("hostNetwork") else dict(update or {})
        if strategy:
            spec["strategy"] = strategy
    spec["template"] = template
    return {**head, "spec": spec}


def update_strategy(service: str, spec: Mapping[str, Json], record: Record) -> dict[str, Json]:
    """``deploy.update_config`` → rollingUpdate; start-first surges, stop-first does not."""
    config = (spec.get("deploy") or {}).get("update_config") or {}
    if not config:
        return {}
    for key in config:
        if key in ("parallelism", "order"):
            record.mapped(service, f"deploy.update_config.{key}", "rollingUpdate")
        else:
            record.approximated(
                service, f"deploy.update_config.{key}", "a rollout stops at the first pod that does not get ready"
            )
    at_once = max(1, int(config.get("parallelism") or 1))
    first = config.get("order") == "start-first"
    rolling = {"maxSurge": at_once, "maxUnavailable": 0} if first else {"maxSurge": 0, "maxUnavailable": at_once}
    return {"type": "RollingUpdate", "rollingUpdate": rolling}
