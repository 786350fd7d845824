"""A registry made of functions, for the tests of the registry driver."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx

from hybridlab.drivers._registry_login import Login
from hybridlab.drivers.registry import RegistryDriver
from hybridlab.models import ImageInfo

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
HUB = "registry-1.docker.io"


def digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


class Clock:
    def __init__(self) -> None:
        self.time = 1_800_000_000.0
        self.slept: list[float] = []

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds


class FakeRegistry:
    """Repositories in memory, one host or many; records requests as "METHOD host/path"."""

    def __init__(self, *, service: str | None = None, realm: str = "https://auth.docker.io/token") -> None:
        self.content: dict[str, tuple[str, bytes]] = {}  # path → media type, bytes
        self.log: list[str] = []
        self.sent: list[httpx.Request] = []
        self.service = service
        self.realm = realm
        self.users: dict[str, str] = {}
        self.before: Callable[[httpx.Request], httpx.Response | None] = lambda request: None
        self._lock = threading.Lock()

    # -- filling it ------------------------------------------------------------------------------------------------
    def put(self, repository: str, tag: str, document: Mapping[str, Any] | bytes, content_type: str) -> str:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        for name in (tag, digest(body)):
            self.content[f"/v2/{repository}/manifests/{name}"] = (content_type, body)
        return digest(body)

    def blob(self, repository: str, document: Mapping[str, Any]) -> str:
        body = json.dumps(document).encode()
        self.content[f"/v2/{repository}/blobs/{digest(body)}"] = ("application/octet-stream", body)
        return digest(body)

    def image(
        self,
        repository: str,
        tag: str,
        arch: str = "amd64",
        *,
        media_type: str | None = OCI_MANIFEST,
        content_type: str = OCI_MANIFEST,
        config_type: str = OCI_CONFIG,
        **config: Any,
    ) -> str:
        blob = self.blob(repository, {"os": "linux", "architecture": arch, "config": {"Cmd": ["x"]}, **config})
        document = {"schemaVersion": 2, "config": {"mediaType": config_type, "digest": blob}, "layers": []}
        if media_type:
            document["mediaType"] = media_type
        return self.put(repository, tag, document, content_type)

    def index(
        self,
        repository: str,
        tag: str,
        *platforms: str,
        media_type: str | None = OCI_INDEX,
        content_type: str = OCI_INDEX,
        extra: list[Any] | None = None,
    ) -> str:
        entries = []
        for platform in platforms:
            system, arch, *variant = platform.split("/")
            child = self.image(repository, f"child-{arch}", arch, config={"ExposedPorts": {f"{len(arch)}/tcp": {}}})
            entry = {"os": system, "architecture": arch} | ({"variant": variant[0]} if variant else {})
            entries.append({"mediaType": OCI_MANIFEST, "digest": child, "size": 1, "platform": entry})
        document: dict[str, Any] = {"schemaVersion": 2, "manifests": [*entries, *(extra or [])]}
        if media_type:
            document["mediaType"] = media_type
        return self.put(repository, tag, document, content_type)

    # -- answering -------------------------------------------------------------------------------------------------
    def handle(self, request: httpx.Request) -> httpx.Response:
        with self._lock:
            self.sent.append(request)
            self.log.append(f"{request.method} {request.headers['host']}{request.url.path}")
        special = self.before(request)
        if special is not None:
            return special
        if self.service and str(request.url).startswith(self.realm):
            return self._token(request)
        if self.service and request.headers.get("authorization") != f"Bearer good:{self._scope(request)}":
            challenge = f'Bearer realm="{self.realm}",service="{self.service}",scope="{self._scope(request)}"'
            return httpx.Response(401, headers={"WWW-Authenticate": challenge})
        found = self.content.get(request.url.path)
        if found is None:
            return httpx.Response(404, json={"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]})
        media_type, body = found
        headers = {"Content-Type": media_type}
        if "/manifests/" in request.url.path:
            known = {OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST}
            assert known <= {part.strip() for part in request.headers["accept"].split(",")}
            headers["Docker-Content-Digest"] = digest(body)
        return httpx.Response(200, headers=headers, content=b"" if request.method == "HEAD" else body)

    def _scope(self, request: httpx.Request) -> str:
        name = request.url.path.removeprefix("/v2/").partition("/manifests/")[0].partition("/blobs/")[0]
        return f"repository:{name}:pull"

    def _token(self, request: httpx.Request) -> httpx.Response:
        assert request.url.params["service"] == self.service
        given = request.headers.get("authorization", "")
        if given and base64.b64decode(given.removeprefix("Basic ")).decode() not in self.users.values():
            return httpx.Response(401)
        return httpx.Response(200, json={"access_token": f"good:{request.url.params['scope']}"})

    def count(self, method: str, part: str = "/manifests/") -> int:
        return sum(line.startswith(method) and part in line for line in self.log)


class Registries:
    """Makes drivers on one fake registry; the cache folder is the same for all of them."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.fake = FakeRegistry()

    def driver(
        self, *, endpoint: str | None = None, login: Login | None = None, clock: Clock | None = None
    ) -> RegistryDriver:
        return RegistryDriver(
            cache=self.cache,
            endpoint_for=lambda host: endpoint,
            login_for=lambda host, repository: login,
            transport=httpx.MockTransport(self.fake.handle),
            clock=clock or Clock(),
            rng=random.Random(1),
        )


def one(driver: RegistryDriver, reference: str) -> ImageInfo:
    return driver.lookup([reference])[reference]


def platforms(info: ImageInfo) -> list[str]:
    return [str(p) for p in info.platforms]
