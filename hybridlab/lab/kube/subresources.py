"""Subresources that are more than a part of their object: scale, binding, eviction, token, finalize; and reviews."""

from __future__ import annotations

import time
from typing import Any

from aiohttp import web

from hybridlab.lab.kube import tables
from hybridlab.lab.kube.access import Tokens, allowed
from hybridlab.lab.kube.admission import Admission
from hybridlab.lab.kube.decode import Decoder, parse_body
from hybridlab.lab.kube.errors import ApiError, Cause, bad_request, conflict, invalid
from hybridlab.lab.kube.requests import Requests, patched_object
from hybridlab.lab.kube.schema import built_in_shape, type_of
from hybridlab.lab.kube.selectors import matches
from hybridlab.lab.kube.store import Obj, Store, now
from hybridlab.lab.kube.wire import Target, User, dry_run


async def body_of(request: web.Request, api_version: str, kind: str) -> Obj:
    """The decoded body of a request whose kind isn't that of the resource in its path."""
    value, _ = parse_body(await request.read(), request.headers.get("Content-Type", "application/json"))
    if not isinstance(value, dict):
        raise bad_request("couldn't get version/kind; json parse error")
    return _checked(value, api_version, kind)


def _checked(value: Any, api_version: str, kind: str) -> Obj:
    decoded: Obj = Decoder(api_version, kind).decode(value, type_of(api_version, kind) or "object")
    return decoded


class Subresources:
    def __init__(self, store: Store, admission: Admission, requests: Requests, tokens: Tokens) -> None:
        self._store = store
        self._admission = admission
        self._requests = requests
        self._tokens = tokens

    def _object(self, target: Target) -> Obj:
        resource = target.resource
        return self._store.must_get(resource.plural, target.name or "", target.namespace, resource.group)

    # -- scale ------------------------------------------------------------------------------------------------------
    def _scale_of(self, obj: Obj) -> Obj:
        meta, spec, status = obj["metadata"], obj.get("spec") or {}, obj.get("status") or {}
        keys = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
        scale: Obj = {
            "kind": "Scale",
            "apiVersion": "autoscaling/v1",
            "metadata": {key: meta[key] for key in keys if key in meta},
            "spec": {"replicas": spec.get("replicas", 0)},
            "status": {"replicas": status.get("replicas", 0)},
        }
        selector = tables.selector_text(spec.get("selector"))
        if selector != "<none>":
            scale["status"]["selector"] = selector
        return scale

    async def scale(self, request: web.Request, target: Target) -> web.StreamResponse:
        """GET, PUT and PATCH of …/scale."""
        old = self._object(target)
        scale = self._scale_of(old)
        if request.method == "GET":
            return web.json_response(scale)
        if request.method == "PUT":
            wanted = await body_of(request, "autoscaling/v1", "Scale")
        else:
            kind = request.headers.get("Content-Type", "").split(";")[0]
            value, _ = parse_body(await request.read(), kind)
            wanted = _checked(patched_object(scale, value, kind, built_in_shape("V1Scale")), "autoscaling/v1", "Scale")
        asked = (wanted.get("metadata") or {}).get("resourceVersion")
        if asked not in (None, "", old["metadata"]["resourceVersion"]):
            why = "the object has been modified; please apply your changes to the latest version and try again"
            raise conflict(target.resource.plural, target.resource.group, target.name or "", why)
        replicas = (wanted.get("spec") or {}).get("replicas", 0)
        if replicas < 0:
            cause = Cause("spec.replicas", f"Invalid value: {replicas}: must be greater than or equal to 0")
            raise invalid("Scale", "autoscaling", target.name or "", [cause])
        old.setdefault("spec", {})["replicas"] = replicas
        return web.json_response(self._scale_of(self._store.update(old, dry_run=dry_run(request.query))))

    # -- pods -------------------------------------------------------------------------------------------------------
    async def binding(self, request: web.Request, target: Target) -> web.StreamResponse:
        """Put a pod on a node."""
        body = await body_of(request, "v1", "Binding")
        node = (body.get("target") or {}).get("name") or ""
        pod = self._object(target)
        if pod["spec"].get("nodeName"):
            why = f'pod {target.name} is already assigned to node "{pod["spec"]["nodeName"]}"'
            raise conflict("pods/binding", "", target.name or "", why)
        pod["spec"]["nodeName"] = node
        self._store.update(pod)
        return web.json_response(_success(), status=201)

    async def evict(self, request: web.Request, target: Target) -> web.StreamResponse:
        """Delete a pod if its disruption budgets allow; ApiError 429 where they don't."""
        body = await body_of(request, "policy/v1", "Eviction")
        pod = self._object(target)
        options = body.get("deleteOptions") or {}
        finished = (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed", "Pending")
        budgets = [] if finished or pod["metadata"].get("deletionTimestamp") else self._budgets(pod)
        if len(budgets) > 1:
            message = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."
            raise ApiError(500, "InternalError", message)
        for budget in budgets:
            self._spend(budget, pod)
        self._store.delete(
            "pods",
            target.name or "",
            target.namespace,
            uid=(options.get("preconditions") or {}).get("uid"),
            grace_s=options.get("gracePeriodSeconds"),
            dry_run=dry_run(request.query) or options.get("dryRun") == ["All"],
        )
        return web.json_response(_success(), status=201)

    def _budgets(self, pod: Obj) -> list[Obj]:
        labels = pod["metadata"].get("labels") or {}
        rows = self._store.list("poddisruptionbudgets", pod["metadata"]["namespace"], "policy")
        return [row for row in rows if matches((row.get("spec") or {}).get("selector"), labels)]

    def _spend(self, budget: Obj, pod: Obj) -> None:
        status = budget.get("status") or {}
        name = budget["metadata"]["name"]
        if status.get("disruptionsAllowed", 0) <= 0:
            needed, have = status.get("desiredHealthy", 0), status.get("currentHealthy", 0)
            why = f"The disruption budget {name} needs {needed} healthy pods and has {have} currently"
            message = "Cannot evict pod as it would violate the pod's disruption budget."
            details = {"causes": [{"reason": "DisruptionBudget", "message": why}]}
            raise ApiError(429, "TooManyRequests", message, details)
        status["disruptionsAllowed"] -= 1
        status.setdefault("disruptedPods", {})[pod["metadata"]["name"]] = now()
        budget["status"] = status
        self._store.update(budget, subresource="status")

    # -- the rest ---------------------------------------------------------------------------------------------------
    async def token(self, request: web.Request, target: Target) -> web.StreamResponse:
        """Issue a token for a service account."""
        body = await body_of(request, "authentication.k8s.io/v1", "TokenRequest")
        spec = body.get("spec") or {}
        account = self._object(target)
        seconds = spec.get("expirationSeconds") or 3600
        if seconds < 600:
            detail = f"Invalid value: {seconds}: may not specify a duration less than 10 minutes"
            cause = Cause("spec.expirationSeconds", detail)
            raise invalid("TokenRequest", "authentication.k8s.io", "", [cause])
        audiences = spec.get("audiences") or ["https://kubernetes.default.svc.cluster.local", "k3s"]
        token, expires = self._tokens.issue(account, seconds, audiences)
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(expires))
        meta = {"name": target.name, "namespace": target.namespace, "creationTimestamp": now()}
        answer = {
            "kind": "TokenRequest",
            "apiVersion": "authentication.k8s.io/v1",
            "metadata": meta,
            "spec": {**spec, "audiences": audiences, "expirationSeconds": seconds},
            "status": {"token": token, "expirationTimestamp": when},
        }
        return web.json_response(answer, status=201)

    async def finalize(self, request: web.Request, target: Target) -> web.StreamResponse:
        """Set a namespace's spec.finalizers."""
        body = await body_of(request, "v1", "Namespace")
        body.update({"apiVersion": "v1", "kind": "Namespace"})
        body.setdefault("spec", {})
        return web.json_response(self._store.update(body))

    async def review(self, request: web.Request, kind: str, user: User) -> web.StreamResponse:
        """SelfSubjectAccessReview and its like: questions about the asker."""
        group = "authentication.k8s.io" if kind in ("SelfSubjectReview", "TokenReview") else "authorization.k8s.io"
        body = await body_of(request, f"{group}/v1", kind)
        body.update({"kind": kind, "apiVersion": f"{group}/v1"})
        body.setdefault("metadata", {})
        spec = body.get("spec") or {}
        if kind == "SelfSubjectReview":
            body["status"] = {"userInfo": _info(user)}
        elif kind == "TokenReview":
            found = self._tokens.user(spec.get("token") or "")
            body["status"] = {"authenticated": True, "user": _info(found)} if found else {"authenticated": False}
        elif kind == "SelfSubjectRulesReview":
            rules = [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}] if user.is_admin else []
            urls = [{"verbs": ["*"], "nonResourceURLs": ["*"]}] if user.is_admin else []
            body["status"] = {"resourceRules": rules, "nonResourceRules": urls, "incomplete": not user.is_admin}
        else:
            subject = user
            if kind == "SubjectAccessReview":
                subject = User(spec.get("user") or "", tuple(spec.get("groups") or ()))
            body["status"] = {"allowed": self._may(subject, spec)}
        return web.json_response(body, status=201)

    def _may(self, user: User, spec: Obj) -> bool:
        asked = spec.get("resourceAttributes")
        if not asked:
            return user.is_admin
        resource = asked.get("resource", "*") + (f"/{asked['subresource']}" if asked.get("subresource") else "")
        verb, group = asked.get("verb", "*"), asked.get("group", "")
        return allowed(self._store, user, verb, group, resource, asked.get("namespace"), asked.get("name", ""))


def _info(user: User) -> Obj:
    return {"username": user.name, "groups": list(user.groups), **({"uid": user.uid} if user.uid else {})}


def _success() -> Obj:
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
