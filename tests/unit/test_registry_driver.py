"""The registry driver against registries made of functions: every media type, asked once, limits, lies and silence."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from registry_kit import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    HUB,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    Clock,
    FakeRegistry,
    Registries,
    one,
    platforms,
)

from hybridlab.drivers.registry import RegistryDriver
from hybridlab.errors import Unreachable


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


# -- media types -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("media_type", "content_type"),
    [
        (OCI_INDEX, OCI_INDEX),
        (DOCKER_LIST, DOCKER_LIST),
        (None, OCI_INDEX),
        (None, "application/json"),
        (OCI_INDEX, "text/plain"),
    ],
)
def test_indexes(make: Make, registry: FakeRegistry, media_type: str | None, content_type: str) -> None:
    extra = [
        {"digest": "sha256:1", "platform": {"os": "unknown", "architecture": "unknown"}},
        {
            "digest": "sha256:2",
            "platform": {"os": "linux", "architecture": "s390x"},
            "annotations": {"vnd.docker.reference.type": "attestation-manifest"},
        },
        {"digest": "sha256:3", "platform": {"os": "windows", "architecture": "amd64"}},
        {"digest": "sha256:4"},
    ]
    wanted = registry.index(
        "library/web",
        "1",
        "linux/amd64/v1",
        "linux/arm64/v8",
        "linux/arm/v7",
        media_type=media_type,
        content_type=content_type,
        extra=extra,
    )
    info = one(make(), "web:1")
    assert (info.known, info.index, info.digest, info.problem) == (True, True, wanted, "")
    assert platforms(info) == ["linux/amd64", "linux/arm64", "linux/arm/v7"]
    assert info.architectures == {"amd64", "arm64", "arm"}
    assert info.config.exposed_ports == ("5/tcp",)  # arm64's configuration speaks for the index


@pytest.mark.parametrize(
    ("media_type", "content_type", "config_type"),
    [
        (OCI_MANIFEST, OCI_MANIFEST, OCI_CONFIG),
        (DOCKER_MANIFEST, DOCKER_MANIFEST, "application/vnd.docker.container.image.v1+json"),
        (None, OCI_MANIFEST, OCI_CONFIG),
        (None, "application/octet-stream", ""),
    ],
)
def test_single_images(
    make: Make, registry: FakeRegistry, media_type: str | None, content_type: str, config_type: str
) -> None:
    settings: dict[str, Any] = {
        "ExposedPorts": {"8080/tcp": {}, "443/tcp": {}, "53/udp": {}},
        "User": "1000:1000",
        "Volumes": {"/data": {}},
        "Healthcheck": {"Test": ["CMD-SHELL", "true"]},
        "Entrypoint": ["/entry"],
        "Cmd": None,
        "WorkingDir": "/app",
    }
    wanted = registry.image(
        "me/app",
        "v1",
        "arm64",
        media_type=media_type,
        content_type=content_type,
        config_type=config_type,
        variant="v8",
        config=settings,
    )
    info = one(make(), "me/app:v1")
    assert (info.known, info.index, info.digest, platforms(info)) == (True, False, wanted, ["linux/arm64"])
    config = info.config
    assert config.exposed_ports == ("53/udp", "443/tcp", "8080/tcp")
    assert (config.user, config.volumes, config.working_dir) == ("1000:1000", ("/data",), "/app")
    assert (config.healthcheck, config.entrypoint, config.cmd) == (("CMD-SHELL", "true"), ("/entry",), ())


@pytest.mark.parametrize(
    ("document", "content_type", "words"),
    [
        ({"schemaVersion": 1, "fsLayers": []}, "application/vnd.docker.distribution.manifest.v1+prettyjws", "schema 1"),
        ({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "manifests": []}, OCI_MANIFEST, "claims to be"),
        ({"schemaVersion": 2, "mediaType": OCI_INDEX, "config": {}, "layers": []}, OCI_INDEX, "claims to be"),
        ({"schemaVersion": 2, "manifests": [], "config": {}, "layers": []}, OCI_INDEX, "an index and a manifest"),
        ({"hello": "world"}, "application/json", "neither"),
        (b"<html>login</html>", "text/html", "not JSON"),
        (b"[1]", "application/json", "not a JSON object"),
        ({"schemaVersion": 2, "manifests": []}, OCI_INDEX, "no runnable linux platform"),
        (
            {"schemaVersion": 2, "config": {"mediaType": "application/vnd.cncf.helm.config.v1+json"}, "layers": []},
            OCI_MANIFEST,
            r"its configuration is application/vnd\.cncf\.helm",
        ),
    ],
)
def test_what_is_no_image(make: Make, registry: FakeRegistry, document: Any, content_type: str, words: str) -> None:
    registry.put("me/x", "1", document, content_type)
    info = one(make(), "me/x:1")
    assert info.platforms == ()
    assert re.search(words, info.problem)


def test_windows_only_images_have_no_platform(make: Make, registry: FakeRegistry) -> None:
    registry.image("me/win", "1", "amd64", os="windows")
    info = one(make(), "me/win:1")
    assert (info.known, info.platforms) == (True, ())
    assert "no runnable linux platform" in info.problem


# -- asking sparingly --------------------------------------------------------------------------------------------------
def test_head_first_and_content_once(make: Make, registry: FakeRegistry) -> None:
    registry.index("library/web", "1", "linux/amd64", "linux/arm64")
    driver = make()
    first = one(driver, "web:1")
    assert (registry.count("HEAD"), registry.count("GET")) == (1, 2)
    assert registry.log[0].startswith("HEAD ")
    assert one(driver, "docker.io/library/web:1").digest == first.digest
    again = make()  # another process, the same folder
    assert one(again, "web:1").platforms == first.platforms
    assert (registry.count("HEAD"), registry.count("GET")) == (3, 2)


def test_a_digest_in_the_cache_is_not_asked_for(make: Make, registry: FakeRegistry) -> None:
    found = registry.index("me/web", "1", "linux/amd64")
    by_tag = one(make(), "me/web:1")
    before = len(registry.log)
    info = one(make(), f"me/web:other@{found}")
    assert info.platforms == by_tag.platforms
    assert info.reference == f"me/web:other@{found}"
    assert len(registry.log) == before


def test_a_moved_tag_is_noticed(make: Make, registry: FakeRegistry) -> None:
    registry.index("me/web", "1", "linux/amd64")
    assert one(make(), "me/web:1").architectures == {"amd64"}
    registry.index("me/web", "1", "linux/amd64", "linux/arm64")
    assert one(make(), "me/web:1").architectures == {"amd64", "arm64"}


def test_what_a_moved_tag_gained_and_lost_is_told_until_it_moves_again(make: Make, registry: FakeRegistry) -> None:
    old = registry.index("me/web", "1", "linux/amd64", "linux/arm64")
    first = one(make(), "me/web:1")
    assert (first.before, first.drift) == (None, "")
    assert one(make(), "me/web:1").drift == "", "looked at again and unchanged"
    new = registry.index("me/web", "1", "linux/amd64", "linux/riscv64")
    clock = Clock()
    clock.time += 86400
    moved = one(make(clock=clock), "me/web:1")
    assert moved.drift == (
        f"since {first.looked_up}: lost linux/arm64; gained linux/riscv64; digest {old[7:19]} → {new[7:19]}"
    )
    assert one(make(clock=clock), "me/web:1").drift == moved.drift, "somebody else may have looked in between"
    rebuilt = registry.index("me/web", "1", "linux/riscv64", "linux/amd64")
    again = one(make(clock=clock), "me/web:1")
    assert again.drift == f"since {moved.looked_up}: digest {new[7:19]} → {rebuilt[7:19]}", (
        "same platforms, other bytes"
    )


def test_a_tag_that_is_gone_says_when_it_was_there(make: Make, registry: FakeRegistry) -> None:
    registry.image("me/web", "1", "arm64")
    seen = one(make(), "me/web:1").looked_up
    del registry.content["/v2/me/web/manifests/1"]
    gone = one(make(), "me/web:1")
    assert not gone.known
    assert gone.problem.startswith("not found")
    assert gone.problem.endswith(f"it was there on {seen}")


def test_same_reference_twice_is_asked_once(make: Make, registry: FakeRegistry) -> None:
    registry.image("me/app", "1")
    answers = make().lookup(["me/app:1", "me/app:1"])
    assert list(answers) == ["me/app:1"]
    assert registry.count("HEAD") == 1


def test_a_damaged_cache_is_no_obstacle(make: Make, registry: FakeRegistry, tmp_path: Path) -> None:
    registry.image("me/app", "1", "arm64")
    one(make(), "me/app:1")
    for path in (tmp_path / "cache").rglob("*.json"):
        path.write_text('{"schema": 1, "info": {"refer')
    assert platforms(one(make(), "me/app:1")) == ["linux/arm64"]


def test_registries_without_head(make: Make, registry: FakeRegistry) -> None:
    wanted = registry.image("me/app", "1")
    registry.before = lambda request: httpx.Response(405) if request.method == "HEAD" else None
    assert one(make(), "me/app:1").digest == wanted


def test_the_pull_limit_is_read(make: Make, registry: FakeRegistry) -> None:
    registry.image("library/web", "1")
    driver = make()

    def limited(request: httpx.Request) -> httpx.Response | None:
        registry.before = lambda request: None
        answer = registry.handle(request)
        registry.before = limited
        answer.headers["ratelimit-remaining"] = "42;w=21600"
        return answer

    registry.before = limited
    one(driver, "web:1")
    assert driver.remaining == {HUB: 42}


# -- failures ----------------------------------------------------------------------------------------------------------
def test_nobody_has_it(make: Make, registry: FakeRegistry) -> None:
    registry.image("me/app", "1")
    answers = make().lookup(["me/app:1", "me/app:2", "me/app:1@sha256:" + "0" * 64, "Not/Valid", "a:b:c"])
    assert [a.known for a in answers.values()] == [True, False, False, False, False]
    problems = [a.problem.partition(":")[0] for a in answers.values()]
    assert problems == ["", "not found", "not found", "bad reference", "bad reference"]


def test_denied(make: Make, registry: FakeRegistry) -> None:
    registry.before = lambda request: httpx.Response(403, json={"errors": [{"code": "DENIED", "message": "no"}]})
    info = one(make(), "me/app:1")
    assert not info.known
    assert info.problem.startswith("denied")


def test_one_dead_registry_among_others(make: Make, registry: FakeRegistry) -> None:
    registry.image("me/app", "1")

    def dead(request: httpx.Request) -> httpx.Response | None:
        if request.url.host == "dead.example.com":
            raise httpx.ConnectError("connection refused")
        return None

    registry.before = dead
    answers = make().lookup(["me/app:1", *[f"dead.example.com/x{n}:1" for n in range(40)]])
    assert answers["me/app:1"].known
    assert answers["dead.example.com/x7:1"].problem.startswith("could not ask: no connection")
    assert registry.count("HEAD", "dead.example.com") <= 8  # those that were under way, and no more


def test_no_registry_at_all(make: Make, registry: FakeRegistry) -> None:
    def dead(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("network unreachable")

    registry.before = dead
    with pytest.raises(Unreachable, match="network unreachable"):
        make().lookup(["me/app:1", "ghcr.io/x/y"])


def test_an_older_answer_stands_in_and_says_so(make: Make, registry: FakeRegistry) -> None:
    registry.image("me/app", "1", "arm64")
    clock = Clock()
    older = one(make(clock=clock), "me/app:1")

    def dead(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("network unreachable")

    registry.before = dead
    clock.time += 86400
    info = one(make(clock=clock), "me/app:1")
    assert (info.known, platforms(info)) == (True, ["linux/arm64"])
    assert info.looked_up == older.looked_up
    assert info.problem.startswith("could not ask")


def test_429_is_waited_out_as_told(make: Make, registry: FakeRegistry) -> None:
    registry.image("me/app", "1")
    left = [httpx.Response(429, headers={"Retry-After": "7"}), httpx.Response(503)]
    registry.before = lambda request: left.pop(0) if left else None
    clock = Clock()
    assert one(make(clock=clock), "me/app:1").known
    assert clock.slept[0] == 7
    assert len(clock.slept) == 2


@pytest.mark.parametrize("headers", [{"Retry-After": "3600"}, {"ratelimit-remaining": "0;w=21600"}])
def test_a_used_up_limit_is_not_waited_for(make: Make, registry: FakeRegistry, headers: dict[str, str]) -> None:
    registry.before = lambda request: httpx.Response(429, headers=headers)
    clock = Clock()
    info = one(make(clock=clock), "me/app:1")
    assert info.problem.startswith("could not ask")
    assert (len(registry.log), clock.slept) == (1, [])


def test_retries_are_bounded(make: Make, registry: FakeRegistry) -> None:
    registry.before = lambda request: httpx.Response(500)
    clock = Clock()
    assert one(make(clock=clock), "me/app:1").problem.startswith("could not ask")
    assert len(registry.log) == 3
    assert len(clock.slept) == 2


def test_content_that_is_not_what_its_digest_says(make: Make, registry: FakeRegistry, tmp_path: Path) -> None:
    wanted = registry.image("me/app", "1")
    path = f"/v2/me/app/manifests/{wanted}"
    registry.content[path] = (OCI_MANIFEST, registry.content[path][1] + b" ")
    info = one(make(), f"me/app@{wanted}")
    assert not info.known
    assert "does not match" in info.problem
    assert not list((tmp_path / "cache").rglob("*.json"))


def test_a_digest_header_cannot_name_a_file(make: Make, registry: FakeRegistry, tmp_path: Path) -> None:
    registry.image("me/app", "1")

    def lie(request: httpx.Request) -> httpx.Response | None:
        if request.method == "HEAD":
            return httpx.Response(200, headers={"Docker-Content-Digest": "../../../evil"})
        return None

    registry.before = lie
    assert one(make(), "me/app:1").known
    assert not list(tmp_path.glob("**/evil*"))


def test_an_index_whose_configuration_cannot_be_read_keeps_its_platforms(make: Make, registry: FakeRegistry) -> None:
    registry.index("me/app", "1", "linux/amd64", "linux/arm64")
    registry.before = lambda request: httpx.Response(404) if "/blobs/" in request.url.path else None
    info = one(make(), "me/app:1")
    assert info.architectures == {"amd64", "arm64"}
    assert "configuration could not be read" in info.problem
    registry.before = lambda request: None
    assert one(make(), "me/app:1").problem == ""  # half an answer is not kept


def test_progress_is_told(make: Make, registry: FakeRegistry) -> None:
    registry.image("me/app", "1")
    lines: list[str] = []
    make().lookup(["me/app:1", "me/b:1"], progress=lines.append)
    assert len(lines) == 2
    assert "2 of 2" in lines[-1]
