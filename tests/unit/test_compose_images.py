"""Image references, architectures written into names, build commands."""

from __future__ import annotations

import pytest

from hybridlab.compose.images import architecture_in_name, buildx_command, parse_reference
from hybridlab.errors import BadInput

HEX = "a" * 64


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("nginx", "docker.io/library/nginx:latest"),
        ("nginx:1.27", "docker.io/library/nginx:1.27"),
        ("vaultwarden/server", "docker.io/vaultwarden/server:latest"),
        ("index.docker.io/library/redis:7", "docker.io/library/redis:7"),
        ("docker.io/redis", "docker.io/library/redis:latest"),
        ("ghcr.io/a/b/c:v1", "ghcr.io/a/b/c:v1"),
        ("localhost/x", "localhost/x:latest"),
        ("localhost:5000/x:2", "localhost:5000/x:2"),
        ("registry:5000/x", "registry:5000/x:latest"),
        ("registry/x", "docker.io/registry/x:latest"),
        (f"nginx@sha256:{HEX}", f"docker.io/library/nginx@sha256:{HEX}"),
        (f"ghcr.io/a/b:v1@sha256:{HEX}", f"ghcr.io/a/b:v1@sha256:{HEX}"),
        ("a__b/c-d.e:T_1.x-y", "docker.io/a__b/c-d.e:T_1.x-y"),
    ],
)
def test_a_reference_gets_dockers_defaults(text: str, full: str) -> None:
    assert str(parse_reference(text)) == full


@pytest.mark.parametrize("text", ["", "Nginx", "a b", "nginx:", "nginx:bad tag", "nginx@sha256:12", "a//b", "/a", "-x"])
def test_what_is_no_reference_is_bad_input_that_names_it(text: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_reference(text)
    assert caught.value.exit_code == 2
    assert caught.value.where == text


def test_familiar_is_how_people_write_it() -> None:
    assert parse_reference("docker.io/library/nginx:1").familiar == "nginx:1"
    assert parse_reference("docker.io/a/b").familiar == "a/b:latest"
    assert parse_reference("ghcr.io/a/b").familiar == "ghcr.io/a/b:latest"


@pytest.mark.parametrize(
    ("text", "architecture", "joined"),
    [
        ("gitlab/gitlab-runner-helper:x86_64-v17.5.0", "amd64", "gitlab/gitlab-runner-helper:v17.5.0"),
        ("gitlab/gitlab-runner-helper:arm64-v17.5.0", "arm64", "gitlab/gitlab-runner-helper:v17.5.0"),
        ("arm64v8/nginx:1", "arm64", "nginx:1"),
        ("amd64/redis", "amd64", "redis:latest"),
        ("arm32v7/redis", "arm", "redis:latest"),
        ("ghcr.io/a/tool:1.2-amd64", "amd64", "ghcr.io/a/tool:1.2"),
        ("ghcr.io/a/tool:1.2-aarch64-alpine", "arm64", "ghcr.io/a/tool:1.2-alpine"),
        ("linuxserver/x:amd64-latest", "amd64", "linuxserver/x:latest"),
        ("a/node-exporter-arm64:v1", "arm64", "a/node-exporter:v1"),
        ("ghcr.io/a/tool:arm64", "arm64", "ghcr.io/a/tool:latest"),
    ],
)
def test_an_architecture_in_the_name_is_recognised(text: str, architecture: str, joined: str) -> None:
    named = architecture_in_name(text)
    assert named is not None
    assert (named.architecture, named.joined) == (architecture, joined)


@pytest.mark.parametrize(
    "text",
    ["nginx", "charm:1", "a/swarm-cronjob:1.2", "ghcr.io/arm-software/x:1", "farm64:1", "a/b:alarm-1", "not an image"],
)
def test_other_names_hold_no_architecture(text: str) -> None:
    assert architecture_in_name(text) is None


def test_the_runner_helpers_remedy_is_the_exact_setting_and_the_exact_command() -> None:
    named = architecture_in_name("registry.gitlab.com/gitlab-org/gitlab-runner/gitlab-runner-helper:x86_64-v17.5.0")
    assert named is not None
    assert "gitlab-runner-helper:${CI_RUNNER_ARCH}-v${CI_RUNNER_VERSION}" in named.remedy
    name = "registry.gitlab.com/gitlab-org/gitlab-runner/gitlab-runner-helper"
    assert named.remedy.endswith(
        "docker buildx imagetools create -t REGISTRY/gitlab-runner-helper:v17.5.0 "
        f"{name}:x86_64-v17.5.0 {name}:arm64-v17.5.0"
    )


@pytest.mark.parametrize(
    ("build", "command"),
    [
        (None, "docker buildx build --platform linux/arm64,linux/amd64 --tag me/x:1 --push FOLDER_WITH_ITS_DOCKERFILE"),
        (
            {"context": "./app", "dockerfile": "Dockerfile"},
            "docker buildx build --platform linux/arm64,linux/amd64 --tag me/x:1 --push ./app",
        ),
        (
            {
                "context": "app",
                "dockerfile": "docker/prod.Dockerfile",
                "target": "run",
                "args": {"V": "1 2", "W": None, "NPM_TOKEN": "s"},
            },
            "docker buildx build --platform linux/arm64,linux/amd64 --tag me/x:1 --file app/docker/prod.Dockerfile "
            "--target run --build-arg 'V=1 2' --build-arg W --build-arg NPM_TOKEN --push app",
        ),
    ],
)
def test_the_build_command_can_be_pasted(build: dict[str, object] | None, command: str) -> None:
    assert buildx_command("me/x:1", ["arm64", "amd64"], build) == command
