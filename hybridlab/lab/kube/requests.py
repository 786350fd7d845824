"""Create, read, update, patch and delete, as HTTP requests ask for it."""

from __future__ import annotations

import base64
import json
from typing import Any

from aiohttp import web

from hybridlab.lab.kube import apply, defaults, patches
from hybridlab.lab.kube.admission import Admission, strictness
from hybridlab.lab.kube.crd import printer_columns, selectable_fields
from hybridlab.lab.kube.crd_schema import unknown_rules
from hybridlab.lab.kube.decode import parse_body
from hybridlab.lab.kube.errors import ApiError, Cause, bad_request, conflict, invalid, not_found
from hybridlab.lab.kube.schema import Shape
from hybridlab.lab.kube.store import CRD_KEY, Obj, Objs, Store, clone
from hybridlab.lab.kube.tables import table
from hybridlab.lab.kube.watching import Watch, stream
from hybridlab.lab.kube.wire import (
    Target,
    at_version,
    dry_run,
    flag,
    manager_of,
    metadata_only,
    number,
    wanted_form,
    warnings_header,
)

# Deleting one of these answers with the object, not with a Status (rest.Store.ReturnDeletedObject).
_RETURNS_OBJECT = {
    "pods",
    "services",
    "serviceaccounts",
    "persistentvolumeclaims",
    "persistentvolumes",
    "podtemplates",
    "resourcequotas",
    "storageclasses",
    "csidrivers",
    "csinodes",
    "volumeattachments",
}
Texts = list[str]

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"


class Requests:
    """Answers requests on objects; one per API server."""

    def __init__(self, store: Store, admission: Admission) -> None:
        self._store = store
        self._admission = admission
        self.watches: set[Watch] = set()

    # -- answering --------------------------------------------------------------------------------------------------
    def _definition(self, target: Target) -> Obj | None:
        if not target.resource.definition:
            return None
        return self._store.get(CRD_KEY[1], target.resource.definition, group=CRD_KEY[0])

    def _columns(self, target: Target) -> Objs:
        return printer_columns(self._definition(target), target.version)

    def answer(
        self, request: web.Request, target: Target, obj: Obj, *, status: int = 200, warnings: Texts | None = None
    ) -> web.Response:
        """One object, in the form the client accepts."""
        form = wanted_form(request)
        body = at_version(obj, target)
        if form == "Table":
            rv = obj["metadata"].get("resourceVersion", "")
            include = request.query.get("includeObject", "")
            body = table(target.resource, [body], self._columns(target), include, rv)
        elif form == "PartialObjectMetadata":
            body = metadata_only(obj)
        return web.json_response(body, status=status, headers=warnings_header(warnings or []))

    # -- reading ----------------------------------------------------------------------------------------------------
    async def get(self, request: web.Request, target: Target) -> web.StreamResponse:
        resource = target.resource
        if target.name is None:
            return await self.list(request, target)
        if flag(request.query, "watch"):
            return await self.watch(request, target)
        return self.answer(
            request, target, self._store.must_get(resource.plural, target.name, target.namespace, resource.group)
        )

    async def list(self, request: web.Request, target: Target) -> web.StreamResponse:
        if flag(request.query, "watch"):
            return await self.watch(request, target)
        resource, query = target.resource, request.query
        rows = self._selected(request, target)
        rv, start = str(self._store.rv), ("", "")
        if query.get("continue"):
            rv, start = _continuation(query["continue"])
            rows = [row for row in rows if _place(row) > start]
        limit = number(query, "limit")
        meta: Obj = {"resourceVersion": rv}
        if limit and len(rows) > limit:
            token = json.dumps({"v": "meta.k8s.io/v1", "rv": rv, "start": list(_place(rows[limit - 1]))})
            meta["continue"] = base64.urlsafe_b64encode(token.encode()).decode()
            if not query.get("labelSelector") and not query.get("fieldSelector"):
                meta["remainingItemCount"] = len(rows) - limit
            rows = rows[:limit]
        rows = [at_version(row, target) for row in rows]
        form = wanted_form(request)
        if form == "Table":
            body = table(resource, rows, self._columns(target), query.get("includeObject", ""), rv)
            body["metadata"] = meta
        elif form.startswith("PartialObjectMetadata"):
            items = [metadata_only(row) for row in rows]
            kind = "PartialObjectMetadataList"
            body = {"kind": kind, "apiVersion": "meta.k8s.io/v1", "metadata": meta, "items": items}
        else:
            items = rows if resource.definition else [_bare(row) for row in rows]
            body = {"kind": self._list_kind(target), "apiVersion": target.api_version, "metadata": meta, "items": items}
        return web.json_response(body)

    def _list_kind(self, target: Target) -> str:
        definition = self._definition(target)
        kind: str = target.resource.kind + "List"
        return ((definition or {}).get("spec") or {}).get("names", {}).get("listKind") or kind

    def _selectable(self, target: Target) -> tuple[str, ...]:
        return selectable_fields(self._definition(target), target.version)

    def _selected(self, request: web.Request, target: Target) -> Objs:
        resource, query = target.resource, request.query
        return self._store.peek(
            resource.plural,
            target.namespace,
            resource.group,
            labels=query.get("labelSelector"),
            fields=query.get("fieldSelector"),
            selectable=self._selectable(target),
        )

    async def watch(self, request: web.Request, target: Target) -> web.StreamResponse:
        """Stream changes; Tables carry their columns in the first event only."""
        resource = target.resource
        form, columns = wanted_form(request), self._columns(target)
        include = request.query.get("includeObject", "")
        sent = False

        def render(obj: Obj) -> Obj:
            nonlocal sent
            if form == "Table" and obj.get("metadata", {}).get("uid"):
                body = table(resource, [at_version(obj, target)], columns, include, obj["metadata"]["resourceVersion"])
                if sent:
                    body["columnDefinitions"] = None
                sent = True
                return body
            if form.startswith("PartialObjectMetadata"):
                return metadata_only(obj)
            return at_version(obj, target)

        watch = Watch(self._store, target, request, self._selectable(target))
        self.watches.add(watch)
        try:
            return await stream(request, watch, render)
        finally:
            self.watches.discard(watch)

    # -- writing ----------------------------------------------------------------------------------------------------
    async def _decoded(self, request: web.Request, target: Target) -> tuple[Obj, Texts]:
        """The object of a POST or PUT, at its stored version, and warnings."""
        value, duplicates = parse_body(await request.read(), request.headers.get("Content-Type", "application/json"))
        obj, unknown = self._admission.decode(value, target.resource, target.version)
        warnings = strictness(request.query.get("fieldValidation", ""), unknown, duplicates)
        if target.resource.kind == "CustomResourceDefinition" and not target.resource.definition:
            rules = unknown_rules((obj.get("spec") or {}).get("versions"))
            warnings += [f"the lab does not evaluate the validation rule {rule}" for rule in rules]
        return self._placed(obj, target), warnings

    def _placed(self, obj: Obj, target: Target) -> Obj:
        """Fill in what the path says, and refuse what contradicts it."""
        resource = target.resource
        meta = obj.setdefault("metadata", {})
        obj["apiVersion"] = resource.api_version
        if target.name is not None:
            name = meta.setdefault("name", target.name)
            if name != target.name:
                message = f"the name of the object ({name}) does not match the name on the URL ({target.name})"
                raise bad_request(message)
        if not resource.namespaced or target.namespace is None:
            return obj
        if meta.setdefault("namespace", target.namespace) != target.namespace:
            raise bad_request("the namespace of the provided object does not match the namespace sent on the request")
        return obj

    def _track(self, request: web.Request, target: Target, old: Obj | None, obj: Obj) -> None:
        resource = target.resource
        apply.track(
            old,
            obj,
            manager_of(request),
            self._admission.shape(resource),
            target.subresource,
            has_status="status" in resource.subresources,
        )

    async def create(self, request: web.Request, target: Target) -> web.StreamResponse:
        resource = target.resource
        obj, warnings = await self._decoded(request, target)
        if resource.namespaced and target.namespace is None:
            raise bad_request("an empty namespace may not be set during creation")
        return self._created(request, target, obj, warnings)

    def _created(self, request: web.Request, target: Target, obj: Obj, warnings: Texts) -> web.Response:
        resource = target.resource
        if "status" in resource.subresources:
            obj.pop("status", None)
        if obj["metadata"].get("resourceVersion"):
            raise bad_request("resourceVersion should not be set on objects to be created")
        if not resource.definition:
            defaults.fill(resource.group, resource.plural, obj, creating=True)
        self._track(request, target, None, obj)
        created = self._store.create(obj, dry_run=dry_run(request.query))
        return self.answer(request, target, created, status=201, warnings=warnings)

    async def replace(self, request: web.Request, target: Target) -> web.StreamResponse:
        resource = target.resource
        obj, warnings = await self._decoded(request, target)
        old = self._store.get(resource.plural, target.name or "", target.namespace, resource.group)
        if old is None:
            raise not_found(resource.plural, resource.group, target.name or "")
        if resource.definition and not obj["metadata"].get("resourceVersion"):
            cause = Cause("metadata.resourceVersion", "Invalid value: 0x0: must be specified for an update")
            raise invalid(resource.kind, resource.group, target.name or "", [cause])
        return self._updated(request, target, old, obj, warnings)

    def _updated(self, request: web.Request, target: Target, old: Obj, obj: Obj, warnings: Texts) -> web.Response:
        resource = target.resource
        subresource = target.subresource or None
        if subresource == "status" and resource.definition:
            self._admission.check_status(resource, obj)
        if resource.kind == "Namespace" and subresource is None:
            obj["spec"] = clone(old.get("spec") or {})  # finalizers change through their subresource only
        if not resource.definition and subresource != "status":
            defaults.fill(resource.group, resource.plural, obj, creating=False)
        if obj["metadata"].get("resourceVersion") in (None, "", old["metadata"]["resourceVersion"]):
            self._track(request, target, old, obj)
        updated = self._store.update(obj, subresource=subresource, dry_run=dry_run(request.query))
        return self.answer(request, target, updated, warnings=warnings)

    async def patch(self, request: web.Request, target: Target) -> web.StreamResponse:
        resource = target.resource
        kind = request.headers.get("Content-Type", "").split(";")[0].strip()
        if kind not in (JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH, APPLY_PATCH):
            accepted = ", ".join((JSON_PATCH, MERGE_PATCH, APPLY_PATCH, STRATEGIC_PATCH))
            message = f"the body of the request was in an unknown format - accepted media types include: {accepted}"
            raise ApiError(415, "UnsupportedMediaType", message)
        if kind == STRATEGIC_PATCH and resource.definition:
            accepted = ", ".join((JSON_PATCH, MERGE_PATCH, APPLY_PATCH))
            message = f"the body of the request was in an unknown format - accepted media types include: {accepted}"
            raise ApiError(415, "UnsupportedMediaType", message)
        value, duplicates = parse_body(await request.read(), kind)
        if kind == APPLY_PATCH:
            return self._apply(request, target, value, duplicates)
        old = self._store.must_get(resource.plural, target.name or "", target.namespace, resource.group)
        patched = patched_object(at_version(old, target), value, kind, self._admission.shape(resource))
        if isinstance(patched, dict) and isinstance(patched.get("metadata"), dict):
            patched["metadata"].setdefault("name", target.name)
        obj, unknown = self._admission.decode(patched, resource, target.version)
        warnings = strictness(request.query.get("fieldValidation", ""), unknown, duplicates)
        return self._updated(request, target, old, self._placed(obj, target), warnings)

    def _apply(self, request: web.Request, target: Target, value: Any, duplicates: Texts) -> web.Response:
        """Server-side apply."""
        resource = target.resource
        manager = request.query.get("fieldManager")
        if not manager:
            why = "fieldManager: Required value: is required for apply patch"
            raise bad_request(f'PatchOptions.meta.k8s.io "" is invalid: {why}')
        if not isinstance(value, dict) or not value.get("apiVersion") or not value.get("kind"):
            raise bad_request("Object 'Kind' is missing in the applied configuration")
        config, unknown = self._admission.decode(value, resource, target.version)
        warnings = strictness(request.query.get("fieldValidation", ""), unknown, duplicates)
        config = self._placed(config, target)
        if config["metadata"].get("managedFields"):
            raise bad_request("metadata.managedFields must be nil")
        live = self._store.get(resource.plural, target.name or "", target.namespace, resource.group)
        if live is None and target.subresource:
            raise not_found(resource.plural, resource.group, target.name or "")
        if live is None and config["metadata"].get("resourceVersion"):
            raise conflict(resource.plural, resource.group, target.name or "", "the object does not exist")
        has_status = "status" in resource.subresources
        if has_status and not target.subresource:
            config.pop("status", None)
        merged = apply.server_side(
            live,
            config,
            manager,
            self._admission.shape(resource),
            force=flag(request.query, "force"),
            subresource=target.subresource,
            has_status=has_status,
        )
        if live is None:
            created = self._store.create(merged, dry_run=dry_run(request.query))
            return self.answer(request, target, created, status=201, warnings=warnings)
        if config["metadata"].get("resourceVersion"):
            merged["metadata"]["resourceVersion"] = config["metadata"]["resourceVersion"]
        updated = self._store.update(merged, subresource=target.subresource or None, dry_run=dry_run(request.query))
        return self.answer(request, target, updated, warnings=warnings)

    # -- deleting ---------------------------------------------------------------------------------------------------
    async def delete(self, request: web.Request, target: Target) -> web.StreamResponse:
        resource = target.resource
        options = await _delete_options(request)
        obj = self._delete_one(request, target, target.name or "", target.namespace, options)
        gone = self._store.get(resource.plural, target.name or "", target.namespace, resource.group) is None
        if resource.plural in _RETURNS_OBJECT or not (gone or dry_run(request.query)):
            return self.answer(request, target, obj)
        details = {"name": target.name, "kind": resource.plural, "uid": obj["metadata"]["uid"]}
        if resource.group:
            details["group"] = resource.group
        body = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}
        return web.json_response(body)

    def _delete_one(self, request: web.Request, target: Target, name: str, namespace: str | None, options: Obj) -> Obj:
        resource = target.resource
        default = "Orphan" if (resource.group, resource.plural) == ("batch", "jobs") else "Background"
        if options.get("orphanDependents") is not None:
            default = "Orphan" if options["orphanDependents"] else "Background"
        conditions = options.get("preconditions") or {}
        return self._store.delete(
            resource.plural,
            name,
            namespace,
            resource.group,
            propagation=options.get("propagationPolicy") or default,
            uid=conditions.get("uid"),
            resource_version=conditions.get("resourceVersion"),
            grace_s=options.get("gracePeriodSeconds"),
            dry_run=dry_run(request.query) or options.get("dryRun") == ["All"],
        )

    async def delete_collection(self, request: web.Request, target: Target) -> web.StreamResponse:
        options = await _delete_options(request)
        items = []
        for row in self._selected(request, target):
            meta = row["metadata"]
            items.append(self._delete_one(request, target, meta["name"], meta.get("namespace"), options))
        body = {
            "kind": self._list_kind(target),
            "apiVersion": target.api_version,
            "metadata": {"resourceVersion": str(self._store.rv)},
            "items": [_bare(at_version(item, target)) for item in items],
        }
        return web.json_response(body)


def patched_object(old: Obj, value: Any, kind: str, shape: Shape) -> Any:
    """The object after one of the three patch types."""
    if kind == JSON_PATCH:
        return patches.json_patch(old, value)
    if not isinstance(value, dict):
        raise bad_request("error decoding patch: json: cannot unmarshal into Go value of type map[string]interface {}")
    if kind == MERGE_PATCH:
        return patches.merge(old, value)
    return patches.strategic(clone(old), value, shape)


async def _delete_options(request: web.Request) -> Obj:
    """DeleteOptions from the body, or from the query where the body is empty."""
    raw = await request.read()
    options = parse_body(raw, request.headers.get("Content-Type", "application/json"))[0] if raw.strip() else {}
    if not isinstance(options, dict):
        raise bad_request("couldn't get version/kind; json parse error")
    query = request.query
    if "propagationPolicy" in query:
        options.setdefault("propagationPolicy", query["propagationPolicy"])
    seconds = number(query, "gracePeriodSeconds")
    if seconds is not None:
        options.setdefault("gracePeriodSeconds", seconds)
    policy = options.get("propagationPolicy")
    if policy not in (None, "Background", "Foreground", "Orphan"):
        text = f'propagationPolicy: Invalid value: "{policy}": must be one of Background, Foreground, Orphan'
        raise ApiError(422, "Invalid", f'DeleteOptions.meta.k8s.io "" is invalid: {text}')
    return options


def _place(obj: Obj) -> tuple[str, str]:
    return obj["metadata"].get("namespace") or "", obj["metadata"]["name"]


def _bare(obj: Obj) -> Obj:
    """Items of built-in lists carry no kind and apiVersion."""
    return {key: value for key, value in obj.items() if key not in ("kind", "apiVersion")}


def _continuation(token: str) -> tuple[str, tuple[str, str]]:
    try:
        found = json.loads(base64.urlsafe_b64decode(token.encode()))
        return str(found["rv"]), (str(found["start"][0]), str(found["start"][1]))
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise bad_request("continue key is not valid: encoding/json: invalid token") from error
