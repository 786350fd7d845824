"""The article's services (params/services): read, catalogued, and each lands somewhere or says why not."""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from compose_kit import NODES, container, pod, verdict

from hybridlab.compose import Manifests, Options, Project, convert, read_project, references
from hybridlab.compose.fidelity import missing_lines
from hybridlab.compose.images import parse_reference
from hybridlab.models import ImageConfig, ImageInfo, Platform

SERVICES = Path(__file__).parents[2] / "params" / "services"


@pytest.fixture(scope="module")
def home() -> Project:
    return read_project([SERVICES / "compose.yaml"], env_files=[SERVICES / ".env.example"])


@pytest.fixture(scope="module")
def made(home: Project) -> Manifests:
    found = {name: catalogued(name) for name in references(home).values()}
    return convert(home, found, NODES, Options(namespace="services"))


def catalogued(reference: str) -> ImageInfo:
    text = resources.files("hybridlab.data").joinpath("registry-catalogue.json").read_text(encoding="utf-8")
    entry: dict[str, Any] = json.loads(text)[str(parse_reference(reference))]
    config = entry["config"]
    return ImageInfo(
        reference,
        known=True,
        index=entry["index"],
        platforms=tuple(Platform(*platform.split("/")) for platform in entry["platforms"]),
        config=ImageConfig(
            tuple(config["ExposedPorts"]),
            config["User"],
            tuple(config["Volumes"]),
            tuple(config["Healthcheck"] or ()),
            tuple(config["Entrypoint"]),
            tuple(config["Cmd"]),
        ),
    )


def test_one_service_is_amd64_only_one_fits_nowhere_and_the_rest_prefers_arm(made: Manifests) -> None:
    kinds = {name: placement.kind for name, placement in made.placements.items()}
    assert [name for name, kind in kinds.items() if kind == "only"] == ["teamspeak"]
    assert [name for name, kind in kinds.items() if kind == "none"] == ["legacy-feed"]
    assert set(kinds.values()) == {"only", "none", "prefer"}
    assert pod(made, "teamspeak")["nodeSelector"] == {"kubernetes.io/arch": "amd64"}
    assert all(p.architectures == ("arm64",) for p in made.placements.values() if p.kind == "prefer")


def test_the_build_command_names_the_context_of_the_compose_file(made: Manifests) -> None:
    (command,) = made.commands["legacy-feed"]
    assert command.startswith(
        "docker buildx build --platform linux/arm64,linux/amd64 --tag ghcr.io/example/legacy-feed:1.0"
    )
    assert command.endswith("--push ./legacy-feed")
    assert (SERVICES / "legacy-feed" / "Dockerfile").is_file()


def test_mastodons_three_traps(made: Manifests) -> None:
    claims = {claim.name: claim.services for claim in made.claims}
    assert claims["public-system"] == ("mastodon-sidekiq", "mastodon-web")
    ports = {
        obj["metadata"]["name"]: [row["port"] for row in obj["spec"].get("ports", [])]
        for obj in made.of_kind("Service")
    }
    assert 5432 in ports["mastodon-db"]
    assert 6379 in ports["mastodon-redis"]
    command = container(made, "mastodon-web")["readinessProbe"]["exec"]["command"]
    assert command[:2] == ["/bin/sh", "-c"]
    assert "$" not in container(made, "mastodon-web")["args"]


def test_the_runner_helper_is_pointed_out(made: Manifests) -> None:
    assert "CI_RUNNER_ARCH" in verdict(made, "runner", "environment")[1]


def test_everything_is_carried_over_and_valid(home: Project, made: Manifests) -> None:
    assert missing_lines(home, made.fidelity) == []
    assert made.refused() == ()
    for obj in made.objects:
        kubernetes_validate.validate(obj, "1.36", strict=True)


def test_no_secret_stands_in_the_compose_file() -> None:
    text = (SERVICES / "compose.yaml").read_text(encoding="utf-8")
    given = re.findall(r"^\s+\w*(?:PASS|SECRET|TOKEN|KEY)\w*: (.+)$", text, re.MULTILINE)
    assert given
    assert all(value.startswith("${") for value in given)
    example = (SERVICES / ".env.example").read_text(encoding="utf-8")
    values = [line.split("=", 1)[1] for line in example.splitlines() if "=" in line]
    assert all("not-a-real" in value or "example" in value for value in values)


def test_the_catalogue_is_well_formed() -> None:
    text = resources.files("hybridlab.data").joinpath("registry-catalogue.json").read_text(encoding="utf-8")
    for name, entry in json.loads(text).items():
        assert str(parse_reference(name)) == name
        assert entry["index"] or len(entry["platforms"]) == 1
        assert set(entry["config"]) >= {"ExposedPorts", "User", "Volumes", "Healthcheck", "Entrypoint", "Cmd"}
