"""What the compose tests share: small projects as text, images by name, nodes like the article's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ruamel.yaml import YAML

from hybridlab.compose import Manifests, Options, Project, convert, read_normalised
from hybridlab.models import ImageConfig, ImageInfo, NodeCapacity, Platform

GI = 1 << 30
MI = 1 << 20
SMALL_TAINT = ("hybridlab.io/small", "true", "NoSchedule")
NODES = (
    NodeCapacity("arm-1", "arm64", 1800, 10 * GI),
    NodeCapacity("arm-2", "arm64", 900, 5 * GI),
    NodeCapacity("amd-1", "amd64", 900, 700 * MI, (SMALL_TAINT,)),
)


def image(*platforms: str, reference: str = "app:1", **config: Any) -> ImageInfo:
    """A known image with platforms such as ``linux/arm64/v8``."""
    made = tuple(Platform(*text.split("/")) for text in platforms)
    return ImageInfo(
        reference, known=True, digest="sha256:" + "0" * 64, index=True, platforms=made, config=ImageConfig(**config)
    )


MULTI = image("linux/amd64", "linux/arm64/v8")


def project(text: str, **more: Any) -> Project:
    """A project from YAML that is already in Compose's normalised form; ``name`` defaults to ``demo``."""
    document = YAML(typ="safe").load(text)
    return read_normalised({"name": "demo", **document}, **more)


def converted(
    text: str,
    images: Mapping[str, ImageInfo] | None = None,
    nodes: Iterable[NodeCapacity] = NODES,
    options: Options | None = None,
    **more: Any,
) -> Manifests:
    return convert(project(text, **more), images or {}, tuple(nodes), options)


def find(manifests: Manifests, kind: str, name: str) -> dict[str, Any]:
    """The one object of this kind and name; fails with what there is."""
    found = [obj for obj in manifests.of_kind(kind) if obj["metadata"]["name"] == name]
    assert found, f"no {kind} {name} among {[(o['kind'], o['metadata']['name']) for o in manifests.objects]}"
    return found[0]


def workload(manifests: Manifests, name: str) -> dict[str, Any]:
    kinds = ("Deployment", "StatefulSet", "DaemonSet", "Job")
    found = [o for o in manifests.objects if o["kind"] in kinds and o["metadata"]["name"] == name]
    assert len(found) == 1, f"{len(found)} workloads named {name}"
    return found[0]


def pod(manifests: Manifests, name: str) -> dict[str, Any]:
    spec: dict[str, Any] = workload(manifests, name)["spec"]["template"]["spec"]
    return spec


def container(manifests: Manifests, name: str) -> dict[str, Any]:
    first: dict[str, Any] = pod(manifests, name)["containers"][0]
    return first


def verdict(manifests: Manifests, service: str, key: str) -> tuple[str, str]:
    found = [f for f in manifests.fidelity if f.service == service and f.key == key]
    assert found, f"no line for {service}.{key} among {[f.key for f in manifests.fidelity if f.service == service]}"
    return found[0].verdict, found[0].note
