"""The HTTP face of the API server: paths, methods, authentication, errors, the request log."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

from aiohttp import web

from hybridlab.lab.kube import discovery, openapi
from hybridlab.lab.kube.access import Tokens, authorize, user_of
from hybridlab.lab.kube.admission import Admission
from hybridlab.lab.kube.errors import ApiError
from hybridlab.lab.kube.requests import Requests
from hybridlab.lab.kube.store import Obj, Store
from hybridlab.lab.kube.streams import Runtime, Streams
from hybridlab.lab.kube.subresources import Subresources
from hybridlab.lab.kube.wire import Target, no_such_path, parse_path
from hybridlab.lab.world import RequestLog

Handler = Callable[[web.Request, Target], Awaitable[web.StreamResponse]]

MAX_BODY = 3 * 1024 * 1024
_OPEN_PATHS = ("/cacerts", "/healthz", "/livez", "/readyz", "/ping")
_READERS = frozenset(
    (
        "cat",
        "cksum",
        "date",
        "df",
        "du",
        "echo",
        "false",
        "find",
        "head",
        "hostname",
        "id",
        "ls",
        "md5sum",
        "printenv",
        "pwd",
        "sha256sum",
        "sha512sum",
        "stat",
        "tail",
        "test",
        "true",
        "uname",
        "wc",
        "whoami",
    )
)
_AGGREGATED = "v=v2;as=APIGroupDiscoveryList"


class ApiServer:
    """Answers every request on one store. ``version`` is K3s' (v1.34.2+k3s1); ``ca_pem`` goes out at /cacerts."""

    def __init__(
        self,
        store: Store,
        admission: Admission,
        runtime: Runtime,
        log: RequestLog,
        *,
        version: str,
        ca_pem: bytes,
        token_secret: str,
    ) -> None:
        self.version = version
        self.address = ""  # host:port, for /api's serverAddressByClientCIDRs
        self._store = store
        self._log = log
        self._ca_pem = ca_pem
        self._tokens = Tokens(store, token_secret)
        self.requests = Requests(store, admission)
        self._subresources = Subresources(store, admission, self.requests, self._tokens)
        self._streams = Streams(store, runtime)

    def application(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY)
        app.router.add_route("*", "/{path:.*}", self._handle)
        return app

    def stop_watches(self) -> None:
        for watch in tuple(self.requests.watches):
            watch.stop()

    # -- every request ----------------------------------------------------------------------------------------------
    async def _handle(self, request: web.Request) -> web.StreamResponse:
        try:
            response = await self._answer(request)
        except ApiError as error:
            headers = {"Retry-After": "1"} if error.status == 429 else {}
            response = web.json_response(error.body(), status=error.status, headers=headers)
        except web.HTTPRequestEntityTooLarge:
            message = f"Request entity too large: limit is {MAX_BODY}"
            body = ApiError(413, "RequestEntityTooLarge", message).body()
            response = web.json_response(body, status=413)
        self._log.add(
            "kube",
            request.method,
            request.path_qs if len(request.path_qs) < 500 else request.path,
            response.status,
            mutating=self._is_mutating(request),
            actor=request.headers.get("User-Agent", ""),
        )
        return response

    def _is_mutating(self, request: web.Request) -> bool:
        """Whether it was meant to change something: reviews, dry runs and commands that only read are not."""
        if request.path.endswith("/exec"):
            return not only_reads(request.query.getall("command", []))
        if request.method in ("GET", "HEAD", "OPTIONS") or request.query.get("dryRun"):
            return False
        return not request.path.startswith(("/apis/authorization.k8s.io/", "/apis/authentication.k8s.io/"))

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        if path == "/cacerts":
            return web.Response(body=self._ca_pem, content_type="text/plain")
        if path.startswith(_OPEN_PATHS) and path != "/ping":
            return web.Response(text="ok")
        if path == "/ping":
            return web.Response(text="pong")
        user = user_of(request, self._tokens)
        review = self._review(request)
        if review:
            return await self._subresources.review(request, review, user)
        if path.rstrip("/") in ("/api", "/apis") and _AGGREGATED in request.headers.get("Accept", "").split(",")[0]:
            document = discovery.aggregated(self._store, core=path.rstrip("/") == "/api")
            kind = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
            return web.Response(text=json.dumps(document), headers={"Content-Type": kind})
        found = self._document(request)
        if found is not None:
            return web.json_response(found)
        target = parse_path(path, self._store)
        if target is None:
            raise no_such_path()
        authorize(self._store, user, request, target)
        return await self._on_target(request, target)

    @staticmethod
    def _review(request: web.Request) -> str:
        parts = request.path.strip("/").split("/")
        for resource in discovery.REVIEWS:
            if parts == ["apis", resource.group, resource.version, resource.plural]:
                if request.method != "POST":
                    raise _not_allowed()
                return resource.kind
        return ""

    def _document(self, request: web.Request) -> Obj | None:
        """Discovery and OpenAPI; None where the path names objects."""
        path = request.path.rstrip("/") or "/"
        parts = path.strip("/").split("/")
        store = self._store
        if path == "/version":
            return discovery.version_info(self.version)
        if path == "/api":
            return discovery.core_versions(self.address)
        if path == "/apis":
            return discovery.group_list(store)
        if path == "/":
            groups = [f"/apis/{group}" for group in discovery.groups(store)]
            return {"paths": ["/api", "/api/v1", "/apis", *groups, "/healthz", "/livez", "/openapi/v3", "/version"]}
        found: Obj | None = None
        if path == "/api/v1":
            found = discovery.resource_list(store, "", "v1")
        elif parts[0] == "apis" and len(parts) == 2:
            found = discovery.group(store, parts[1])
        elif parts[0] == "apis" and len(parts) == 3:
            found = discovery.resource_list(store, parts[1], parts[2])
        elif parts[:2] == ["openapi", "v2"]:
            if "json" not in request.headers.get("Accept", "json") and "*/*" not in request.headers["Accept"]:
                raise ApiError(406, "NotAcceptable", "only application/json can be answered")
            found = openapi.swagger(store, self.version)
        elif parts[:2] == ["openapi", "v3"]:
            found = self._openapi_v3(parts[2:])
        else:
            return None
        if found is None:
            raise no_such_path()
        return found

    def _openapi_v3(self, parts: list[str]) -> Obj | None:
        if not parts:
            return openapi.index(self._store)
        if parts == ["api", "v1"]:
            return openapi.document(self._store, "", "v1")
        if parts[0] == "apis" and len(parts) == 3:
            return openapi.document(self._store, parts[1], parts[2])
        return None

    # -- objects ----------------------------------------------------------------------------------------------------
    async def _on_target(self, request: web.Request, target: Target) -> web.StreamResponse:
        handler = self._handler(request.method, target)
        if handler is None:
            raise _not_allowed()
        return await handler(request, target)

    def _handler(self, method: str, target: Target) -> Handler | None:
        requests, subresources = self.requests, self._subresources
        one: dict[str, Handler] = {"GET": requests.get, "PUT": requests.replace, "PATCH": requests.patch}
        if target.name is None:
            many: dict[str, Handler] = {
                "GET": requests.list,
                "POST": requests.create,
                "DELETE": requests.delete_collection,
            }
            if method == "DELETE" and "deletecollection" not in target.resource.verbs:
                return None
            return many.get(method)
        special: dict[str, dict[str, Handler]] = {
            "": {**one, "DELETE": requests.delete},
            "status": one,
            "scale": dict.fromkeys(("GET", "PUT", "PATCH"), subresources.scale),
            "binding": {"POST": subresources.binding},
            "eviction": {"POST": subresources.evict},
            "token": {"POST": subresources.token},
            "finalize": {"PUT": subresources.finalize},
            "log": {"GET": self._streams.logs},
            "exec": {"GET": self._streams.exec, "POST": self._streams.exec},
        }
        return special.get(target.subresource, {}).get(method)


def only_reads(argv: list[str]) -> bool:
    """Whether a command is known to change nothing."""
    program = argv[0].rpartition("/")[2] if argv else ""
    if program == "tar":
        return any(arg.startswith(("-c", "c", "--create", "-t", "t", "--list")) for arg in argv[1:2])
    return program in _READERS and not any(arg.startswith(("-delete", "-exec", "-ok", "-fprint")) for arg in argv)


def _not_allowed() -> ApiError:
    message = "the server does not allow this method on the requested resource"
    return ApiError(405, "MethodNotAllowed", message)
