"""Garbage collection by owner references, and the emptying of deleted namespaces."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from hybridlab.lab.kube.controllers.objects import (
    NAMESPACE,
    Kind,
    Obj,
    is_deleting,
    name_of,
    namespace_of,
    set_condition,
    status_of,
    uid_of,
)
from hybridlab.lab.kube.controllers.work import Context, Controller, Key, on

_FOREGROUND, _ORPHAN = "foregroundDeletion", "orphan"


class Garbage(Controller):
    """Deletes what lost all its owners; carries out Foreground and Orphan deletion.

    Keys are (``group/plural/namespace``, name), since every kind may own and be owned.
    """

    name = "garbage-collector"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._where: dict[str, Key] = {}  # uid → key, of everything there is
        self._dependents: dict[str, set[Key]] = defaultdict(set)  # owner's uid → keys
        self._owners: dict[Key, tuple[str, ...]] = {}

    def keys(self, event: str, kind: tuple[str, str], obj: Obj) -> Iterable[Key]:
        key = (f"{kind[0]}/{kind[1]}/{namespace_of(obj)}", name_of(obj))
        uid = uid_of(obj)
        owners = tuple(r["uid"] for r in obj["metadata"].get("ownerReferences") or [])
        before = self._owners.get(key, ())
        if event == "DELETED":
            self._index(key, ())
            if self._where.get(uid) == key:
                del self._where[uid]
            waiting = [self._where[owner] for owner in owners if owner in self._where]
            return [*self._dependents.get(uid, ()), *waiting]
        self._where[uid] = key
        if owners != before:
            self._index(key, owners)
        finalizers = obj["metadata"].get("finalizers") or []
        concerned = (owners and owners != before) or (is_deleting(obj) and {_FOREGROUND, _ORPHAN} & set(finalizers))
        return [key] if concerned else []

    def _index(self, key: Key, owners: tuple[str, ...]) -> None:
        for owner in self._owners.pop(key, ()):
            self._dependents[owner].discard(key)
            if not self._dependents[owner]:
                del self._dependents[owner]
        if owners:
            self._owners[key] = owners
            for owner in owners:
                self._dependents[owner].add(key)

    async def reconcile(self, key: Key) -> float | None:
        kind, obj = self._find(key)
        if kind is None or obj is None:
            return None
        if is_deleting(obj):
            finalizers = obj["metadata"].get("finalizers") or []
            if _ORPHAN in finalizers:
                self._orphan(kind, obj)
            elif _FOREGROUND in finalizers:
                self._foreground(kind, obj)
            return None
        self._judge(kind, obj)
        return None

    def _find(self, key: Key) -> tuple[Kind | None, Obj | None]:
        group, plural, namespace = key[0].split("/")
        resource = self.context.store.resources.get((group, plural))
        if resource is None:
            return None, None
        kind = Kind(plural, group, resource.version, resource.kind, resource.namespaced)
        return kind, self.context.get(kind, key[1], namespace)

    def _judge(self, kind: Kind, obj: Obj) -> None:
        """Delete an object whose owners are gone or going; forget references to gone ones where another lives."""
        references = obj["metadata"].get("ownerReferences") or []
        if not references:
            return
        living: list[Obj] = []
        dying: list[Obj] = []
        for reference in references:
            owner_key = self._where.get(reference["uid"])
            owner = self._find(owner_key)[1] if owner_key else None
            if owner is None or uid_of(owner) != reference["uid"]:
                continue
            going = is_deleting(owner) and _FOREGROUND in (owner["metadata"].get("finalizers") or [])
            (dying if going else living).append(reference)
        if living:
            if len(living) < len(references) and not dying:
                self.context.change(kind, obj, lambda found: found["metadata"].update(ownerReferences=living))
            return
        blocks = dying and self._dependents.get(uid_of(obj))
        self.context.delete(kind, obj, propagation="Foreground" if blocks else "Background")

    def _orphan(self, kind: Kind, owner: Obj) -> None:
        uid = uid_of(owner)
        for key in list(self._dependents.get(uid, ())):
            child_kind, child = self._find(key)
            if child_kind is not None and child is not None:
                self.context.change(child_kind, child, lambda found: _disown(found, uid))
        self._release(kind, owner, _ORPHAN)

    def _foreground(self, kind: Kind, owner: Obj) -> None:
        uid, blocked = uid_of(owner), False
        for key in list(self._dependents.get(uid, ())):
            child_kind, child = self._find(key)
            if child_kind is None or child is None:
                continue
            if not is_deleting(child):
                self._judge(child_kind, child)
                child = self._find(key)[1]
            references = (child or {}).get("metadata", {}).get("ownerReferences") or []
            blocked |= any(r["uid"] == uid and r.get("blockOwnerDeletion") for r in references)
        if not blocked:
            self._release(kind, owner, _FOREGROUND)

    def _release(self, kind: Kind, owner: Obj, finalizer: str) -> None:
        def drop(found: Obj) -> None:
            found["metadata"]["finalizers"] = [f for f in found["metadata"].get("finalizers") or [] if f != finalizer]

        self.context.change(kind, owner, drop)


def _disown(obj: Obj, uid: str) -> None:
    references = obj["metadata"].get("ownerReferences") or []
    obj["metadata"]["ownerReferences"] = [r for r in references if r["uid"] != uid]


class NamespaceDeleter(Controller):
    """Deletes everything in a deleted namespace, then lets the namespace go."""

    name = "namespace"

    def keys(self, event: str, kind: tuple[str, str], obj: Obj) -> Iterable[Key]:
        if on(NAMESPACE, kind):
            return [("", name_of(obj))] if is_deleting(obj) and event != "DELETED" else []
        home = namespace_of(obj)
        if event == "DELETED" and home:
            namespace = self.context.get(NAMESPACE, home)
            if namespace is not None and is_deleting(namespace):
                return [("", home)]
        return []

    async def reconcile(self, key: Key) -> float | None:
        namespace = self.context.get(NAMESPACE, key[1])
        if namespace is None or not is_deleting(namespace):
            return None
        left: dict[str, int] = {}
        for group, plural in list(self.context.store.resources):
            resource = self.context.store.resources.get((group, plural))
            if resource is None or not resource.namespaced:
                continue
            kind = Kind(plural, group, resource.version, resource.kind)
            for obj in self.context.peek(kind, key[1]):
                if not is_deleting(obj):
                    self.context.delete(kind, obj)
            remaining = len(self.context.peek(kind, key[1]))
            if remaining:
                left[f"{plural}.{group}".rstrip(".")] = remaining
        if left:
            status = status_of(namespace)
            what = ", ".join(f"{name} has {count} resource instances" for name, count in sorted(left.items()))
            set_condition(
                status,
                "NamespaceContentRemaining",
                True,
                self.context.now(),
                reason="SomeResourcesRemain",
                message=f"Some resources are remaining: {what}",
            )
            self.context.set_status(NAMESPACE, namespace, status)
            return None
        self.context.change(NAMESPACE, namespace, lambda found: found["spec"].update(finalizers=[]))
        return None
