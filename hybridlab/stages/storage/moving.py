"""The proof that a volume moves: written on one node, that node cordoned, read on another: the same bytes."""

from __future__ import annotations

from collections.abc import Mapping

from hybridlab.models import Json
from hybridlab.params import Params
from hybridlab.plan import Step
from hybridlab.ports import Context
from hybridlab.stages.helperpod import MOUNT, digest_summary, remove_namespace, running_helper
from hybridlab.wait import wait_until

NAMESPACE = "hybridlab-storage-test"
CLAIM = "moving"


def moving_inputs(params: Params) -> dict[str, Json]:
    """What the proof depends on: another engine, class or set of nodes needs another proof."""
    storage = params.storage
    return {
        "engine": storage.engine,
        "class": storage.storage_class,
        "replicas": storage.replicas,
        "nodes": sorted(w.name for w in params.wishes),
    }


def move_test(ctx: Context, step: Step) -> Mapping[str, Json]:
    """Write a test file into a claim, cordon the node, start the pod elsewhere, compare; keep it as evidence.

    With an engine whose volumes stay, the file is read back by a second pod on the same node.
    """
    moves, storage_class = bool(step.args["moves"]), ctx.params.storage.storage_class
    _cleanup(ctx)
    ctx.kube.apply(_namespace())
    ctx.kube.apply(claim(NAMESPACE, CLAIM, storage_class, 1))
    try:
        with running_helper(ctx, NAMESPACE, "writer", {CLAIM: MOUNT}) as call:
            first = _node_of(ctx, "writer")
            size = step.args["megabytes"] * 1024 * 1024
            call("write", f"{MOUNT}/proof.bin", "--size", str(size), "--seed", "1")
            written = digest_summary(call("digest", MOUNT))
        _wait_gone(ctx, "writer")
        if moves:
            ctx.kube.patch("v1", "Node", first, None, _cordon(first, on=True))
        with running_helper(ctx, NAMESPACE, "reader", {CLAIM: MOUNT}) as call:
            second = _node_of(ctx, "reader")
            read = digest_summary(call("digest", MOUNT))
    finally:
        _cleanup(ctx)
    same = written["sha256"] == read["sha256"] and (first != second or not moves)
    where = f"written on {first}, read on {second}"
    data = {
        "same": same,
        "first": first,
        "second": second,
        "sha256": read["sha256"],
        "bytes": size,
        "summary": f"{step.args['megabytes']} MiB {where}: " + ("the same bytes" if same else "different bytes"),
    }
    ctx.evidence.save("storage-moving", data, inputs=moving_inputs(ctx.params))
    return data


def claim(namespace: str, name: str, storage_class: str, gigabytes: int) -> dict[str, Json]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app.kubernetes.io/managed-by": "hybridlab"}},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": storage_class,
            "resources": {"requests": {"storage": f"{gigabytes}Gi"}},
        },
    }


def _namespace() -> dict[str, Json]:
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": NAMESPACE, "labels": {"app.kubernetes.io/managed-by": "hybridlab"}},
    }


CORDONED = "hybridlab.io/cordoned-by-test"


def _cordon(node: str, *, on: bool) -> dict[str, Json]:
    """The annotation tells a later run that the cordon is this test's, not a person's."""
    return {
        "metadata": {"annotations": {CORDONED: "true" if on else None}},
        "spec": {"unschedulable": True if on else None},
    }


def _cleanup(ctx: Context) -> None:
    """Uncordon what this test cordoned (also one that was killed), and remove its namespace."""
    for node in ctx.kube.list("v1", "Node"):
        if CORDONED in node["metadata"].get("annotations", {}):
            ctx.kube.patch("v1", "Node", node["metadata"]["name"], None, _cordon(node["metadata"]["name"], on=False))
    remove_namespace(ctx, NAMESPACE)


def _node_of(ctx: Context, pod: str) -> str:
    found = ctx.kube.get("v1", "Pod", pod, NAMESPACE)
    return str(found["spec"]["nodeName"]) if found else ""


def _wait_gone(ctx: Context, pod: str) -> None:
    wait_until(
        lambda: ctx.kube.get("v1", "Pod", pod, NAMESPACE),
        lambda p: p is None,
        what=f"pod {pod} to be gone",
        deadline_s=120,
        clock=ctx.clock,
        describe=lambda p: "still there",
    )
