"""Real projects, where somebody has a folder of them: what must hold for every single one.

``HYBRIDLAB_TEST_COMPOSE_CORPUS`` names a folder with ``index.csv`` (columns file and normalised), as of Compose's
``config --format json --no-path-resolution``; any folder with ``*.json`` of that kind will do as well.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes.client
import kubernetes_validate
import pytest
from compose_kit import MULTI, NODES

from hybridlab.compose import Manifests, Project, convert, read_normalised
from hybridlab.compose.fidelity import missing_lines
from hybridlab.compose.mentions import names_of, texts
from hybridlab.compose.names import is_label
from hybridlab.compose.write import to_yaml

FOLDER = os.environ.get("HYBRIDLAB_TEST_COMPOSE_CORPUS", "")
WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet", "Job")


def cases() -> Iterator[tuple[Path, Path]]:
    """Normalised form and the folder of the compose file it was made from."""
    root = Path(FOLDER)
    index = root / "index.csv"
    if index.is_file():
        for row in csv.DictReader(index.read_text(encoding="utf-8").splitlines()):
            yield root / row["normalised"], (root / row["file"]).parent
        return
    for path in sorted(root.rglob("*.json")):
        yield path, path.parent


CASES = list(cases()) if FOLDER else []
pytestmark = pytest.mark.skipif(not CASES, reason="HYBRIDLAB_TEST_COMPOSE_CORPUS names no folder of compose projects")


def conversion(case: tuple[Path, Path], known: bool) -> tuple[Project, Manifests]:
    read = read_normalised(case[0].read_text(encoding="utf-8"), directory=case[1])
    images = {str(spec["image"]): MULTI for spec in read.services.values() if spec.get("image")} if known else {}
    return read, convert(read, images, NODES)


@pytest.mark.parametrize("known", [True, False], ids=["images known", "images unknown"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case[0]))
def test_a_real_project(case: tuple[Path, Path], known: bool) -> None:
    read, made = conversion(case, known)
    assert missing_lines(read, made.fidelity) == []
    made_for = {o["metadata"]["labels"]["app.kubernetes.io/name"] for o in made.objects if o["kind"] in WORKLOADS}
    assert {name for name, spec in read.services.items() if spec.get("image") or spec.get("build")} <= made_for
    assert used_names(read) <= {o["metadata"]["name"] for o in made.of_kind("Service")}
    for obj in made.objects:
        kubernetes_validate.validate(obj, "1.36", strict=True)
        model(obj).from_dict(obj)
        limits(obj)
    shared_claims(read, made)
    assert to_yaml(*made.objects) == to_yaml(*conversion(case, known)[1].objects)


def used_names(read: Project) -> set[str]:
    """Names of services that another service's texts, dependencies or links hold, found the plain way."""
    used = set()
    for service, spec in read.services.items():
        text = "\n".join(part for _, part in texts(read, spec))
        others = {name for other, own in names_of(read).items() if other != service for name in own}
        used |= {name for name in others if re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w-]|\.\w)", text)}
        used |= set(spec.get("depends_on") or {}) & set(read.services)
    runnable = {
        n
        for name, own in names_of(read).items()
        if read.services[name].get("image") or read.services[name].get("build")
        for n in own
    }
    return {name.lower() for name in used & runnable if is_label(name.lower())}


def model(obj: dict[str, Any]) -> Any:
    version = obj["apiVersion"].rsplit("/", 1)[-1]
    return getattr(kubernetes.client, version[0].upper() + version[1:] + obj["kind"])


def limits(obj: dict[str, Any]) -> None:
    """What a schema does not say and the API server refuses."""
    assert re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", obj["metadata"]["name"])
    if obj["kind"] == "Service":
        assert is_label(obj["metadata"]["name"])
        names = [row["name"] for row in obj["spec"].get("ports", [])]
        assert len(names) == len(set(names))
        assert all(re.fullmatch(r"[a-z0-9-]{1,15}", name) and re.search("[a-z]", name) for name in names)
    if obj["kind"] not in WORKLOADS:
        return
    pod = obj["spec"]["template"]["spec"]
    containers = [*pod.get("initContainers", []), *pod["containers"]]
    assert len({c["name"] for c in containers}) == len(containers)
    volumes = [volume["name"] for volume in pod.get("volumes", [])]
    assert len(volumes) == len(set(volumes))
    assert pod["enableServiceLinks"] is False
    for container in containers:
        paths = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
        assert len(paths) == len(set(paths))
        assert all(path.startswith("/") for path in paths)
        assert {mount["name"] for mount in container.get("volumeMounts", [])} <= set(volumes)
        for probe in ("readinessProbe", "startupProbe"):
            command = container.get(probe, {}).get("exec", {}).get("command", ["x"])
            assert not (len(command) == 1 and " " in command[0])


def shared_claims(read: Project, made: Manifests) -> None:
    """A named volume is one claim however many use it."""
    for name, spec in read.volumes.items():
        if spec.get("driver_opts"):
            continue
        users = {
            s
            for s, v in read.services.items()
            for m in v.get("volumes") or []
            if m.get("source") == name and m["type"] == "volume"
        }
        claims = [claim for claim in made.claims if claim.kind == "volume" and claim.source == spec.get("name")]
        assert len(claims) == (1 if users else 0)
        if claims:
            assert users <= set(claims[0].services)
