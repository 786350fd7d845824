"""The Kubernetes API through the official client's transport, with plain dicts instead of its models.

The client's models refuse what the API server accepts (integer env values, unknown keys), so only its kubeconfig
loader, TLS and authentication are used; paths come from discovery, bodies are JSON.
"""

from __future__ import annotations

import builtins
import logging
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hybridlab.drivers import _kube_exec
from hybridlab.drivers._kube_compare import compare
from hybridlab.drivers._kube_http import Transport, refusal
from hybridlab.drivers._kube_nodes import node_infos
from hybridlab.errors import NotFound, Refused, TooManyRequests
from hybridlab.models import ExecResult, Json, NodeInfo

log = logging.getLogger(__name__)

FIELD_MANAGER = "hybridlab"
PAGE = 500
_APPLY = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"


@dataclass(frozen=True)
class _Resource:
    plural: str
    namespaced: bool


class KubeDriver:
    """One cluster's API, as the kubeconfig's current context says.

    Raises BadInput for a kubeconfig that can't be read or that belongs to another cluster (its CA doesn't fit).
    """

    def __init__(self, kubeconfig: Path) -> None:
        self._http = Transport(kubeconfig)
        self._kinds: dict[str, dict[str, _Resource]] = {}

    def close(self) -> None:
        self._http.close()

    # -- reading ---------------------------------------------------------------------------------------------------
    def version(self) -> str:
        """The API server's version, as ``v1.34.2+k3s1``."""
        return str(self._http.json("GET", "/version", about="version")["gitVersion"])

    def nodes(self) -> tuple[NodeInfo, ...]:
        """All nodes; free is allocatable minus the requests of pods that have not ended."""
        pods = self.list("v1", "Pod", fields="status.phase!=Succeeded,status.phase!=Failed")
        return node_infos(self.list("v1", "Node"), pods)

    def get(self, api_version: str, kind: str, name: str, namespace: str | None = None) -> dict[str, Json] | None:
        path = self._path(api_version, kind, namespace, name)
        if path is None:
            return None
        try:
            return self._http.json("GET", path, about=_about(kind, name, namespace))
        except NotFound:
            return None

    def list(
        self, api_version: str, kind: str, namespace: str | None = None, *, labels: str = "", fields: str = ""
    ) -> tuple[dict[str, Json], ...]:
        path = self._path(api_version, kind, namespace, None)
        if path is None:
            return ()
        query = {"limit": str(PAGE)}
        if labels:
            query["labelSelector"] = labels
        if fields:
            query["fieldSelector"] = fields
        items = self._pages(path, query, f"list of {kind}")
        # items of built-in kinds come without these two
        return tuple({"apiVersion": api_version, "kind": kind, **item} for item in items)

    def _pages(self, path: str, query: dict[str, str], about: str) -> builtins.list[dict[str, Json]]:
        items: builtins.list[dict[str, Json]] = []
        token = ""
        restarted = False
        while True:
            try:
                page = self._http.json(
                    "GET", path, query={**query, **({"continue": token} if token else {})}, about=about
                )
            except NotFound:  # the kind went away since discovery
                return []
            except Refused as error:
                if error.status != 410 or not token or restarted:
                    raise
                items, token, restarted = [], "", True  # the continue token is too old: begin again, once
                continue
            items += page.get("items") or []
            token = page.get("metadata", {}).get("continue") or ""
            if not token:
                return items

    def differs(self, obj: Mapping[str, Json]) -> tuple[str, ...]:
        meta = obj["metadata"]
        live = self.get(str(obj["apiVersion"]), str(obj["kind"]), meta["name"], meta.get("namespace"))
        return ("",) if live is None else compare(obj, live, manager=FIELD_MANAGER)

    def logs(self, namespace: str, pod: str, *, container: str | None = None, tail: int = 50) -> str:
        """The last lines a container wrote; of the pod's default (else first) container if none is named."""
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}/log"
        query = {"tailLines": str(tail)}
        about = f"log of pod {namespace}/{pod}"
        if container is None:
            container = self._default_container(namespace, pod)
        query["container"] = container
        return self._http.request("GET", path, query=query, about=about).decode(errors="replace")

    def _default_container(self, namespace: str, pod: str) -> str:
        found = self.get("v1", "Pod", pod, namespace)
        if found is None:
            raise NotFound(f"there is no pod {pod}", status=404, where=namespace)
        named = (found["metadata"].get("annotations") or {}).get("kubectl.kubernetes.io/default-container")
        return str(named or found["spec"]["containers"][0]["name"])

    # -- changing --------------------------------------------------------------------------------------------------
    def apply(self, obj: Mapping[str, Json], *, dry_run: bool = False, force: bool = True) -> dict[str, Json]:
        meta, kind = obj.get("metadata") or {}, str(obj.get("kind", ""))
        about = _about(kind, meta.get("name", ""), meta.get("namespace"))
        path = self._path(str(obj.get("apiVersion", "")), kind, meta.get("namespace"), meta.get("name"))
        if path is None:
            raise NotFound(
                f"the server knows no kind {kind} in {obj.get('apiVersion')}",
                status=404,
                where=about,
                next_move="install what defines it first (its CRD)",
            )
        query = {"fieldManager": FIELD_MANAGER, "force": str(force).lower()}
        if dry_run:
            query["dryRun"] = "All"
        body = {**obj, "metadata": {k: v for k, v in meta.items() if k != "managedFields"}}
        answer = self._http.json("PATCH", path, query=query, body=body, content_type=_APPLY, about=about)
        if not dry_run:
            log.info("applied %s (resource version %s)", about, answer.get("metadata", {}).get("resourceVersion"))
        return answer

    def patch(
        self, api_version: str, kind: str, name: str, namespace: str | None, body: Mapping[str, Json]
    ) -> dict[str, Json]:
        about = _about(kind, name, namespace)
        path = self._path(api_version, kind, namespace, name)
        if path is None:
            raise NotFound(f"the server knows no kind {kind} in {api_version}", status=404, where=about)
        query = {"fieldManager": FIELD_MANAGER}
        answer = self._http.json("PATCH", path, query=query, body=body, content_type=_MERGE, about=about)
        log.info("patched %s: %s", about, ", ".join(sorted(body)))
        return answer

    def delete(
        self, api_version: str, kind: str, name: str, namespace: str | None = None, *, grace_s: int | None = None
    ) -> bool:
        path = self._path(api_version, kind, namespace, name)
        if path is None:
            return False
        body: dict[str, Json] = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if grace_s is not None:
            body["gracePeriodSeconds"] = grace_s
        about = _about(kind, name, namespace)
        try:
            self._http.json("DELETE", path, body=body, about=about)
        except NotFound:
            return False
        log.info("deleted %s", about)
        return True

    def evict(self, namespace: str, pod: str) -> bool:
        """Ask for an eviction; True also when the pod is gone already, False where a disruption budget says not now."""
        body = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": pod, "namespace": namespace},
        }
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction"
        try:
            self._http.json("POST", path, body=body, about=f"eviction of pod {namespace}/{pod}")
        except NotFound:
            return True
        except TooManyRequests:
            return False
        log.info("evicted pod %s/%s", namespace, pod)
        return True

    def exec(
        self,
        namespace: str,
        pod: str,
        argv: Sequence[str],
        *,
        container: str | None = None,
        stdin: Iterator[bytes] | None = None,
        stdout: Callable[[bytes], None] | None = None,
        timeout_s: float = 60.0,
    ) -> ExecResult:
        """Run a command in a pod; see _kube_exec.run for what is raised. Servers without the v5 channel protocol can't
        be told that stdin ended, so send streams that end themselves (tar does)."""
        url = urllib.parse.urlsplit(self._http.host)
        path = f"{url.path.rstrip('/')}/api/v1/namespaces/{namespace}/pods/{pod}/exec"
        query = urllib.parse.urlencode(_kube_exec.query(argv, container, stdin=stdin is not None))
        scheme = {"http": "ws", "https": "wss"}[url.scheme]
        target = _kube_exec.Target(
            url=urllib.parse.urlunsplit((scheme, url.netloc, path, query, "")),
            headers=self._http.auth_headers(),
            tls=self._http.tls_options(),
            where=f"pod {namespace}/{pod}",
        )
        log.info("exec in %s: %s", target.where, argv[0] if argv else "")
        return _kube_exec.run(
            target,
            stdin=stdin,
            stdout=stdout,
            timeout_s=timeout_s,
            translate=lambda status, body: refusal(status, body, target.where),
        )

    # -- transport -------------------------------------------------------------------------------------------------
    def _path(self, api_version: str, kind: str, namespace: str | None, name: str | None) -> str | None:
        """The path of an object or of a list; None when the server doesn't know the kind."""
        resource = self._resource(api_version, kind)
        if resource is None:
            return None
        base = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
        parts = [base]
        if resource.namespaced and (namespace or name):
            parts += ["namespaces", urllib.parse.quote(namespace or "default", safe="")]
        parts.append(resource.plural)
        if name:
            parts.append(urllib.parse.quote(name, safe=""))
        return "/".join(parts)

    def _resource(self, api_version: str, kind: str) -> _Resource | None:
        found = self._kinds.get(api_version, {}).get(kind)
        if found is None:
            self._kinds[api_version] = self._discover(api_version)
            found = self._kinds[api_version].get(kind)
        return found

    def _discover(self, api_version: str) -> dict[str, _Resource]:
        base = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
        try:
            answer = self._http.json("GET", base, about=f"discovery of {api_version}")
        except NotFound:
            return {}
        return {
            item["kind"]: _Resource(item["name"], bool(item["namespaced"]))
            for item in answer.get("resources") or ()
            if "/" not in item["name"]
        }


def _about(kind: str, name: str, namespace: str | None) -> str:
    return f"{kind} {namespace}/{name}" if namespace else f"{kind} {name}"
