"""Who is asking (client certificate or service account token) and what RBAC lets them do."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Iterable
from typing import Any

from aiohttp import web

from hybridlab.lab.kube.errors import ApiError
from hybridlab.lab.kube.store import Obj, Store
from hybridlab.lab.kube.wire import Target, User, flag

RBAC = "rbac.authorization.k8s.io"
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


def unauthorized() -> ApiError:
    return ApiError(401, "Unauthorized", "Unauthorized")


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


class Tokens:
    """Service account tokens: JSON web tokens (HS256) signed with a secret of the cluster."""

    def __init__(self, store: Store, secret: str) -> None:
        self._store = store
        self._secret = secret.encode()

    def _signature(self, head: str) -> str:
        return _b64(hmac.new(self._secret, head.encode(), hashlib.sha256).digest())

    def issue(self, account: Obj, seconds: int, audiences: list[str]) -> tuple[str, float]:
        """(token, Unix time of its expiry) for a ServiceAccount."""
        meta = account["metadata"]
        expires = time.time() + seconds
        claims = {
            "aud": audiences,
            "exp": int(expires),
            "iat": int(time.time()),
            "iss": "https://kubernetes.default.svc.cluster.local",
            "sub": f"system:serviceaccount:{meta['namespace']}:{meta['name']}",
            "kubernetes.io": {
                "namespace": meta["namespace"],
                "serviceaccount": {"name": meta["name"], "uid": meta["uid"]},
            },
        }
        head = _b64(b'{"alg":"HS256","typ":"JWT"}') + "." + _b64(json.dumps(claims).encode())
        return f"{head}.{self._signature(head)}", expires

    def user(self, token: str) -> User | None:
        """Whose token this is; None where it is not ours, expired, or its account is gone."""
        head, _, signature = token.rpartition(".")
        if not head or not hmac.compare_digest(signature, self._signature(head)):
            return None
        claims = json.loads(_unb64(head.split(".")[1]))
        place = claims["kubernetes.io"]
        account = self._store.get("serviceaccounts", place["serviceaccount"]["name"], place["namespace"])
        if claims["exp"] < time.time() or account is None:
            return None
        if account["metadata"]["uid"] != place["serviceaccount"]["uid"]:
            return None
        groups = ("system:serviceaccounts", f"system:serviceaccounts:{place['namespace']}", "system:authenticated")
        return User(claims["sub"], groups, account["metadata"]["uid"])


def certificate_user(certificate: Any) -> User | None:
    """The user a verified client certificate names: CN is the name, O are the groups."""
    if not certificate:
        return None
    parts = [part for row in certificate.get("subject", ()) for part in row]
    name = next((value for key, value in parts if key == "commonName"), "")
    groups = tuple(value for key, value in parts if key == "organizationName")
    return User(name, (*groups, "system:authenticated")) if name else None


def user_of(request: web.Request, tokens: Tokens) -> User:
    """Who sends this request; ApiError 401 where nobody the cluster knows."""
    transport = request.transport
    user = certificate_user(transport.get_extra_info("peercert") if transport else None)
    if user:
        return user
    kind, _, token = request.headers.get("Authorization", "").partition(" ")
    found = tokens.user(token.strip()) if kind.lower() == "bearer" and token else None
    if found is None:
        raise unauthorized()
    return found


def verb_of(request: web.Request, target: Target) -> str:
    if request.method == "DELETE" and target.name is None:
        return "deletecollection"
    if request.method in ("GET", "HEAD"):
        if flag(request.query, "watch"):
            return "watch"
        return "get" if target.name else "list"
    return _VERBS.get(request.method, request.method.lower())


def _subject_fits(subject: Obj, user: User, namespace: str) -> bool:
    if subject.get("kind") == "Group":
        return subject.get("name") in user.groups
    if subject.get("kind") == "ServiceAccount":
        space = subject.get("namespace") or namespace
        return user.name == f"system:serviceaccount:{space}:{subject.get('name')}"
    return subject.get("name") == user.name


def _rule_fits(rule: Obj, verb: str, group: str, resource: str, name: str) -> bool:
    def has(key: str, value: str) -> bool:
        values = rule.get(key) or ()
        return "*" in values or value in values

    names = rule.get("resourceNames")
    if names and name not in names:
        return False
    return has("verbs", verb) and has("apiGroups", group) and has("resources", resource)


def _roles(store: Store, user: User, namespace: str | None) -> Iterable[Obj]:
    for binding in store.peek("clusterrolebindings", group=RBAC):
        if any(_subject_fits(s, user, "") for s in binding.get("subjects") or ()):
            role = store.get("clusterroles", binding["roleRef"]["name"], group=RBAC)
            if role:
                yield role
    for binding in store.peek("rolebindings", namespace, RBAC) if namespace else ():
        if any(_subject_fits(s, user, namespace or "") for s in binding.get("subjects") or ()):
            reference = binding["roleRef"]
            plural = "clusterroles" if reference["kind"] == "ClusterRole" else "roles"
            role = store.get(plural, reference["name"], namespace if plural == "roles" else None, RBAC)
            if role:
                yield role


def allowed(
    store: Store, user: User, verb: str, group: str, resource: str, namespace: str | None = None, name: str = ""
) -> bool:
    """Whether RBAC grants this; ``resource`` may be "pods/log"."""
    if user.is_admin:
        return True
    for role in _roles(store, user, namespace):
        if any(_rule_fits(rule, verb, group, resource, name) for rule in role.get("rules") or ()):
            return True
    return False


def authorize(store: Store, user: User, request: web.Request, target: Target) -> None:
    """ApiError 403, worded as the RBAC authorizer does, where this user may not."""
    resource = target.resource
    plural = resource.plural + (f"/{target.subresource}" if target.subresource else "")
    verb = verb_of(request, target)
    if allowed(store, user, verb, resource.group, plural, target.namespace, target.name or ""):
        return
    where = f' in the namespace "{target.namespace}"' if target.namespace else " at the cluster scope"
    message = (
        f'{resource.qualified} is forbidden: User "{user.name}" cannot {verb} resource "{plural}" '
        f'in API group "{resource.group}"{where}'
    )
    details = {"kind": resource.plural, **({"name": target.name} if target.name else {})}
    raise ApiError(403, "Forbidden", message, details)
