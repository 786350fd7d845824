"""The objects of the cluster: kept in memory, written through to SQLite so that uids and versions outlive the lab.

Everything is synchronous and belongs to one event loop. What comes out is always a copy, so a caller may change it and
hand it back. Objects go in with ``apiVersion`` and ``kind``. The controllers own what happens next: removing pods that
have a deletionTimestamp (``delete(..., force=True)``), emptying a namespace and taking "kubernetes" out of its
spec.finalizers by ``update``, collecting what lost its owner, and taking out the finalizers foregroundDeletion and
orphan.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sqlite3
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from hybridlab.lab.kube import crd
from hybridlab.lab.kube.errors import ApiError, already_exists, bad_request, conflict, forbidden, not_found
from hybridlab.lab.kube.resources import BUILT_IN, Resource
from hybridlab.lab.kube.selectors import field_test, label_test

__all__ = ["ApiError", "Change", "Obj", "Resource", "Store", "clone", "now"]

Obj = dict[str, Any]  # raw JSON
Objs = list[Obj]
Key = tuple[str, str]  # group, plural
Name = tuple[str, str]  # namespace ("" where cluster-scoped), name
T = TypeVar("T")
Admit = Callable[[Resource, Obj, Obj | None], None]

_SUFFIX = "bcdfghjklmnpqrstvwxz2456789"  # apimachinery's: no vowels, nothing easily misread
HISTORY = 5000  # changes a watch can go back
CRD_KEY = ("apiextensions.k8s.io", "customresourcedefinitions")


def now() -> str:
    """The time as Kubernetes writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _copy(value: Any) -> Any:
    if type(value) is dict:
        return {key: _copy(item) for key, item in value.items()}
    if type(value) is list:
        return [_copy(item) for item in value]
    return value


def clone(value: T) -> T:
    """A deep copy of JSON data (several times faster than copy.deepcopy)."""
    copied: T = _copy(value)
    return copied


@dataclass(frozen=True)
class Change:
    """One event of the history: ``obj`` after it (before it, for DELETED, with the deletion's resourceVersion)."""

    rv: int
    type: str  # ADDED, MODIFIED, DELETED
    resource: Resource
    obj: Obj
    old: Obj | None


class Store:
    """All objects of one cluster; ``path`` is its SQLite file (None: memory only).

    ``admission`` functions see each object before it is stored, with the stored one (None at creation): they may fill
    in defaults in place, and raise ApiError to refuse. They see writes of controllers too.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.resources: dict[Key, Resource] = {(r.group, r.plural): r for r in BUILT_IN}
        self.admission: list[Admit] = []
        self.listeners: set[Callable[[Change], None]] = set()
        self.history: deque[Change] = deque(maxlen=HISTORY)
        self.rv = 1
        self._objects: dict[Key, dict[Name, Obj]] = {}
        self._queues: set[asyncio.Queue[tuple[str, Resource, Obj]]] = set()
        self._db = sqlite3.connect(path or ":memory:", isolation_level=None)
        self._open()
        self.oldest_rv = self.rv  # a watch from before this is 410 Gone

    def _open(self) -> None:
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=OFF")  # safe against the death of the process, which is what happens here
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS objects (grp TEXT, plural TEXT, ns TEXT, name TEXT, body TEXT, "
            "PRIMARY KEY (grp, plural, ns, name))"
        )
        self._db.execute("CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value INTEGER)")
        for group, plural, namespace, name, body in self._db.execute("SELECT * FROM objects"):
            self._objects.setdefault((group, plural), {})[(namespace, name)] = json.loads(body)
        for (value,) in self._db.execute("SELECT value FROM meta WHERE key = 'rv'"):
            self.rv = value
        for definition in self._objects.get(CRD_KEY, {}).values():
            self._learn(definition)

    def close(self) -> None:
        self._db.close()

    # -- what kinds there are ---------------------------------------------------------------------------------------
    def resource(self, api_version_or_group: str, kind_or_plural: str) -> Resource:
        """Find a resource by apiVersion ("apps/v1", "v1") or group ("apps", ""), and kind or plural; 404 if unknown."""
        group, _, version = api_version_or_group.partition("/")
        if not version and group == "v1":
            group, version = "", "v1"
        for resource in self.resources.values():
            known = resource.group == group and (not version or version in resource.served)
            if known and kind_or_plural in (resource.plural, resource.kind):
                return resource
        raise ApiError(404, "NotFound", "the server could not find the requested resource")

    def of(self, obj: Obj) -> Resource:
        """The resource of an object, by its apiVersion and kind."""
        return self.resource(obj["apiVersion"], obj["kind"])

    def _learn(self, definition: Obj) -> None:
        resource = crd.resource_of(definition)
        self.resources[(resource.group, resource.plural)] = resource

    # -- reading ----------------------------------------------------------------------------------------------------
    def get(self, plural: str, name: str, namespace: str | None = None, group: str = "") -> Obj | None:
        """The object, or None."""
        obj = self._objects.get((group, plural), {}).get((namespace or "", name))
        return None if obj is None else clone(obj)

    def must_get(self, plural: str, name: str, namespace: str | None = None, group: str = "") -> Obj:
        """The object; ApiError 404 where it isn't."""
        obj = self.get(plural, name, namespace, group)
        if obj is None:
            raise not_found(plural, group, name)
        return obj

    def list(
        self,
        plural: str,
        namespace: str | None = None,
        group: str = "",
        *,
        labels: str | None = None,
        fields: str | None = None,
    ) -> Objs:
        """All that match, by namespace and name; ``labels`` and ``fields`` are selector strings."""
        return [clone(obj) for obj in self.peek(plural, namespace, group, labels=labels, fields=fields)]

    def peek(
        self,
        plural: str,
        namespace: str | None = None,
        group: str = "",
        *,
        labels: str | None = None,
        fields: str | None = None,
        selectable: tuple[str, ...] = (),
    ) -> Objs:
        """Like ``list`` without copying: for readers that change nothing. ``selectable``: more fields to select by."""
        objects = self._objects.get((group, plural), {})
        names = sorted(key for key in objects if namespace in (None, "", key[0]))
        found = [objects[key] for key in names]
        if labels:
            test = label_test(labels)
            found = [obj for obj in found if test(obj["metadata"].get("labels") or {})]
        if fields:
            fits = field_test(fields, self.resources[(group, plural)], selectable)
            found = [obj for obj in found if fits(obj)]
        return found

    # -- writing ----------------------------------------------------------------------------------------------------
    def create(self, obj: Obj, *, dry_run: bool = False) -> Obj:
        """Store a new object.

        Raises ApiError: 409 AlreadyExists, 404 where its namespace is missing, 403 where that is being deleted, 422.
        """
        obj = clone(obj)
        resource = self.of(obj)
        meta: Obj = obj.setdefault("metadata", {})
        if not meta.get("name") and meta.get("generateName"):
            meta["name"] = meta["generateName"] + "".join(secrets.choice(_SUFFIX) for _ in range(5))
        name = meta.get("name") or ""
        namespace = self._checked_namespace(resource, meta, name)
        objects = self._objects.setdefault((resource.group, resource.plural), {})
        if (namespace, name) in objects:
            raise already_exists(resource.plural, resource.group, name)
        for key in ("resourceVersion", "selfLink", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"):
            meta.pop(key, None)
        meta["uid"] = str(uuid.uuid4())
        meta["creationTimestamp"] = now()
        if resource.tracks_generation:
            meta["generation"] = 1
        if resource.plural == "namespaces" and not resource.group:
            obj.setdefault("spec", {}).setdefault("finalizers", ["kubernetes"])
            obj["status"] = {"phase": "Active"}
            meta["labels"] = {**(meta.get("labels") or {}), "kubernetes.io/metadata.name": name}
        for admit in self.admission:
            admit(resource, obj, None)
        if dry_run:
            return obj
        if (resource.group, resource.plural) == CRD_KEY:
            crd.establish(obj, now())
            self._learn(obj)
        self._put("ADDED", resource, obj, None)
        return clone(obj)

    def _checked_namespace(self, resource: Resource, meta: Obj, name: str) -> str:
        if not resource.namespaced:
            meta.pop("namespace", None)
            return ""
        namespace: str = meta.get("namespace") or ""
        if not namespace:
            raise bad_request("an empty namespace may not be set during creation")
        home = self._objects.get(("", "namespaces"), {}).get(("", namespace))
        if home is None:
            raise not_found("namespaces", "", namespace)
        if home["metadata"].get("deletionTimestamp"):
            why = f"unable to create new content in namespace {namespace} because it is being terminated"
            error = forbidden(resource.plural, resource.group, name, why)
            error.details["causes"] = [
                {
                    "reason": "NamespaceTerminating",
                    "message": f"namespace {namespace} is being terminated",
                    "field": "metadata.namespace",
                }
            ]
            raise error
        return namespace

    def update(self, obj: Obj, *, subresource: str | None = None, dry_run: bool = False) -> Obj:
        """Replace an object; ``subresource="status"`` replaces its status only, otherwise the status stays.

        With metadata.resourceVersion set, ApiError 409 where the stored one differs. Nothing changed: no event, same
        resourceVersion. Removing the last finalizer of a deleted object removes it.
        """
        obj = clone(obj)
        resource = self.of(obj)
        meta: Obj = obj["metadata"]
        name, namespace = meta["name"], (meta.get("namespace") or "") if resource.namespaced else ""
        objects = self._objects.get((resource.group, resource.plural), {})
        old = objects.get((namespace, name))
        if old is None:
            raise not_found(resource.plural, resource.group, name)
        old_meta = old["metadata"]
        if meta.get("resourceVersion") not in (None, "", old_meta["resourceVersion"]):
            why = "the object has been modified; please apply your changes to the latest version and try again"
            raise conflict(resource.plural, resource.group, name, why)
        if meta.get("uid") not in (None, "", old_meta["uid"]):
            why = f"Precondition failed: UID in precondition: {meta['uid']}, UID in object meta: {old_meta['uid']}"
            raise conflict(resource.plural, resource.group, name, why)
        obj = _merged(resource, obj, old, subresource)
        meta = obj["metadata"]
        if subresource != "status":
            for admit in self.admission:
                admit(resource, obj, old)
        if _same(obj, old):
            return clone(old)
        if resource.tracks_generation and _spec_changed(resource, obj, old):
            meta["generation"] = old_meta.get("generation", 1) + 1
        if dry_run:
            return obj
        if (resource.group, resource.plural) == CRD_KEY:
            crd.establish(obj, now())
            self._learn(obj)
        if meta.get("deletionTimestamp") and self._may_go(resource, obj):
            return self._remove(resource, obj)
        self._put("MODIFIED", resource, obj, old)
        return clone(obj)

    def patch(
        self,
        plural: str,
        name: str,
        namespace: str | None,
        group: str,
        change: Callable[[Obj], None],
        *,
        subresource: str | None = None,
    ) -> Obj:
        """Read, let ``change`` alter the copy in place, write; ApiError 404 where it isn't."""
        obj = self.must_get(plural, name, namespace, group)
        change(obj)
        return self.update(obj, subresource=subresource)

    def delete(
        self,
        plural: str,
        name: str,
        namespace: str | None = None,
        group: str = "",
        *,
        propagation: str = "Background",
        uid: str | None = None,
        resource_version: str | None = None,
        grace_s: int | None = None,
        force: bool = False,
        dry_run: bool = False,
    ) -> Obj:
        """Delete an object, or mark it where finalizers, its namespace's contents or a kubelet come first.

        ``propagation`` Foreground and Orphan leave their finalizer for the garbage collector. ``grace_s`` is the
        pod's; ``force`` (the kubelet's) removes a marked pod. Returns the object as it was last.
        """
        resource = self.resources[(group, plural)]
        old = self._objects.get((group, plural), {}).get((namespace or "", name))
        if old is None:
            raise not_found(plural, group, name)
        meta = old["metadata"]
        if uid and uid != meta["uid"]:
            why = f"Precondition failed: UID in precondition: {uid}, UID in object meta: {meta['uid']}"
            raise conflict(plural, group, name, why)
        if resource_version and resource_version != meta["resourceVersion"]:
            raise conflict(plural, group, name, "Precondition failed: ResourceVersion")
        obj: Obj = clone(old)
        if dry_run:
            return obj
        meta = obj["metadata"]
        finalizer = {"Foreground": "foregroundDeletion", "Orphan": "orphan"}.get(propagation)
        if finalizer and not force and finalizer not in meta.get("finalizers", []):
            meta["finalizers"] = [*meta.get("finalizers", []), finalizer]
        grace = 0 if force else _grace(resource, obj, grace_s)
        if not meta.get("deletionTimestamp"):
            meta["deletionTimestamp"] = now()
            if resource.tracks_generation:
                meta["generation"] = meta.get("generation", 1) + 1
            meta["deletionGracePeriodSeconds"] = grace
        elif grace < meta.get("deletionGracePeriodSeconds", 0):
            meta["deletionGracePeriodSeconds"] = grace
        if resource.plural == "namespaces" and not group:
            obj["status"] = {**obj.get("status", {}), "phase": "Terminating"}
        if self._may_go(resource, obj):
            return self._remove(resource, obj)
        if not _same(obj, old):
            self._put("MODIFIED", resource, obj, old)
        if (group, plural) == CRD_KEY:
            self._delete_instances(obj)
        return clone(obj)

    def _may_go(self, resource: Resource, obj: Obj) -> bool:
        """Whether a deleted object has nothing left to wait for."""
        if obj["metadata"].get("finalizers") or obj["metadata"].get("deletionGracePeriodSeconds"):
            return False
        if resource.plural == "namespaces" and not resource.group:
            return not (obj.get("spec") or {}).get("finalizers")
        if (resource.group, resource.plural) == CRD_KEY:
            defined = crd.resource_of(obj)
            return not self._objects.get((defined.group, defined.plural))
        return True

    def _delete_instances(self, definition: Obj) -> None:
        """Delete all objects of a deleted CustomResourceDefinition; the last one gone takes the definition along."""
        defined = crd.resource_of(definition)
        for namespace, name in list(self._objects.get((defined.group, defined.plural), {})):
            self.delete(defined.plural, name, namespace, defined.group)

    def _remove(self, resource: Resource, obj: Obj) -> Obj:
        meta = obj["metadata"]
        old = self._objects[(resource.group, resource.plural)].pop((meta.get("namespace") or "", meta["name"]))
        self._write("DELETED", resource, obj, old)
        if (resource.group, resource.plural) == CRD_KEY:
            defined = crd.resource_of(obj)
            self.resources.pop((defined.group, defined.plural), None)
            self._objects.pop((defined.group, defined.plural), None)
        elif resource.definition:
            definition = self._objects[CRD_KEY].get(("", resource.definition))
            if (
                definition
                and definition["metadata"].get("deletionTimestamp")
                and self._may_go(self.resources[CRD_KEY], definition)
            ):
                self._remove(self.resources[CRD_KEY], clone(definition))
        return clone(obj)

    def _put(self, event: str, resource: Resource, obj: Obj, old: Obj | None) -> None:
        meta = obj["metadata"]
        self._objects.setdefault((resource.group, resource.plural), {})[(meta.get("namespace") or "", meta["name"])] = (
            obj
        )
        self._write(event, resource, obj, old)

    def _write(self, event: str, resource: Resource, obj: Obj, old: Obj | None) -> None:
        self.rv += 1
        meta = obj["metadata"]
        meta["resourceVersion"] = str(self.rv)
        where = (resource.group, resource.plural, meta.get("namespace") or "", meta["name"])
        self._db.execute("BEGIN")
        if event == "DELETED":
            self._db.execute("DELETE FROM objects WHERE grp = ? AND plural = ? AND ns = ? AND name = ?", where)
        else:
            self._db.execute("INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?, ?)", (*where, json.dumps(obj)))
        self._db.execute("INSERT OR REPLACE INTO meta VALUES ('rv', ?)", (self.rv,))
        self._db.execute("COMMIT")
        if len(self.history) == HISTORY:
            self.oldest_rv = self.history[0].rv
        change = Change(self.rv, event, resource, obj, old)
        self.history.append(change)
        for listener in tuple(self.listeners):
            listener(change)
        for queue in self._queues:
            queue.put_nowait((event, resource, clone(obj)))

    # -- following --------------------------------------------------------------------------------------------------
    def subscribe(self) -> asyncio.Queue[tuple[str, Resource, Obj]]:
        """A queue that gets (ADDED | MODIFIED | DELETED, resource, object) for every change from now on."""
        queue: asyncio.Queue[tuple[str, Resource, Obj]] = asyncio.Queue()
        self._queues.add(queue)
        return queue

    def unsubscribe(self, queue: asyncio.Queue[tuple[str, Resource, Obj]]) -> None:
        self._queues.discard(queue)


_VOLATILE = ("resourceVersion", "managedFields", "generation")


def _same(obj: Obj, old: Obj) -> bool:
    """Whether two versions differ in nothing but bookkeeping (times in managedFields don't count as a change)."""
    if {k: v for k, v in obj.items() if k != "metadata"} != {k: v for k, v in old.items() if k != "metadata"}:
        return False
    meta = {k: v for k, v in obj["metadata"].items() if k not in _VOLATILE}
    if meta != {k: v for k, v in old["metadata"].items() if k not in _VOLATILE}:
        return False
    return _owners(obj) == _owners(old)


def _owners(obj: Obj) -> Objs:
    entries: Objs = obj["metadata"].get("managedFields") or []
    return [{k: v for k, v in entry.items() if k != "time"} for entry in entries]


def _spec_changed(resource: Resource, obj: Obj, old: Obj) -> bool:
    if "spec" in obj or "spec" in old:
        return bool(obj.get("spec") != old.get("spec"))
    ignored = ("metadata", "status", "kind", "apiVersion")
    return {k: v for k, v in obj.items() if k not in ignored} != {k: v for k, v in old.items() if k not in ignored}


def _merged(resource: Resource, obj: Obj, old: Obj, subresource: str | None) -> Obj:
    """What an update stores: the new object with what this way of writing may not touch taken from the old one."""
    if subresource == "status":
        result: Obj = {**clone(old)}
        result.pop("status", None)
        if "status" in obj:
            result["status"] = obj["status"]
        if "managedFields" in obj["metadata"]:
            result["metadata"]["managedFields"] = obj["metadata"]["managedFields"]
        if resource.kind in ("Node", "Pod"):  # kubelets write these through the status subresource
            for key in ("labels", "annotations"):
                if key in obj["metadata"]:
                    result["metadata"][key] = obj["metadata"][key]
        return result
    meta = obj["metadata"]
    for key in (
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "generateName",
        "resourceVersion",
    ):
        meta.pop(key, None)
        if key in old["metadata"]:
            meta[key] = old["metadata"][key]
    if "managedFields" not in meta and "managedFields" in old["metadata"]:
        meta["managedFields"] = clone(old["metadata"]["managedFields"])
    for key in ("finalizers", "labels", "annotations", "ownerReferences"):
        if key in meta and not meta[key]:
            del meta[key]
    if "status" in resource.subresources:
        obj.pop("status", None)
        if "status" in old:
            obj["status"] = clone(old["status"])
    return obj


def _grace(resource: Resource, obj: Obj, asked: int | None) -> int:
    """Seconds a pod gets to stop: none where no kubelet runs it (pkg/registry/core/pod/strategy.go)."""
    if resource.group or resource.plural != "pods":
        return 0
    if not obj.get("spec", {}).get("nodeName") or obj.get("status", {}).get("phase") in ("Succeeded", "Failed"):
        return 0
    if asked is not None:
        return asked
    seconds: int = obj["spec"].get("terminationGracePeriodSeconds", 30)
    return seconds
