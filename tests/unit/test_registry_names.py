"""Image references, registry hosts, and the logins that docker and podman keep."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from registry_kit import (
    HUB,
)

from hybridlab.drivers import _registry_login
from hybridlab.drivers._registry_login import Login, find_login
from hybridlab.drivers._registry_names import belongs_to, is_private
from hybridlab.references import parse_reference


# -- names -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("nginx", "registry-1.docker.io/library/nginx:latest"),
        ("docker.io/nginx:1", "registry-1.docker.io/library/nginx:1"),
        ("index.docker.io/me/app", "registry-1.docker.io/me/app:latest"),
        ("ghcr.io/me/app:v1", "ghcr.io/me/app:v1"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/app:1", "localhost:5000/app:1"),
        ("me/app", "registry-1.docker.io/me/app:latest"),
        ("host:5000/a/b/c", "host:5000/a/b/c:latest"),
        ("me/app:1@sha256:" + "a" * 64, "registry-1.docker.io/me/app@sha256:" + "a" * 64),
        ("[::1]:5000/app", "[::1]:5000/app:latest"),
    ],
)
def test_references(text: str, canonical: str) -> None:
    assert parse_reference(text).canonical == canonical


@pytest.mark.parametrize(
    "text", ["", "UPPER", "a//b", "a:", "a@sha256:12", "-a", "a b", "ghcr.io/", "${IMAGE}", "a/B:1"]
)
def test_references_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a|names are"):
        parse_reference(text)


@pytest.mark.parametrize(
    ("other", "registry_host", "answer"),
    [
        ("auth.docker.io", HUB, True),
        ("gitlab.com", "registry.gitlab.com", True),
        ("ghcr.io", "ghcr.io", True),
        ("evil.io", "ghcr.io", False),
        ("notdocker.io", HUB, False),
        ("10.0.0.2", "10.0.0.1", False),
    ],
)
def test_whose_realm_it_is(other: str, registry_host: str, answer: bool) -> None:
    assert belongs_to(other, registry_host) is answer


@pytest.mark.parametrize(
    ("host", "answer"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("169.254.1.1", True), ("ghcr.io", False)],
)
def test_private_hosts(host: str, answer: bool) -> None:
    assert is_private(host) is answer


# -- logins ------------------------------------------------------------------------------------------------------------
def auth(text: str) -> dict[str, str]:
    return {"auth": base64.b64encode(text.encode()).decode()}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("DOCKER_CONFIG", "XDG_RUNTIME_DIR", "REGISTRY_AUTH_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".docker").mkdir()
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return tmp_path


@pytest.mark.parametrize(
    ("config", "host", "repository", "expected"),
    [
        ({"auths": {"https://index.docker.io/v1/": auth("me:p:w")}}, HUB, "me/app", Login("me", "p:w")),
        ({"auths": {"docker.io": auth("me:x")}}, HUB, "me/app", Login("me", "x")),
        ({"auths": {"ghcr.io": auth("me:x")}}, "ghcr.io", "me/app", Login("me", "x")),
        ({"auths": {"https://ghcr.io": auth("me:x")}}, "ghcr.io", "a", Login("me", "x")),
        ({"auths": {"ghcr.io": auth("me:x")}}, "quay.io", "a", None),
        ({"auths": {"ghcr.io": {"identitytoken": "t"}}}, "ghcr.io", "a", Login(identity_token="t")),
        ({"auths": {"ghcr.io": auth("a:1"), "ghcr.io/team": auth("b:2")}}, "ghcr.io", "team/app", Login("b", "2")),
        ({"auths": {"ghcr.io": {"auth": "%%%"}}}, "ghcr.io", "a", None),
        ({"auths": {"ghcr.io": {}}}, "ghcr.io", "a", None),
        ({"credHelpers": {"ghcr.io": "none"}}, "ghcr.io", "a", None),
    ],
)
def test_docker_config(home: Path, config: Any, host: str, repository: str, expected: Login | None) -> None:
    (home / ".docker" / "config.json").write_text(json.dumps(config))
    assert find_login(host, repository) == expected


def test_podman_login(home: Path) -> None:
    folder = home / ".config" / "containers"
    folder.mkdir(parents=True)
    (folder / "auth.json").write_text(json.dumps({"auths": {"quay.io": auth("me:x")}}))
    (home / ".docker" / "config.json").write_text("{broken")
    assert find_login("quay.io", "a") == Login("me", "x")


@pytest.mark.parametrize(
    ("config", "server"),
    [({"credHelpers": {"ghcr.io": "test"}}, "ghcr.io"), ({"credsStore": "test"}, "ghcr.io")],
)
def test_helpers_are_asked_on_stdin(home: Path, config: Any, server: str) -> None:
    helper = home / "bin" / "docker-credential-test"
    helper.write_text(
        '#!/bin/sh\n[ "$1" = get ] || exit 1\nread -r server || true\n'
        '[ "$server" = ghcr.io ] || { echo "credentials not found"; exit 1; }\n'
        'echo \'{"Username": "me", "Secret": "s"}\'\n'
    )
    helper.chmod(0o755)
    (home / ".docker" / "config.json").write_text(json.dumps(config))
    assert find_login(server, "a") == Login("me", "s")
    assert find_login("quay.io", "a") is None


def test_a_login_does_not_print_its_secret() -> None:
    assert "secret" not in repr(_registry_login.Login("me", "secret", "secret"))
