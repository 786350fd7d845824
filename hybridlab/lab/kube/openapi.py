"""OpenAPI documents, as far as kubectl apply, explain and diff and the clients' own validation read them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from hybridlab.lab.kube import discovery
from hybridlab.lab.kube.resources import Resource
from hybridlab.lab.kube.schema import Field, type_named, type_of
from hybridlab.lab.kube.store import CRD_KEY, Obj, Store

_SCALARS: Mapping[str, Obj] = {
    "string": {"type": "string", "default": ""},
    "integer": {"type": "integer", "format": "int32"},
    "number": {"type": "number", "format": "double"},
    "boolean": {"type": "boolean"},
    "date-time": {"type": "string", "format": "date-time"},
    "byte": {"type": "string", "format": "byte"},
    "quantity": {"oneOf": [{"type": "string"}, {"type": "number"}]},
    "int-or-string": {"oneOf": [{"type": "integer"}, {"type": "string"}], "format": "int-or-string"},
    "object": {"x-kubernetes-preserve-unknown-fields": True},
}
_PATCHES = (
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
)


def _published(type_name: str) -> str:
    """V1DeploymentSpec → io.k8s.api.v1.DeploymentSpec: kubectl explain shows the last part."""
    found = re.match(r"^(Core|Authentication|Storage|Rbac|Discovery)?(V\d+(?:alpha\d+|beta\d+)?)(.+)$", type_name)
    if not found:
        return f"io.k8s.api.{type_name}"
    part = f"{found[1].lower()}." if found[1] else ""
    return f"io.k8s.api.{part}{found[2].lower()}.{found[3]}"


def _ref(type_name: str) -> str:
    return f"#/components/schemas/{_published(type_name)}"


def _schema(field: Field, used: set[str]) -> Obj:
    kind = field.type
    if kind.startswith("[]"):
        body: Obj = {"type": "array", "items": _schema(Field(kind[2:]), used)}
    elif kind.startswith("{}"):
        body = {"type": "object", "additionalProperties": _schema(Field(kind[2:]), used)}
    elif kind in _SCALARS:
        body = dict(_SCALARS[kind])
    else:
        used.add(kind)
        body = {"allOf": [{"$ref": _ref(kind)}], "default": {}} if field.description else {"$ref": _ref(kind)}
    if field.description and "$ref" not in body:
        body["description"] = field.description
    if field.keys:
        body |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(field.keys)}
        body |= {"x-kubernetes-patch-merge-key": field.keys[0]}
        body["x-kubernetes-patch-strategy"] = "merge,retainKeys" if field.retain_keys else "merge"
    elif field.is_set:
        body |= {"x-kubernetes-list-type": "set", "x-kubernetes-patch-strategy": "merge"}
    elif field.retain_keys:
        body["x-kubernetes-patch-strategy"] = "retainKeys"
    elif kind.startswith("[]"):
        body["x-kubernetes-list-type"] = "atomic"
    if field.atomic:
        body["x-kubernetes-map-type"] = "atomic"
    return body


def _components(roots: Mapping[str, Resource | None], version: str) -> Obj:
    """All the types reachable from ``roots`` (type name → resource whose kind it is)."""
    done: Obj = {}
    todo = set(roots)
    while todo:
        name = todo.pop()
        described = type_named(name)
        if _published(name) in done or described is None:
            continue
        used: set[str] = set()
        body: Obj = {"type": "object", "description": described.description}
        body["properties"] = {key: _schema(field, used) for key, field in described.fields.items()}
        needed = [key for key, field in described.fields.items() if field.required]
        if needed:
            body["required"] = needed
        resource = roots.get(name)
        if resource:
            body["x-kubernetes-group-version-kind"] = [_gvk(resource, version)]
        done[_published(name)] = body
        todo |= used
    return done


def _gvk(resource: Resource, version: str) -> Obj:
    return {"group": resource.group, "kind": resource.kind, "version": version}


def _parameter(name: str, kind: str = "string") -> Obj:
    return {"in": "query", "name": name, "schema": {"type": kind, "uniqueItems": True}}


def _paths(resource: Resource, version: str, ref: str) -> Iterable[tuple[str, Obj]]:
    base = f"/apis/{resource.group}/{version}" if resource.group else f"/api/{version}"
    space = "/namespaces/{namespace}" if resource.namespaced else ""
    gvk = _gvk(resource, version)
    content = {kind: {"schema": {"$ref": ref}} for kind in ("application/json", "application/yaml")}
    body = {"content": {"*/*": {"schema": {"$ref": ref}}}}
    answer = {"200": {"description": "OK", "content": content}}
    write = [_parameter("dryRun"), _parameter("fieldManager"), _parameter("fieldValidation")]

    def operation(action: str, **more: Any) -> Obj:
        return {"x-kubernetes-action": action, "x-kubernetes-group-version-kind": gvk, "responses": answer, **more}

    yield (
        f"{base}{space}/{resource.plural}",
        {
            "get": operation("list", parameters=[_parameter("labelSelector"), _parameter("fieldSelector")]),
            "post": operation("post", parameters=write, requestBody=body),
        },
    )
    patch = {kind: {"schema": {"type": "object"}} for kind in _PATCHES if not (resource.definition and "strat" in kind)}
    yield (
        f"{base}{space}/{resource.plural}/{{name}}",
        {
            "get": operation("get"),
            "put": operation("put", parameters=write, requestBody=body),
            "patch": operation(
                "patch", parameters=[*write, _parameter("force", "boolean")], requestBody={"content": patch}
            ),
            "delete": operation("delete"),
        },
    )


def index(store: Store) -> Obj:
    """/openapi/v3: where each group version's document is; the hash changes with the definitions."""
    seed = json.dumps([d["metadata"]["resourceVersion"] for d in store.peek(CRD_KEY[1], group=CRD_KEY[0])])
    mark = hashlib.sha256(seed.encode()).hexdigest()[:32].upper()
    places = ["api/v1", *(f"apis/{g}/{v}" for g, versions in discovery.groups(store).items() for v in versions)]
    return {"paths": {place: {"serverRelativeURL": f"/openapi/v3/{place}?hash={mark}"} for place in places}}


def _custom_schema(store: Store, resource: Resource, version: str) -> Obj:
    definition = store.get(CRD_KEY[1], resource.definition, group=CRD_KEY[0]) or {"spec": {"versions": []}}
    row: Obj = next((v for v in definition["spec"]["versions"] if v["name"] == version), {})
    schema: Obj = (row.get("schema") or {}).get("openAPIV3Schema") or {"type": "object"}
    properties = dict(schema.get("properties") or {})
    properties["apiVersion"] = {"type": "string"}
    properties["kind"] = {"type": "string"}
    properties["metadata"] = {"allOf": [{"$ref": _ref("V1ObjectMeta")}], "description": "Standard object's metadata."}
    gvk = [_gvk(resource, version)]
    return {**schema, "type": "object", "properties": properties, "x-kubernetes-group-version-kind": gvk}


def document(store: Store, group: str, version: str) -> Obj | None:
    """The OpenAPI v3 document of a group version, or None where there is none."""
    resources = [r for r in store.resources.values() if r.group == group and version in r.served]
    if not resources and not any(r.group == group for r in discovery.REVIEWS):
        return None
    roots: dict[str, Resource | None] = {"V1ObjectMeta": None}
    schemas: Obj = {}
    paths: Obj = {}
    for resource in resources:
        api_version = f"{group}/{version}" if group else version
        if resource.definition:
            name = ".".join([*reversed(group.split(".")), version, resource.kind])
            schemas[name] = _custom_schema(store, resource, version)
            ref = f"#/components/schemas/{name}"
        else:
            type_name = type_of(api_version, resource.kind) or ""
            roots[type_name] = resource
            ref = _ref(type_name)
        paths |= dict(_paths(resource, version, ref))
    schemas |= _components(roots, version)
    info = {"title": "Kubernetes", "version": "unversioned"}
    return {"openapi": "3.0.0", "info": info, "paths": paths, "components": {"schemas": schemas}}


def swagger(store: Store, version: str) -> Obj:
    """/openapi/v2 as JSON: the definitions of all built-in kinds."""
    roots: dict[str, Resource | None] = {}
    for resource in store.resources.values():
        type_name = type_of(resource.api_version, resource.kind)
        if type_name and not resource.definition:
            roots[type_name] = resource
    text = json.dumps(_components(roots, "v1")).replace("#/components/schemas/", "#/definitions/")
    info = {"title": "Kubernetes", "version": version}
    return {"swagger": "2.0", "info": info, "paths": {}, "definitions": json.loads(text)}
