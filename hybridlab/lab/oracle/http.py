"""The HTTP side: routes, what each accepts, signatures, retry tokens, etags, and the request log.

Handlers are plain functions, so each request is atomic; what takes time runs beside them (``World.spawn``).
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from hybridlab.lab.oracle import signing
from hybridlab.lab.oracle.credentials import Credentials
from hybridlab.lab.oracle.errors import ApiError, invalid, missing
from hybridlab.lab.oracle.store import Json, Record, RetryToken, Store
from hybridlab.lab.world import World

RETRY_TOKEN_S = 24 * 3600
_TOKEN = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "num": (int, float),
    "bool": (bool,),
    "list": (list,),
    "dict": (dict,),
}


@dataclass(frozen=True)
class Call:
    """A request that passed the checks: path variables, query and body hold only what the route knows."""

    method: str
    path: str
    ids: Mapping[str, str]
    query: Mapping[str, str]
    body: Json


@dataclass(frozen=True)
class Answer:
    body: Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    lost: bool = False  # carried out, but the connection is cut before the answer
    made: str = ""  # OCID of what was made, where the body doesn't say it


def shown(record: Record, status: int = 200, **headers: str) -> Answer:
    """Answer with a record and its etag."""
    return Answer(record.body, status, {"etag": record.etag, **{k.replace("_", "-"): v for k, v in headers.items()}})


@dataclass(frozen=True)
class Route:
    """One operation.

    ``query`` and ``body`` name what it accepts, separated by blanks: ``name!`` is required; a body field may have a
    type after a colon (str by default). Anything else in a request is refused.
    """

    method: str
    path: str
    handler: Callable[[Call], Answer]
    query: str = ""
    body: str = ""
    mutating: bool | None = None  # None: all but GET
    creates: bool = False  # takes opc-retry-token
    target: str = ""  # path variable of the record that if-match is about

    def matches(self, path: str) -> Mapping[str, str] | None:
        own, other = self.path.split("/"), path.split("/")
        if len(own) != len(other):
            return None
        ids = {}
        for part, value in zip(own, other, strict=True):
            if part.startswith("{"):
                ids[part[1:-1]] = value
            elif part != value:
                return None
        return ids


def check_fields(given: Mapping[str, Any], spec: str, where: str = "") -> None:
    """Refuse a JSON object with unknown, missing or mistyped fields; nulls count as absent."""
    known: dict[str, tuple[str, bool]] = {}
    for item in spec.split():
        name, _, kind = item.partition(":")
        known[name.rstrip("!")] = (kind or "str", name.endswith("!"))
    for name, value in given.items():
        if name not in known:
            raise invalid(f"{where}{name} is not a parameter of this operation")
        kind = known[name][0]
        if not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "bool"):
            raise invalid(f"{where}{name} must be of type {kind}")
    for name, (_, required) in known.items():
        if required and name not in given:
            raise missing(where + name)


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    return value


class Server:
    """Answers requests by a table of routes."""

    def __init__(self, world: World, store: Store, credentials: Credentials, routes: Sequence[Route]) -> None:
        self._world = world
        self._store = store
        self._key_id = f"{store.tenancy_id}/{store.user_id}/{credentials.fingerprint}"
        self._key = credentials.key
        self._routes = routes

    def application(self) -> web.Application:
        application = web.Application(client_max_size=1 << 20)
        application.router.add_route("*", "/{path:.*}", self._handle)
        return application

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        content = await request.read()
        matching = [(route, ids) for route in self._routes if (ids := route.matches(request.path)) is not None]
        found = next(((route, ids) for route, ids in matching if route.method == request.method), None)
        mutating = request.method not in ("GET", "HEAD")
        if found is not None and found[0].mutating is not None:
            mutating = found[0].mutating
        detail = ""
        try:
            self._authenticate(request, content)  # first: who is not believed does not learn what exists
            if found is None and matching:
                raise ApiError(405, "MethodNotAllowed", f"{request.method} is not supported at {request.path}")
            if found is None:
                raise ApiError(404, "NotFound", f"No operation is supported at {request.method} {request.path}")
            answer = self._answer(*found, request, content)
        except ApiError as error:
            detail = error.code
            answer = Answer({"code": error.code, "message": error.message}, error.status)
        self._store.flush()
        self._world.log.add(
            "oracle",
            request.method,
            request.path,
            answer.status,
            mutating=mutating,
            actor=request.headers.get("User-Agent", ""),
            detail="answer lost" if answer.lost else detail,
        )
        if answer.lost and request.transport is not None:
            request.transport.abort()
        return self._respond(request, answer)

    def _authenticate(self, request: web.Request, content: bytes) -> None:
        signing.verify(
            request.method,
            request.raw_path,
            request.headers,
            content,
            key_id=self._key_id,
            key=self._key,
            now=self._store.now(),
        )

    def _answer(self, route: Route, ids: Mapping[str, str], request: web.Request, content: bytes) -> Answer:
        if self._world.faults.fires("too-many-requests", f"{request.method} {request.path}"):
            raise ApiError(429, "TooManyRequests", "Too many requests for the user.")
        query = _query(route, request)
        body = _body(route, content)
        token = request.headers.get("opc-retry-token") if route.creates else None
        digest = hashlib.sha256(json.dumps([route.method, request.path, body], sort_keys=True).encode()).hexdigest()
        if token is not None:
            repeated = self._repeated(token, digest)
            if repeated is not None:
                return shown(repeated)
        if_match = request.headers.get("if-match")
        if route.target and if_match is not None:
            record = self._store.records.get(ids[route.target])
            if record is not None and if_match not in ("*", record.etag):
                raise ApiError(412, "NoEtagMatch", f"The etag {if_match} does not match that of {record.id}")
        answer = route.handler(Call(request.method, request.path, ids, query, body))
        if token is not None:
            made = answer.made or answer.body["id"]
            self._store.drop_tokens_older_than(RETRY_TOKEN_S)
            self._store.tokens[token] = RetryToken(self._store.now(), digest, made)
            self._store.dirty = True
        return answer

    def _repeated(self, token: str, digest: str) -> Record | None:
        """What this retry token made before; None if it is new. Other content is refused, as Oracle's NoSQL service's
        own tests expect (400 for a malformed token, 409 InvalidatedRetryToken for any other use)."""
        if not _TOKEN.fullmatch(token):
            raise invalid("opc-retry-token must be 1 to 64 letters, digits, '-', '_', '.' or ':'")
        used = self._store.tokens.get(token)
        if used is None or self._store.now() - used.used_at > RETRY_TOKEN_S:
            return None
        record = self._store.records.get(used.resource)
        if used.request != digest:
            raise ApiError(409, "InvalidatedRetryToken", "The retry token was already used with a different request.")
        if record is None or not record.alive:
            raise ApiError(
                409,
                "InvalidatedRetryToken",
                "The provided retry token was used in an earlier request that resulted in a system update, "
                "but a subsequent operation invalidated the token.",
            )
        return record

    def _respond(self, request: web.Request, answer: Answer) -> web.Response:
        theirs = request.headers.get("opc-request-id") or uuid.uuid4().hex.upper()
        ours = f"{uuid.uuid4().hex.upper()}/{uuid.uuid4().hex.upper()}"
        headers = {"opc-request-id": f"{theirs}/{ours}", **answer.headers}
        if answer.body is None:
            return web.Response(status=answer.status, headers=headers)
        return web.json_response(answer.body, status=answer.status, headers=headers)


def _query(route: Route, request: web.Request) -> dict[str, str]:
    known = {item.rstrip("!"): item.endswith("!") for item in route.query.split()}
    query: dict[str, str] = {}
    for name, value in request.query.items():
        if name not in known:
            raise invalid(f"{name} is not a supported query parameter of {route.method} {route.path}")
        if name in query:
            raise invalid(f"{name} is given twice")
        query[name] = value
    for name, required in known.items():
        if required and name not in query:
            raise missing(name)
    return query


def _body(route: Route, content: bytes) -> Json:
    if not route.body:
        if content.strip() not in (b"", b"{}"):
            raise invalid("this operation takes no body")
        return {}
    try:
        body = json.loads(content or b"{}")
    except ValueError:
        raise ApiError(400, "CannotParseRequest", "Incorrectly formatted request.") from None
    if not isinstance(body, dict):
        raise ApiError(400, "CannotParseRequest", "Incorrectly formatted request.")
    body = without_nulls(body)
    check_fields(body, route.body)
    return dict(body)
