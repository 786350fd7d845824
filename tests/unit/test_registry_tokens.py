"""How the registry driver gets in: tokens, logins, redirects, and where credentials never go."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from registry_kit import (
    HUB,
    FakeRegistry,
    Registries,
    one,
)

from hybridlab.drivers._registry_login import Login
from hybridlab.drivers.registry import RegistryDriver


@pytest.fixture
def registries(tmp_path: Path) -> Registries:
    return Registries(tmp_path / "cache")


@pytest.fixture
def registry(registries: Registries) -> FakeRegistry:
    return registries.fake


Make = Callable[..., RegistryDriver]


@pytest.fixture
def make(registries: Registries) -> Make:
    return registries.driver


# -- tokens and credentials --------------------------------------------------------------------------------------------
def authorizations(registry: FakeRegistry) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for request in registry.sent:
        found.setdefault(request.url.host, set()).add(request.headers.get("authorization", "").partition(" ")[0])
    return found


def test_token_flow(make: Make, registry: FakeRegistry) -> None:
    registry.service = "registry.docker.io"
    registry.index("library/web", "1", "linux/amd64")
    registry.image("library/other", "1")
    driver = make()
    assert one(driver, "web:1").known
    assert registry.count("GET", "auth.docker.io/token") == 1
    assert one(driver, "other:1").known
    assert registry.count("GET", "auth.docker.io/token") == 2
    # after the first challenge the realm is known: no request without a token any more
    assert sum(r.headers.get("authorization") is None for r in registry.sent if r.url.host == HUB) == 1
    assert authorizations(registry) == {HUB: {"", "Bearer"}, "auth.docker.io": {""}}


def test_a_login_goes_to_the_realm_only(make: Make, registry: FakeRegistry) -> None:
    registry.service = "registry.docker.io"
    registry.users["me"] = "me:secret"
    registry.image("me/app", "1")
    assert one(make(login=Login("me", "secret")), "me/app:1").known
    assert authorizations(registry) == {HUB: {"", "Bearer"}, "auth.docker.io": {"Basic"}}


def test_a_login_does_not_go_to_another_domain(make: Make, registry: FakeRegistry) -> None:
    registry.service, registry.realm = "x", "https://auth.evil.example/token"
    registry.image("me/app", "1")
    assert one(make(login=Login("me", "secret")), "ghcr.io/me/app:1").known
    assert authorizations(registry)["auth.evil.example"] == {""}


def test_a_wrong_login_is_denied(make: Make, registry: FakeRegistry) -> None:
    registry.service = "registry.docker.io"
    registry.image("me/app", "1")
    info = one(make(login=Login("me", "wrong")), "me/app:1")
    assert not info.known
    assert info.problem.startswith("denied")
    assert "wrong" not in info.problem


@pytest.mark.parametrize(
    "realm", ["http://auth.docker.io/token", "https://169.254.169.254/token", "https://10.0.0.1/t"]
)
def test_realms_that_are_refused(make: Make, registry: FakeRegistry, realm: str) -> None:
    registry.service, registry.realm = "x", realm
    registry.image("me/app", "1")
    info = one(make(login=Login("me", "secret")), "me/app:1")
    assert info.problem.startswith("could not ask")
    assert "refused" in info.problem
    assert set(authorizations(registry)) == {HUB}


def test_basic_registries(make: Make, registry: FakeRegistry) -> None:
    registry.image("app", "1")

    def basic(request: httpx.Request) -> httpx.Response | None:
        if request.headers.get("authorization") == Login("me", "secret").basic:
            return None
        return httpx.Response(401, headers={"WWW-Authenticate": 'Basic realm="r"'})

    registry.before = basic
    assert one(make(login=Login("me", "secret")), "registry.example.com/app:1").known
    assert one(make(), "registry.example.com/app:1").problem.startswith("denied")


def test_redirects_lose_the_authorization(make: Make, registry: FakeRegistry) -> None:
    registry.service = "registry.docker.io"
    registry.image("me/app", "1")

    def to_cdn(request: httpx.Request) -> httpx.Response | None:
        if "/blobs/" in request.url.path and request.url.host == HUB:
            return httpx.Response(307, headers={"Location": f"https://cdn.example.com{request.url.path}"})
        if request.url.host == "cdn.example.com":
            return httpx.Response(200, content=registry.content[request.url.path][1])
        return None

    registry.before = to_cdn
    assert one(make(), "me/app:1").known
    assert authorizations(registry)["cdn.example.com"] == {""}
    assert {r.headers["host"] for r in registry.sent if r.url.host == "cdn.example.com"} == {"cdn.example.com"}


@pytest.mark.parametrize("location", ["http://cdn.example.com/x", "https://127.0.0.1/x", "https://[::1]/x"])
def test_redirects_out_of_the_open_world_are_refused(make: Make, registry: FakeRegistry, location: str) -> None:
    registry.image("me/app", "1")
    registry.before = lambda request: httpx.Response(302, headers={"Location": location})
    assert "refused" in one(make(), "me/app:1").problem
    assert {r.url.host for r in registry.sent} == {HUB}


def test_another_endpoint_gets_the_real_host_name_and_no_login(make: Make, registry: FakeRegistry) -> None:
    registry.service, registry.realm = "ghcr.io", "http://127.0.0.1:5/token"
    registry.image("me/app", "1")
    driver = make(endpoint="http://127.0.0.1:5", login=Login("me", "secret"))
    assert one(driver, "ghcr.io/me/app:1").known
    assert {str(r.url.host) for r in registry.sent} == {"127.0.0.1"}
    assert {r.headers["host"] for r in registry.sent} == {"ghcr.io", "127.0.0.1:5"}
    assert not any("Basic" in r.headers.get("authorization", "") for r in registry.sent)
