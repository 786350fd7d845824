"""What the server offers: /version, /api, /apis, resource lists, and the aggregated form that newer clients ask for."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable
from typing import Any

from hybridlab.lab.kube.resources import Resource
from hybridlab.lab.kube.store import Obj, Store

_SUB_VERBS = {
    "status": ("get", "patch", "update"),
    "scale": ("get", "patch", "update"),
    "log": ("get",),
    "exec": ("create", "get"),
    "finalize": ("update",),
}
_SUB_KINDS = {
    "scale": ("autoscaling", "v1", "Scale"),
    "eviction": ("policy", "v1", "Eviction"),
    "binding": ("", "v1", "Binding"),
    "token": ("authentication.k8s.io", "v1", "TokenRequest"),
    "exec": ("", "v1", "PodExecOptions"),
}
# Kinds that are asked, not stored.
REVIEWS = (
    Resource("authentication.k8s.io", "v1", "selfsubjectreviews", "SelfSubjectReview", False, verbs=("create",)),
    Resource("authentication.k8s.io", "v1", "tokenreviews", "TokenReview", False, verbs=("create",)),
    Resource(
        "authorization.k8s.io", "v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview", False, verbs=("create",)
    ),
    Resource(
        "authorization.k8s.io", "v1", "selfsubjectrulesreviews", "SelfSubjectRulesReview", False, verbs=("create",)
    ),
    Resource("authorization.k8s.io", "v1", "subjectaccessreviews", "SubjectAccessReview", False, verbs=("create",)),
)


def version_info(git_version: str) -> Obj:
    """/version, from a K3s version like v1.34.2+k3s1."""
    found = re.match(r"v?(\d+)\.(\d+)", git_version)
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    return {
        "major": found[1] if found else "1",
        "minor": found[2] if found else "0",
        "gitVersion": git_version,
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "",
        "goVersion": "",
        "compiler": "gc",
        "platform": f"linux/{machine}",
    }


def _all(store: Store) -> Iterable[Resource]:
    yield from store.resources.values()
    yield from REVIEWS


def groups(store: Store) -> dict[str, list[str]]:
    """Group → served versions, preferred first; without the core group."""
    found: dict[str, list[str]] = {}
    for resource in _all(store):
        if resource.group:
            versions = found.setdefault(resource.group, [])
            versions += [version for version in resource.served if version not in versions]
    return {group: sorted(versions, key=_rank) for group, versions in found.items()}


def _rank(version: str) -> tuple[int, int, int]:
    """v2, v1, v1beta2, v1beta1, v1alpha1 (kube-aware version order)."""
    found = re.match(r"^v(\d+)(?:(alpha|beta)(\d+))?$", version)
    if not found:
        return (9, 0, 0)
    level = {None: 0, "beta": 1, "alpha": 2}[found[2]]
    return (level, -int(found[1]), -int(found[3] or 0))


def _in(store: Store, group: str, version: str) -> list[Resource]:
    return [r for r in _all(store) if r.group == group and version in r.served]


# -- the older form ----------------------------------------------------------------------------------------------------
def core_versions(address: str) -> Obj:
    where = [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}]
    return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": where}


def _group(name: str, versions: list[str]) -> Obj:
    rows = [{"groupVersion": f"{name}/{version}", "version": version} for version in versions]
    return {"name": name, "versions": rows, "preferredVersion": rows[0]}


def group_list(store: Store) -> Obj:
    rows = [_group(name, versions) for name, versions in groups(store).items()]
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": rows}


def group(store: Store, name: str) -> Obj | None:
    versions = groups(store).get(name)
    return {"kind": "APIGroup", "apiVersion": "v1", **_group(name, versions)} if versions else None


def resource_list(store: Store, group_name: str, version: str) -> Obj | None:
    """APIResourceList of a group version, or None where there is none."""
    rows: list[Obj] = []
    for resource in _in(store, group_name, version):
        row: Obj = {
            "name": resource.plural,
            "singularName": resource.singular or resource.kind.lower(),
            "namespaced": resource.namespaced,
            "kind": resource.kind,
            "verbs": list(resource.verbs),
        }
        if resource.short_names:
            row["shortNames"] = list(resource.short_names)
        if resource.categories:
            row["categories"] = list(resource.categories)
        rows.append(row)
        for name in resource.subresources:
            kind = _SUB_KINDS.get(name)
            sub: Obj = {"name": f"{resource.plural}/{name}", "singularName": "", "namespaced": resource.namespaced}
            if kind and (kind[0], kind[1]) != (group_name, version):
                sub |= {"group": kind[0], "version": kind[1]}
            sub["kind"] = kind[2] if kind else resource.kind
            rows.append({**sub, "verbs": list(_SUB_VERBS.get(name, ("create",)))})
    if not rows:
        return None
    where = f"{group_name}/{version}" if group_name else version
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": where, "resources": rows}


# -- the aggregated form -----------------------------------------------------------------------------------------------
def _aggregated_resource(resource: Resource, version: str) -> Obj:
    row: Obj = {
        "resource": resource.plural,
        "responseKind": {"group": resource.group, "version": version, "kind": resource.kind},
        "scope": "Namespaced" if resource.namespaced else "Cluster",
        "singularResource": resource.singular or resource.kind.lower(),
        "verbs": list(resource.verbs),
    }
    if resource.short_names:
        row["shortNames"] = list(resource.short_names)
    if resource.categories:
        row["categories"] = list(resource.categories)
    subs = []
    for name in resource.subresources:
        kind = _SUB_KINDS.get(name, (resource.group, version, resource.kind))
        answer = {"group": kind[0], "version": kind[1], "kind": kind[2]}
        subs.append({"subresource": name, "responseKind": answer, "verbs": list(_SUB_VERBS.get(name, ("create",)))})
    if subs:
        row["subresources"] = subs
    return row


def aggregated(store: Store, *, core: bool) -> Obj:
    """APIGroupDiscoveryList (apidiscovery.k8s.io/v2): of /api when ``core``, else of /apis."""
    wanted = {"": ["v1"]} if core else groups(store)
    items = []
    for name, versions in wanted.items():
        rows: list[Any] = []
        for version in versions:
            known = [_aggregated_resource(r, version) for r in _in(store, name, version)]
            rows.append({"version": version, "freshness": "Current", "resources": known})
        meta: Obj = {"creationTimestamp": None, **({"name": name} if name else {})}
        items.append({"metadata": meta, "versions": rows})
    return {"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items}
