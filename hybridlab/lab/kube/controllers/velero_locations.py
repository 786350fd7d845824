"""Velero's backup storage locations: validated against their S3, and kept in step with the backups that are there."""

from __future__ import annotations

import asyncio
import gzip
import json

from hybridlab.lab.kube.controllers.objects import (
    Obj,
    duration,
    is_deleting,
    labels_of,
    name_of,
    seconds_of,
    spec_of,
    status_of,
    timestamp,
    uid_of,
)
from hybridlab.lab.kube.controllers.velero_objects import (
    BACKUP,
    DONE,
    LOCATION,
    LOCATION_LABEL,
    REPOSITORY,
    Server,
    store_of,
)
from hybridlab.lab.kube.controllers.velero_repo import ObjectStore, StoreError
from hybridlab.lab.kube.controllers.work import Context

CHECK_S = 60.0  # how often a location is validated and its backups are looked up


class Locations:
    """What the server does about locations."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def check(self, server: Server, location: Obj) -> float | None:
        """Validate it against its S3, and learn of the backups that are there."""
        if is_deleting(location):
            return None
        every = duration(spec_of(location).get("validationFrequency"), CHECK_S) or CHECK_S
        every = max(every, 5.0 * self._context.world.clock.speed)
        checked = seconds_of(status_of(location).get("lastValidationTime"))
        left = every - (self._context.now() - checked) * self._context.world.clock.speed
        same = status_of(location).get("lastSyncedRevision") == _revision(location)
        if left > 0 and same:
            return left
        problem = ""
        try:
            store = store_of(self._context, server, location)
            await asyncio.to_thread(store.validate)
        except StoreError as error:
            problem = str(error)
        current = self._context.current(LOCATION, location)
        if current is None:
            return None
        status = dict(status_of(current))
        status.pop("message", None)
        now = timestamp(self._context.now())
        status.update(
            phase="Unavailable" if problem else "Available",
            lastValidationTime=now,
            lastSyncedRevision=_revision(current),
        )
        if problem:
            status["message"] = f'BackupStorageLocation "{name_of(location)}" is unavailable: {problem}'
        else:
            status["lastSyncedTime"] = now
        self._context.set_status(LOCATION, current, status)
        if not problem:
            await self._sync(server, store, current)
        return every

    async def _sync(self, server: Server, store: ObjectStore, location: Obj) -> None:
        """Backups in the store that the cluster doesn't know become objects, finished ones that left it go."""
        try:
            there = set(await asyncio.to_thread(store.folders, "backups/"))
        except StoreError:
            return
        here = {name_of(b): b for b in self._context.peek(BACKUP, server.namespace)}
        for name in sorted(there - set(here)):
            try:
                body, volumes = await asyncio.to_thread(_read_backup, store, name)
            except (StoreError, ValueError, OSError):
                continue  # not finished, or damaged: Velero logs it and goes on
            self._adopt(server, location, body, volumes)
        for name, backup in here.items():
            mine = labels_of(backup).get(LOCATION_LABEL) == name_of(location)
            if mine and status_of(backup).get("phase") in DONE and name not in there:
                self._context.delete(BACKUP, backup)

    def _adopt(self, server: Server, location: Obj, body: Obj, volumes: list[Obj]) -> None:
        labels = {**labels_of(body), LOCATION_LABEL: name_of(location)}
        meta = {"name": name_of(body), "namespace": server.namespace, "labels": labels}
        made = self._context.create(
            {**body, "metadata": {**meta, "annotations": body["metadata"].get("annotations") or {}}}
        )
        if made is None:
            return
        self._context.set_status(BACKUP, made, status_of(body))
        for volume in volumes:
            own = {k: v for k, v in labels_of(volume).items() if k != "velero.io/backup-uid"}
            reference = {"apiVersion": "velero.io/v1", "kind": "Backup", "name": name_of(made), "uid": uid_of(made)}
            self._context.create(
                {
                    **volume,
                    "metadata": {
                        "name": name_of(volume),
                        "namespace": server.namespace,
                        "labels": {**own, "velero.io/backup-uid": uid_of(made)},
                        "annotations": volume["metadata"].get("annotations") or {},
                        "ownerReferences": [{**reference, "controller": True}],
                    },
                }
            )

    def gone(self, namespace: str, name: str) -> None:
        """The objects that stood for what is in a deleted location; its bytes stay."""
        for kind in (BACKUP, REPOSITORY):
            for obj in self._context.peek(kind, namespace) if self._context.defined(kind) else []:
                if labels_of(obj).get(LOCATION_LABEL) == name:
                    self._context.delete(kind, obj)


def _revision(location: Obj) -> str:
    """Changes with the spec: another bucket or key is looked at at once."""
    return str(location["metadata"].get("generation", 1))


def _read_backup(store: ObjectStore, name: str) -> tuple[Obj, list[Obj]]:
    body: Obj = json.loads(store.get(f"backups/{name}/velero-backup.json"))
    volumes: list[Obj] = json.loads(gzip.decompress(store.get(f"backups/{name}/{name}-podvolumebackups.json.gz")))
    return body, volumes
