"""From the compose file to what the cluster should hold: images looked up, placed, written as objects. No changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hybridlab.compose import Manifests, Options, Preference, Project, convert, read_project
from hybridlab.errors import BadInput
from hybridlab.models import Arch, ImageInfo, Json, NodeCapacity, NodeWish
from hybridlab.params import Params
from hybridlab.ports import Context, Kube
from hybridlab.quantity import parse_quantity
from hybridlab.stages.nodes import SMALL_TAINT, is_small, known_wishes
from hybridlab.stages.scores import weights

WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob")
PASSING_TAINTS = ("node.kubernetes.io/", "node.cloudprovider.kubernetes.io/")
"""What Kubernetes itself puts on a node that is down, cordoned or under pressure, and takes away again."""


@dataclass(frozen=True)
class Move:
    """What the migration is about: the project, what the registries say, and the manifests that follow."""

    project: Project
    images: Mapping[str, ImageInfo]
    manifests: Manifests


def load_move(ctx: Context, base: Path) -> Move | None:
    """Read, look up, place and convert; None where params name no compose file."""
    params = ctx.params.migrate
    if params.compose is None:
        return None
    env_files = [base / params.env_file] if params.env_file else []
    project = read_project([base / params.compose], env_files=env_files, project_name=params.project)
    project = _selected(project, params.services)
    references = sorted({s["image"] for s in project.services.values() if s.get("image")})
    images = ctx.registry.lookup(references, progress=ctx.say)
    preference = _preference(ctx)
    options = Options(
        namespace=params.namespace,
        storage_class=ctx.params.storage.storage_class,
        claim_size=f"{params.claim_gb}Gi",
        preference=preference,
        publish="load-balancer" if ctx.params.expose.method == "traefik" else "cluster-ip",
    )
    kube = ctx.kube_or_none
    nodes = capacities(kube, ctx.params, known_wishes(ctx) if kube is None else ())
    return Move(project, images, convert(project, images, nodes, options))


def _selected(project: Project, only: list[str] | None) -> Project:
    if only is None:
        return project
    unknown = sorted(set(only) - set(project.services))
    if unknown:
        raise BadInput(
            f"migrate.services: there is no service {unknown[0]}",
            where=project.name,
            next_move=f"one of: {', '.join(project.services)}",
        )
    chosen = {name: spec for name, spec in project.services.items() if name in only}
    return Project(**{**project.__dict__, "services": chosen})


def _preference(ctx: Context) -> Preference:
    """Weights from the benchmark where it found a significant difference, else the params' choice."""
    evidence = ctx.evidence.load("benchmark")
    measured, why = weights(evidence.data) if evidence else (None, "no benchmark on record")
    if measured:
        return Preference(measured, why)
    choice = ctx.params.migrate.prefer
    other = "amd64" if choice == "arm64" else "arm64"
    return Preference({choice: 100, other: 1}, f"migrate.prefer; {why}")


def capacities(kube: Kube | None, params: Params, wishes: Sequence[NodeWish] = ()) -> tuple[NodeCapacity, ...]:
    """The nodes with what the services of this project may use: free, plus what the project itself uses now.

    So the second plan sees the same room as the first. Before there is a cluster: ``wishes``, or the params' own.
    Raises BadInput where their architecture isn't known.
    """
    if kube is None:
        return tuple(
            NodeCapacity(
                w.name,
                _arch_of(w),
                int(max(w.ocpus, 1) * 1000),
                int(w.memory_gb * 2**30),
                (SMALL_TAINT,) if is_small(w) and params.bootstrap.taint_small else (),
            )
            for w in wishes or params.wishes
        )
    used: dict[str, tuple[int, int]] = {}
    for pod in kube.list("v1", "Pod", params.migrate.namespace):
        node, phase = pod["spec"].get("nodeName"), pod.get("status", {}).get("phase")
        if node and phase not in ("Succeeded", "Failed"):
            cpu, memory = used.get(node, (0, 0))
            more_cpu, more_memory = requests_of(pod)
            used[node] = (cpu + more_cpu, memory + more_memory)
    found = []
    for node in kube.nodes():
        cpu, memory = used.get(node.name, (0, 0))
        arch = "arm64" if node.arch == "arm64" else "amd64"
        found.append(
            NodeCapacity(
                node.name,
                arch,  # type: ignore[arg-type]
                node.cpu_free_m + cpu,
                node.memory_free + memory,
                # a node that is down or cordoned for a moment must not change where everything belongs
                tuple(t for t in node.taints if not t[0].startswith(PASSING_TAINTS)),
                node.labels,
                ready=True,
            )
        )
    return tuple(found)


def _arch_of(wish: NodeWish) -> Arch:
    if wish.arch is None:
        raise BadInput(
            f"the architecture of {wish.name} is not known yet",
            next_move="run 030 first: it looks; or state nodes[].arch",
        )
    return wish.arch


def requests_of(pod: Mapping[str, Json]) -> tuple[int, int]:
    """CPU in millicores and memory in bytes that a pod's containers request."""
    cpu = memory = 0
    for container in pod["spec"].get("containers", []):
        wanted = container.get("resources", {}).get("requests", {})
        cpu += int(parse_quantity(wanted.get("cpu", "0")) * 1000)
        memory += int(parse_quantity(wanted.get("memory", "0")))
    return cpu, memory
