"""The lab's registries: the read side of the distribution API for every registry host, on one loopback port.

Which registry is meant: the ``Host`` header, or containerd's ``?ns=`` on a mirror request; a request to the loopback
address itself is to Docker Hub, with ``library/`` added, or to the host that the repository's first part names.
Rules: distribution's spec/api.md and spec/auth/token.md; Docker Hub's pull limit (manifest GETs count, HEADs don't).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any
from urllib.parse import urlencode

from aiohttp import web

from hybridlab.lab.net import remember_port, remembered_port, serve_on_loopback
from hybridlab.lab.registry_images import (
    DOCKER_HUB,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    HUB_NAMES,
    OCI_MANIFEST,
    Catalogue,
    Manifest,
    Repository,
    canonical_host,
    image_config,
)
from hybridlab.lab.world import World

TOKEN_LIVES_S = 300
PULL_LIMIT = 100
PULL_WINDOW_S = 6 * 3600
PAGE_MAX = 1000
LOOPBACK_HOST = "loopback"
SERVICES = {DOCKER_HUB: "registry.docker.io", "registry.gitlab.com": "container_registry"}
ROUTE = re.compile(r"/v2/(?P<name>.+)/(?P<kind>manifests|blobs|tags)/(?P<what>[^/]+)")
UPLOAD_ROUTE = re.compile(r"/v2/(?P<name>.+)/(?P<kind>blobs)/uploads/?.*")
NAME = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


@dataclass
class Refusal(Exception):
    """An error of the distribution specification."""

    status: int
    code: str
    message: str
    detail: Any = None
    headers: Mapping[str, str] | None = None

    def response(self) -> web.Response:
        error: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.detail is not None:
            error["detail"] = self.detail
        return web.json_response({"errors": [error]}, status=self.status, headers=self.headers)


@dataclass(frozen=True)
class Target:
    """Which repository a request is about. ``asked`` is its name as the client spelt it."""

    host: str
    repository: str
    asked: str

    @property
    def name(self) -> str:
        return f"{self.host}/{self.repository}"

    @property
    def scope(self) -> str:
        return f"repository:{self.asked}:pull"


class RegistryPart:
    """Implements ``hybridlab.lab.world.Registry``. ``pull_limit`` is Docker Hub's, for one address and six hours."""

    def __init__(
        self, catalogue: Mapping[str, Mapping[str, Any]] | None = None, *, pull_limit: int = PULL_LIMIT
    ) -> None:
        self._catalogue = Catalogue(_load_catalogue() if catalogue is None else catalogue)
        self._pull_limit = pull_limit
        self._key = secrets.token_bytes(32)
        self._pulls: list[float] = []
        self._runner: web.ServerRunner | None = None
        self._world: World | None = None
        self._base = ""

    @property
    def world(self) -> World:
        if self._world is None:
            raise RuntimeError("the registry was not started")
        return self._world

    async def start(self, world: World) -> None:
        self._world = world
        saved = world.load("registry") or {}
        self._pulls = list(saved.get("pulls", []))
        world.faults.register(
            "registry-quota", 'answer 429, as a used-up pull limit does; matches "HOST/REPOSITORY:REFERENCE"'
        )
        self._runner = web.ServerRunner(web.Server(self._serve, access_log=None), shutdown_timeout=1.0)
        port = await serve_on_loopback(self._runner, preferred=remembered_port(world, "registry"))
        remember_port(world, "registry", port)
        self._base = f"http://127.0.0.1:{port}"
        world.registry = self
        world.endpoints["registry"] = {"endpoint": self._base}

    async def stop(self) -> None:
        if self._runner:
            await self._runner.cleanup()
            self.world.save("registry", {"pulls": self._pulls})

    # -- questions of the other parts ------------------------------------------------------------------------------
    def platforms(self, image: str) -> tuple[str, ...] | None:
        """Platforms of a reference in any spelling; None where nobody has the image."""
        found = self._catalogue.find(image)
        return found[1].platforms if found else None

    def config(self, image: str, platform: str) -> Mapping[str, Any]:
        """The configuration blob for a platform. Raises KeyError where the image isn't known or has it not."""
        found = self._catalogue.find(image)
        config = image_config(*found, platform) if found else None
        if config is None:
            raise KeyError(f"{image} for {platform}")
        return config

    def is_index(self, image: str) -> bool:
        """Whether the reference names an index (or Docker's manifest list) rather than one image."""
        found = self._catalogue.find(image)
        return found is not None and found[1].is_index

    # -- requests --------------------------------------------------------------------------------------------------
    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        host = self._host(request)
        try:
            answer = self._answer(request, host)
        except Refusal as refusal:
            answer = refusal.response()
        answer.headers["Docker-Distribution-Api-Version"] = "registry/2.0"
        answer.headers["X-Content-Type-Options"] = "nosniff"
        self.world.log.add(
            "registry",
            request.method,
            f"{host}{request.path}",
            answer.status,
            mutating=request.method not in ("GET", "HEAD"),
            actor=request.headers.get("User-Agent", ""),
        )
        return answer

    def _host(self, request: web.BaseRequest) -> str:
        named = request.query.get("ns") or request.host
        if named.rpartition(":")[0].strip("[]") in ("127.0.0.1", "localhost", "::1"):
            return LOOPBACK_HOST
        return canonical_host(named.removesuffix(":443"))

    def _answer(self, request: web.BaseRequest, host: str) -> web.Response:
        if request.path == "/token":
            return self._token(request)
        upload = UPLOAD_ROUTE.fullmatch(request.path)
        if request.method not in ("GET", "HEAD") or upload:
            raise Refusal(405, "UNSUPPORTED", "The operation is unsupported.")
        front = DOCKER_HUB if host == LOOPBACK_HOST else host  # one service for all that is asked at one address
        service = SERVICES.get(front, front)
        if request.path in ("/v2/", "/v2"):
            self._authorise(request, service, None)
            return web.json_response({})
        route = ROUTE.fullmatch(request.path)
        if not route or (route["kind"] == "tags" and route["what"] != "list"):
            return web.Response(status=404, text="404 page not found\n")
        target = self._target(host, route["name"])
        self._authorise(request, service, target.scope)
        if not NAME.fullmatch(target.repository):
            raise Refusal(400, "NAME_INVALID", "invalid repository name")
        repository = self._catalogue.repository(target.name)
        if repository is None:
            raise Refusal(404, "NAME_UNKNOWN", "repository name not known to registry", {"name": target.repository})
        if route["kind"] == "manifests":
            return self._manifest(request, target, repository, route["what"])
        if route["kind"] == "blobs":
            return _blob(repository, route["what"])
        return _tags(request, target, repository)

    def _target(self, host: str, asked: str) -> Target:
        if host != LOOPBACK_HOST:
            return Target(host, asked, asked)
        first, slash, rest = asked.partition("/")
        if slash and (first in HUB_NAMES or first in self._catalogue.hosts):
            host, asked_there = canonical_host(first), rest
        else:
            host, asked_there = DOCKER_HUB, asked
        if host == DOCKER_HUB and "/" not in asked_there:
            asked_there = f"library/{asked_there}"
        return Target(host, asked_there, asked)

    # -- tokens ----------------------------------------------------------------------------------------------------
    def _authorise(self, request: web.BaseRequest, service: str, scope: str | None) -> None:
        """Let a request pass that carries a token for this service and scope; else the challenge that says how."""
        kind, _, token = request.headers.get("Authorization", "").partition(" ")
        granted = self._read_token(token) if kind.lower() == "bearer" else None
        if granted and granted["service"] == service and (scope is None or scope in granted["scopes"]):
            return
        challenge = f'Bearer realm="{self._base}/token",service="{service}"'
        if scope:
            challenge += f',scope="{scope}"'
        if kind:
            challenge += f',error="{"insufficient_scope" if granted else "invalid_token"}"'
        raise Refusal(401, "UNAUTHORIZED", "authentication required", None, {"WWW-Authenticate": challenge})

    def _token(self, request: web.BaseRequest) -> web.Response:
        """The token realm: anonymous pulls only; nobody has an account here, so every password is wrong."""
        if request.method != "GET":
            return web.json_response({"details": "method not allowed"}, status=405)
        if "Authorization" in request.headers:
            return web.json_response({"details": "incorrect username or password"}, status=401)
        service = request.query.get("service", "")
        if not service:
            return web.json_response({"details": "service is missing"}, status=400)
        scopes: list[str] = []
        for scope in " ".join(request.query.getall("scope", [])).split():
            kind, _, rest = scope.partition(":")
            name, _, actions = rest.rpartition(":")
            if kind != "repository" or not name:
                return web.json_response({"details": f"invalid scope {scope!r}"}, status=400)
            if "pull" in actions.split(","):  # what was asked beyond that is left out, as the real ones do
                scopes.append(f"repository:{name}:pull")
        expires = int(time.time()) + TOKEN_LIVES_S
        body = json.dumps({"service": service, "scopes": scopes, "exp": expires}).encode()
        token = f"{_base64(body)}.{_base64(hmac.digest(self._key, body, hashlib.sha256))}"
        issued = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        return web.json_response(
            {"token": token, "access_token": token, "expires_in": TOKEN_LIVES_S, "issued_at": issued}
        )

    def _read_token(self, token: str) -> dict[str, Any] | None:
        body_text, _, signature = token.partition(".")
        try:
            body = base64.urlsafe_b64decode(body_text + "==")
            signed = base64.urlsafe_b64decode(signature + "==")
        except ValueError:
            return None
        if not hmac.compare_digest(signed, hmac.digest(self._key, body, hashlib.sha256)):
            return None
        granted: dict[str, Any] = json.loads(body)
        return granted if granted["exp"] > time.time() else None

    # -- manifests -------------------------------------------------------------------------------------------------
    def _manifest(self, request: web.BaseRequest, target: Target, repository: Repository, what: str) -> web.Response:
        if ":" in what:
            if not DIGEST.fullmatch(what):
                raise Refusal(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
            manifest = repository.manifests.get(what)
            unknown: Any = f"unknown manifest name={target.repository} revision={what}"
        else:
            manifest = repository.manifests.get(repository.tags.get(what, "")) if TAG.fullmatch(what) else None
            unknown = f"unknown tag={what}"
        headers = self._count_pull(request, target, what)
        if manifest is None:
            raise Refusal(404, "MANIFEST_UNKNOWN", "manifest unknown", unknown, headers)
        manifest = _negotiated(request, repository, manifest, by_tag=":" not in what, headers=headers)
        headers |= {
            "Docker-Content-Digest": manifest.digest,
            "Etag": f'"{manifest.digest}"',
            "Content-Type": manifest.media_type,
        }
        if f'"{manifest.digest}"' in request.headers.get("If-None-Match", ""):
            return web.Response(status=304, headers=headers)
        return web.Response(body=manifest.data, headers=headers)

    def _count_pull(self, request: web.BaseRequest, target: Target, what: str) -> dict[str, str]:
        """Count a manifest GET against Docker Hub's limit; returns the headers that tell what is left."""
        counted = request.method == "GET"
        struck = counted and self.world.faults.fires("registry-quota", f"{target.name}:{what}")
        headers: dict[str, str] = {}
        spent = struck
        if target.host == DOCKER_HUB:
            since = time.time() - PULL_WINDOW_S / self.world.clock.speed
            self._pulls = [pull for pull in self._pulls if pull > since]
            spent = spent or (counted and len(self._pulls) >= self._pull_limit)
            if counted and not spent:
                self._pulls.append(time.time())
            left = 0 if spent else max(0, self._pull_limit - len(self._pulls))
            headers = {
                "ratelimit-limit": f"{self._pull_limit};w={PULL_WINDOW_S}",
                "ratelimit-remaining": f"{left};w={PULL_WINDOW_S}",
                "docker-ratelimit-source": self.world.operator_ip,
            }
        if spent:
            message = (
                "You have reached your unauthenticated pull rate limit. https://www.docker.com/increase-rate-limit"
            )
            raise Refusal(429, "TOOMANYREQUESTS", message, None, headers)
        return headers


def _negotiated(
    request: web.BaseRequest,
    repository: Repository,
    manifest: Manifest,
    *,
    by_tag: bool,
    headers: Mapping[str, str],
) -> Manifest:
    """What a client that accepts only some media types gets, as distribution does it.

    Docker's list becomes its linux/amd64 image when asked by tag; OCI's types are refused to clients that don't name
    them ("*/*" doesn't).
    """
    accepted = {
        part.partition(";")[0].strip() for line in request.headers.getall("Accept", []) for part in line.split(",")
    }
    if manifest.media_type in accepted or manifest.media_type == DOCKER_MANIFEST:
        return manifest
    if manifest.media_type == DOCKER_LIST:
        children = (repository.manifests[digest] for digest in manifest.children)
        plain = next((child for child in children if "linux/amd64" in child.platforms), None)
        if not by_tag or plain is None:
            return manifest
        return plain
    found = "OCI index found, but accept header does not support OCI indexes"
    if manifest.media_type == OCI_MANIFEST:
        found = "OCI manifest found, but accept header does not support OCI manifests"
    raise Refusal(404, "MANIFEST_UNKNOWN", found, None, headers)


def _blob(repository: Repository, what: str) -> web.Response:
    if not DIGEST.fullmatch(what):
        raise Refusal(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
    data = repository.blobs.get(what)
    if data is None:
        raise Refusal(404, "BLOB_UNKNOWN", "blob unknown to registry", {"digest": what})
    headers = {
        "Docker-Content-Digest": what,
        "Etag": f'"{what}"',
        "Content-Type": "application/octet-stream",
        "Cache-Control": "max-age=31536000",
    }
    return web.Response(body=data, headers=headers)


def _tags(request: web.BaseRequest, target: Target, repository: Repository) -> web.Response:
    """All tags, or ``n`` of them after ``last`` with a Link to the next page."""
    tags = sorted(repository.tags)
    last, count = request.query.get("last", ""), request.query.get("n")
    if count is not None and (not count.isdigit() or not 0 < int(count) <= PAGE_MAX):
        raise Refusal(400, "PAGINATION_NUMBER_INVALID", "invalid number of results requested", {"n": count})
    after = [tag for tag in tags if tag > last]
    page = after[: int(count)] if count else after
    headers = {}
    if len(page) < len(after):
        query = urlencode({"last": page[-1], "n": count})
        headers["Link"] = f'</v2/{target.asked}/tags/list?{query}>; rel="next"'
    return web.json_response({"name": target.asked, "tags": page}, headers=headers)


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _load_catalogue() -> dict[str, dict[str, Any]]:
    text = resources.files("hybridlab.data").joinpath("registry-catalogue.json").read_text(encoding="utf-8")
    found: dict[str, dict[str, Any]] = json.loads(text)
    return found
