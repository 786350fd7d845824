"""A pod that runs the helper file on a claim: to write, copy, extract and digest data where the data is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from hybridlab.errors import Refused
from hybridlab.models import Json
from hybridlab.ports import Context, Kube
from hybridlab.stages.nodes import SMALL_TAINT, helper_source
from hybridlab.stages.objects import MANAGED
from hybridlab.wait import wait_until

IMAGE = "docker.io/library/python:3.13-alpine"
SCRIPT = "/opt/hybridlab/node_helper.py"
MOUNT = "/data"
POD_DEADLINE_S = 300.0


def helper_config_map(namespace: str) -> dict[str, Json]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "hybridlab-helper", "namespace": namespace, "labels": dict(MANAGED)},
        "data": {"node_helper.py": helper_source().decode()},
    }


@dataclass(frozen=True)
class Seat:
    """Where a helper must land: as the pods that will use its claims, with all the claims they mount.

    A class that binds late binds a claim to the node of its first pod: a helper elsewhere would keep the service away.
    """

    claims: tuple[str, ...] = ()
    node_selector: Mapping[str, str] = field(default_factory=dict)
    node_affinity: Mapping[str, Json] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, Json], ...] = ()


def helper_pod(
    namespace: str, name: str, claims: Mapping[str, str], *, node: str | None = None, seat: Seat | None = None
) -> dict[str, Json]:
    """A pod that sleeps, with the helper and the claims (name → mount path) mounted; runs as root, to keep owners."""
    if seat is not None:
        claims = {**{other: f"/beside/{other}" for other in seat.claims}, **claims}
    volumes: list[dict[str, Json]] = [{"name": "helper", "configMap": {"name": "hybridlab-helper"}}]
    mounts = [{"name": "helper", "mountPath": "/opt/hybridlab", "readOnly": True}]
    for index, (claim, path) in enumerate(sorted(claims.items())):
        volumes.append({"name": f"claim-{index}", "persistentVolumeClaim": {"claimName": claim}})
        mounts.append({"name": f"claim-{index}", "mountPath": path})
    spec: dict[str, Json] = {
        "restartPolicy": "Never",
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 1,
        "tolerations": [{"key": SMALL_TAINT[0], "operator": "Exists", "effect": SMALL_TAINT[2]}],
        "containers": [
            {
                "name": "helper",
                "image": IMAGE,
                "command": ["python3", SCRIPT, "wait"],
                "volumeMounts": mounts,
                "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "256Mi"}},
            }
        ],
        "volumes": volumes,
    }
    if node:
        spec["nodeSelector"] = {"kubernetes.io/hostname": node}
    if seat is not None:
        spec["tolerations"] = [dict(t) for t in seat.tolerations]
        spec["nodeSelector"] = dict(seat.node_selector)
        if seat.node_affinity:
            spec["affinity"] = {"nodeAffinity": dict(seat.node_affinity)}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {**MANAGED, "hybridlab.io/helper": name}},
        "spec": spec,
    }


@contextmanager
def running_helper(
    ctx: Context,
    namespace: str,
    name: str,
    claims: Mapping[str, str],
    *,
    node: str | None = None,
    seat: Seat | None = None,
) -> Iterator[Callable[..., str]]:
    """Run a helper pod for as long as the block lasts; yields ``call(argv…, stdin=, stdout=)``, which returns stdout.

    Raises Refused when the helper ends with a non-zero status. A pod left by a run that was killed is replaced.
    """
    kube = ctx.kube
    kube.apply(helper_config_map(namespace))
    remove_pod(ctx, namespace, name)
    kube.apply(helper_pod(namespace, name, claims, node=node, seat=seat))

    def call(
        *argv: str,
        stdin: Iterator[bytes] | None = None,
        stdout: Callable[[bytes], None] | None = None,
        timeout_s: float = 3600.0,
    ) -> str:
        command, kept = ["python3", SCRIPT, *argv], list[bytes]()
        # a digest of many files is longer than what exec keeps by itself
        result = kube.exec(namespace, name, command, stdin=stdin, stdout=stdout or kept.append, timeout_s=timeout_s)
        if result.exit_status != 0:
            raise Refused(
                f"the helper's {argv[0]} failed",
                where=f"pod {namespace}/{name}",
                status=result.exit_status,
                why=result.stderr.strip()[-500:],
            )
        return (b"".join(kept) + result.stdout).decode()

    try:
        wait_for_pod(ctx, namespace, name)
        yield call
    finally:
        kube.delete("v1", "Pod", name, namespace, grace_s=1)


def wait_for_pod(ctx: Context, namespace: str, name: str) -> dict[str, Json]:
    """Until a pod is Ready; the error carries the reason its containers or the scheduler give."""
    pod = wait_until(
        lambda: ctx.kube.get("v1", "Pod", name, namespace),
        lambda p: p is not None and pod_ready(p),
        what=f"pod {namespace}/{name} to be Ready",
        deadline_s=POD_DEADLINE_S,
        clock=ctx.clock,
        describe=lambda p: "not there" if p is None else why_waiting(ctx.kube, p),
        next_move=f"look at: kubectl -n {namespace} describe pod {name}",
    )
    assert pod is not None
    return pod


def pod_ready(pod: Mapping[str, Json]) -> bool:
    conditions = pod.get("status", {}).get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def pod_state(pod: Mapping[str, Json]) -> str:
    """In a few words why a pod is not Ready: the waiting reason of a container, or what the scheduler says."""
    status = pod.get("status", {})
    for container in [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]:
        waiting = container.get("state", {}).get("waiting")
        if waiting:
            return f"{waiting.get('reason', 'waiting')} {waiting.get('message', '')}".strip()
    for condition in status.get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return f"{condition.get('reason', 'Pending')}: {condition.get('message', '')}"
    return str(status.get("phase", "new"))


def why_waiting(kube: Kube, pod: Mapping[str, Json]) -> str:
    """``pod_state``, with the last warning event where the state alone says little (a mount that fails)."""
    state = pod_state(pod)
    if state not in ("ContainerCreating", "PodInitializing", "Pending", "new"):
        return state
    meta = pod["metadata"]
    events = kube.list("v1", "Event", meta["namespace"], fields=f"involvedObject.name={meta['name']}")
    warnings = [e for e in events if e.get("type") == "Warning"]
    return f"{state}: {warnings[-1].get('message', '')}" if warnings else state


def remove_pod(ctx: Context, namespace: str, name: str) -> None:
    """Delete a pod and wait until it is gone; nothing happens when there is none."""
    if not ctx.kube.delete("v1", "Pod", name, namespace, grace_s=1):
        return
    wait_until(
        lambda: ctx.kube.get("v1", "Pod", name, namespace),
        lambda p: p is None,
        what=f"pod {namespace}/{name} to be gone",
        deadline_s=120,
        clock=ctx.clock,
        describe=lambda p: "still there",
    )


def remove_namespace(ctx: Context, namespace: str, *, deadline_s: float = 180) -> None:
    """Delete a namespace of ours and wait until it is gone (10–60 s on real clusters)."""
    kube: Kube = ctx.kube
    found = kube.get("v1", "Namespace", namespace)
    if found is None:
        return
    if found["metadata"].get("labels", {}).get("app.kubernetes.io/managed-by") != "hybridlab":
        raise Refused(f"namespace {namespace} is not ours: left alone", next_move="choose another name in the params")
    kube.delete("v1", "Namespace", namespace)
    wait_until(
        lambda: kube.get("v1", "Namespace", namespace),
        lambda n: n is None,
        what=f"namespace {namespace} to be gone",
        deadline_s=deadline_s,
        clock=ctx.clock,
        describe=lambda n: str(n["status"].get("phase")) if n else "gone",
    )


def digest_summary(output: str) -> dict[str, Json]:
    """The last line of the helper's ``digest``: one sha256 over everything, with counts and bytes."""
    lines: Sequence[str] = output.strip().splitlines()
    summary: dict[str, Json] = json.loads(lines[-1])
    return summary
