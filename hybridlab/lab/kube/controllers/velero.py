"""Velero's controllers: locations, backups, schedules, restores and deletions, while its server runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from hybridlab.lab.kube.controllers import cron
from hybridlab.lab.kube.controllers.kubelet import Kubelets
from hybridlab.lab.kube.controllers.objects import (
    CONFIG_MAP,
    POD,
    Kind,
    Obj,
    duration,
    is_deleting,
    labels_of,
    name_of,
    namespace_of,
    seconds_of,
    spec_of,
    status_of,
    timestamp,
    uid_of,
)
from hybridlab.lab.kube.controllers.podworker import Program
from hybridlab.lab.kube.controllers.velero_backup import BackupRun, forget, record
from hybridlab.lab.kube.controllers.velero_locations import Locations
from hybridlab.lab.kube.controllers.velero_modifiers import BadModifiers, Rule, read_rules
from hybridlab.lab.kube.controllers.velero_objects import (
    BACKUP,
    BACKUP_LABEL,
    DELETION,
    DONE,
    KINDS,
    LOCATION,
    LOCATION_LABEL,
    RESTORE,
    SCHEDULE,
    SCHEDULE_LABEL,
    VOLUME_BACKUP,
    VOLUME_RESTORE,
    Server,
    is_server,
    server_in,
    store_of,
)
from hybridlab.lab.kube.controllers.velero_repo import ObjectStore, StoreError
from hybridlab.lab.kube.controllers.velero_restore import RestoreRun
from hybridlab.lab.kube.controllers.work import Context, Controller, Key, on
from hybridlab.lab.kube.errors import ApiError

DEFAULT_TTL = "720h0m0s"
_BOTH_LISTS = "Invalid included/excluded namespace lists: excludes list cannot contain an item in the includes list: "
_KEY = {kind.plural: kind for kind in KINDS}


class Velero(Controller):
    """Keys are (``<plural>/<namespace>``, name). One backup or restore is made at a time."""

    name = "velero"

    def __init__(self, context: Context, kubelets: Kubelets) -> None:
        super().__init__(context)
        self._kubelets = kubelets
        self._locations = Locations(context)
        self._busy = asyncio.Lock()
        self._mine: set[str] = set()  # uids of what this process works on

    def keys(self, event: str, kind: tuple[str, str], obj: Obj) -> Iterable[Key]:
        if kind[0] == "velero.io" and kind[1] in _KEY:
            keys = [(f"{kind[1]}/{namespace_of(obj)}", name_of(obj))]
            if on(LOCATION, kind) and event != "ADDED":  # what waited for it
                keys += self._all(namespace_of(obj), (BACKUP,))
            return keys
        if on(POD, kind) and is_server(obj):
            return self._all(namespace_of(obj), KINDS)
        return []

    def _all(self, namespace: str, kinds: Iterable[Kind]) -> list[Key]:
        return [
            (f"{kind.plural}/{namespace}", name_of(obj))
            for kind in kinds
            if self.context.defined(kind)
            for obj in self.context.peek(kind, namespace)
        ]

    async def reconcile(self, key: Key) -> float | None:
        plural, _, namespace = key[0].partition("/")
        kind = _KEY[plural]
        server = server_in(self.context, namespace)
        if server is None:
            return None  # looked at again when its pod is ready
        obj = self.context.get(kind, key[1], namespace) if self.context.defined(kind) else None
        if obj is None:
            if kind is LOCATION:
                self._locations.gone(namespace, key[1])
            return None
        if kind is LOCATION:
            return await self._locations.check(server, obj)
        if kind is BACKUP:
            return await self._backup(server, obj)
        if kind is RESTORE:
            return await self._restore(server, obj)
        if kind is SCHEDULE:
            return self._schedule(server, obj)
        return await self._deletion(server, obj)

    # -- stores ------------------------------------------------------------------------------------------------------
    def _store(self, server: Server, location_name: str) -> ObjectStore:
        location = self.context.get(LOCATION, location_name, server.namespace)
        if location is None:
            raise StoreError(f'backupstoragelocations.velero.io "{location_name}" not found')
        return store_of(self.context, server, location)

    def _default_location(self, server: Server) -> str:
        for location in self.context.peek(LOCATION, server.namespace):
            if spec_of(location).get("default"):
                return name_of(location)
        return server.argument("default-backup-storage-location", "default")

    # -- backups -----------------------------------------------------------------------------------------------------
    async def _backup(self, server: Server, backup: Obj) -> float | None:
        phase = status_of(backup).get("phase") or "New"
        if is_deleting(backup):
            return None
        if phase in DONE or phase in ("Failed", "FailedValidation"):
            return self._expire(server, backup)
        if phase != "New":
            if uid_of(backup) not in self._mine and phase != "Deleting":
                text = f'found a backup with status "{phase}" during the server starting, mark it as "Failed"'
                ended = timestamp(self.context.now())
                self._set(BACKUP, backup, phase="Failed", failureReason=text, completionTimestamp=ended)
            return None
        prepared = self._prepare(server, backup)
        if prepared is None:
            return None
        self._mine.add(uid_of(prepared))
        try:
            async with self._busy:
                await self._make(server, prepared)
        finally:
            self._mine.discard(uid_of(prepared))
        return 0.1

    def _prepare(self, server: Server, backup: Obj) -> Obj | None:
        """Fill in what the spec leaves open and check it; None where it is FailedValidation."""
        location_name = spec_of(backup).get("storageLocation") or self._default_location(server)
        ttl = spec_of(backup).get("ttl") or server.argument("default-backup-ttl", DEFAULT_TTL)
        fs = spec_of(backup).get("defaultVolumesToFsBackup")
        if fs is None:
            fs = server.argument("default-volumes-to-fs-backup") == "true"

        def fill(found: Obj) -> None:
            found["spec"].update(storageLocation=location_name, ttl=ttl, defaultVolumesToFsBackup=fs)
            found["metadata"].setdefault("labels", {})[LOCATION_LABEL] = location_name

        backup = self.context.change(BACKUP, backup, fill) or backup
        location = self.context.get(LOCATION, location_name, server.namespace)
        problems = []
        if location is None:
            problems.append(
                "a BackupStorageLocation CRD with the name specified in the backup spec needs to be created before "
                f'this backup can be executed. Error: backupstoragelocations.velero.io "{location_name}" not found'
            )
        elif status_of(location).get("phase") == "Unavailable":
            problems.append(
                f"backup can't be created because BackupStorageLocation {location_name} is in Unavailable status."
            )
        elif spec_of(location).get("accessMode") == "ReadOnly":
            problems.append(
                f"backup can't be created because backup storage location {location_name} is in read-only mode"
            )
        elif not status_of(location).get("phase"):
            return None  # not validated yet: looked at again when it is
        for name in spec_of(backup).get("includedNamespaces") or []:
            if name in (spec_of(backup).get("excludedNamespaces") or []):
                problems.append(f"{_BOTH_LISTS}{name}")
        if problems:
            self._set(BACKUP, backup, phase="FailedValidation", validationErrors=problems)
            return None
        return backup

    async def _make(self, server: Server, backup: Obj) -> None:
        now = self.context.now()
        expires = now + duration(spec_of(backup)["ttl"])
        self._set(
            BACKUP,
            backup,
            phase="InProgress",
            version=1,
            formatVersion="1.1.0",
            startTimestamp=timestamp(now),
            expiration=timestamp(expires),
        )
        try:
            store = self._store(server, spec_of(backup)["storageLocation"])
            run = BackupRun(self.context, server, self._kubelets.mounts, store, backup)
            outcome = await run.run()
            progress = {"totalItems": outcome.items, "itemsBackedUp": outcome.items}
            ended = timestamp(self.context.now())
            final = {"phase": outcome.phase, "completionTimestamp": ended, "progress": progress, **outcome.counts()}
            current = self.context.current(BACKUP, backup)
            if current is None:
                return
            stored = {**current, "status": {**status_of(current), **final}}
            await asyncio.to_thread(record, store, stored)
            self._set(BACKUP, backup, **final)
        except StoreError as error:
            ended = timestamp(self.context.now())
            self._set(BACKUP, backup, phase="Failed", failureReason=str(error), completionTimestamp=ended)

    def _expire(self, server: Server, backup: Obj) -> float | None:
        """Ask for the deletion of a backup whose time is over."""
        expiration = seconds_of(status_of(backup).get("expiration"))
        if not expiration:
            return None
        left = expiration - self.context.now()
        if left > 0:
            return min(left, 86400.0) * self.context.world.clock.speed  # expiry follows the real clock
        asked = any(spec_of(d)["backupName"] == name_of(backup) for d in self.context.peek(DELETION, server.namespace))
        if not asked:
            self.context.create(
                {
                    "apiVersion": "velero.io/v1",
                    "kind": "DeleteBackupRequest",
                    "metadata": {"generateName": f"{name_of(backup)}-", "namespace": server.namespace},
                    "spec": {"backupName": name_of(backup)},
                }
            )
        return None

    async def _deletion(self, server: Server, request: Obj) -> float | None:
        """Remove a backup, its data, the restores made from it, and then the request."""
        if status_of(request).get("phase") == "Processed" or is_deleting(request):
            return None
        name = str(spec_of(request)["backupName"])
        backup = self.context.get(BACKUP, name, server.namespace)
        if backup is None:
            self._set(DELETION, request, phase="Processed", errors=["backup not found"])
            return None
        if status_of(backup).get("phase") == "InProgress":
            self._set(DELETION, request, phase="Processed", errors=["backup is still in progress"])
            return None
        self._set(DELETION, request, phase="InProgress")
        self._set(BACKUP, backup, phase="Deleting")
        self._mine.add(uid_of(backup))
        volumes = [
            v for v in self.context.peek(VOLUME_BACKUP, server.namespace) if labels_of(v).get(BACKUP_LABEL) == name
        ]
        try:
            store = self._store(server, spec_of(backup)["storageLocation"])
            await asyncio.to_thread(forget, store, name, volumes)
        except StoreError as error:
            self._set(DELETION, request, phase="Processed", errors=[str(error)])
            return None
        finally:
            self._mine.discard(uid_of(backup))
        for restore in self.context.peek(RESTORE, server.namespace):
            if spec_of(restore).get("backupName") == name:
                self.context.delete(RESTORE, restore)
        self.context.delete(BACKUP, backup)
        self.context.delete(DELETION, request)
        return None

    # -- schedules ---------------------------------------------------------------------------------------------------
    def _schedule(self, server: Server, schedule: Obj) -> float | None:
        try:
            times = cron.parse(str(spec_of(schedule)["schedule"]))
        except cron.BadSchedule as error:
            problems = [f"invalid schedule: {error}"]
            self._set(SCHEDULE, schedule, phase="FailedValidation", validationErrors=problems)
            return None
        if status_of(schedule).get("phase") != "Enabled":
            self._set(SCHEDULE, schedule, phase="Enabled", validationErrors=None)
        if spec_of(schedule).get("paused"):
            return None
        now = self.context.now()
        created = seconds_of(schedule["metadata"]["creationTimestamp"])
        last = max(
            created,
            seconds_of(status_of(schedule).get("lastBackup")),
            seconds_of(status_of(schedule).get("lastSkipped")),
        )
        due = times.after(last)
        if due <= now:
            running = any(
                labels_of(b).get(SCHEDULE_LABEL) == name_of(schedule)
                and (status_of(b).get("phase") or "New") in ("New", "InProgress")
                for b in self.context.peek(BACKUP, server.namespace)
            )
            if not running:
                self._scheduled(server, schedule)
            self._set(SCHEDULE, schedule, lastBackup=timestamp(now))
            due = times.after(now)
        return (due - now + 0.1) * self.context.world.clock.speed  # schedules follow the real clock

    def _scheduled(self, server: Server, schedule: Obj) -> None:
        template = dict(spec_of(schedule)["template"])
        labels = {**((template.pop("metadata", None) or {}).get("labels") or labels_of(schedule))}
        stamp = datetime.fromtimestamp(self.context.now(), UTC).strftime("%Y%m%d%H%M%S")
        meta: Obj = {
            "name": f"{name_of(schedule)}-{stamp}",
            "namespace": server.namespace,
            "labels": {**labels, SCHEDULE_LABEL: name_of(schedule)},
        }
        if spec_of(schedule).get("useOwnerReferencesInBackup"):
            reference = {
                "apiVersion": "velero.io/v1",
                "kind": "Schedule",
                "name": name_of(schedule),
                "uid": uid_of(schedule),
            }
            meta["ownerReferences"] = [{**reference, "controller": True}]
        self.context.create({"apiVersion": "velero.io/v1", "kind": "Backup", "metadata": meta, "spec": template})

    # -- restores ----------------------------------------------------------------------------------------------------
    async def _restore(self, server: Server, restore: Obj) -> float | None:
        phase = status_of(restore).get("phase") or "New"
        if is_deleting(restore):
            return None
        if phase != "New":
            if phase == "InProgress" and uid_of(restore) not in self._mine:
                text = f'found a restore with status "{phase}" during the server starting, mark it as "Failed"'
                ended = timestamp(self.context.now())
                self._set(RESTORE, restore, phase="Failed", failureReason=text, completionTimestamp=ended)
            return None
        backup, problems = self._source(server, restore)
        if backup is None or problems:
            self._set(RESTORE, restore, phase="FailedValidation", validationErrors=problems)
            return None
        self._mine.add(uid_of(restore))
        try:
            async with self._busy:
                await self._bring_back(server, restore, backup)
        finally:
            self._mine.discard(uid_of(restore))
        return None

    def _source(self, server: Server, restore: Obj) -> tuple[Obj | None, list[str]]:
        """The backup to restore from, or what is wrong with the request."""
        spec = spec_of(restore)
        name, schedule = spec.get("backupName"), spec.get("scheduleName")
        if bool(name) == bool(schedule):
            return None, ["Either a backup or schedule must be specified as a source for the restore, but not both"]
        if schedule:
            done = [
                b
                for b in self.context.peek(BACKUP, server.namespace)
                if labels_of(b).get(SCHEDULE_LABEL) == schedule and status_of(b).get("phase") in DONE
            ]
            if not done:
                return None, [f"No backups found for schedule {schedule}"]
            latest = max(done, key=lambda b: str(status_of(b).get("startTimestamp")))
            return latest, []
        backup = self.context.get(BACKUP, str(name), server.namespace)
        if backup is None:
            return None, [f'Error retrieving backup: backups.velero.io "{name}" not found']
        if status_of(backup).get("phase") not in DONE:
            phase = status_of(backup).get("phase") or "New"
            return None, [f"backup {name} is not in a restorable phase: {phase}"]
        try:
            self._modifiers(server, restore)
        except BadModifiers as error:
            return None, [str(error)]
        included = set(spec.get("includedNamespaces") or [])
        both = included & set(spec.get("excludedNamespaces") or [])
        return backup, [_BOTH_LISTS + n for n in sorted(both)]

    def _modifiers(self, server: Server, restore: Obj) -> tuple[Rule, ...]:
        """The restore's resource modifiers, if any. Raises BadModifiers."""
        named = spec_of(restore).get("resourceModifier")
        if not named:
            return ()
        if str(named.get("kind", "")).lower() != "configmap":
            raise BadModifiers(f"invalid resource modifier kind {named.get('kind')}")
        found = self.context.get(CONFIG_MAP, named["name"], server.namespace)
        if found is None:
            raise BadModifiers(f"failed to get resource modifiers configmap {server.namespace}/{named['name']}")
        return read_rules(found)

    async def _bring_back(self, server: Server, restore: Obj, backup: Obj) -> None:
        self._set(RESTORE, restore, phase="InProgress", startTimestamp=timestamp(self.context.now()))
        try:
            store = self._store(server, str(spec_of(backup)["storageLocation"]))
            rules = self._modifiers(server, restore)
            run = RestoreRun(self.context, server, self._kubelets.mounts, store, restore, backup, rules)
            outcome = await run.run()
            progress = {"totalItems": outcome.items, "itemsRestored": outcome.items}
            results = {"errors": {"velero": outcome.errors}, "warnings": {"velero": outcome.warnings}}
            name = name_of(restore)
            path = f"restores/{name}/restore-{name}-results.gz"
            await asyncio.to_thread(lambda: store.put_json(path, results, compressed=True))
            ended = timestamp(self.context.now())
            final = {"phase": outcome.phase, "completionTimestamp": ended, "progress": progress, **outcome.counts()}
            if outcome.errors:
                final["failureReason"] = "; ".join(outcome.errors)[:1024]
            self._set(RESTORE, restore, **final)
        except (StoreError, ApiError, BadModifiers) as error:
            ended = timestamp(self.context.now())
            self._set(RESTORE, restore, phase="Failed", failureReason=str(error), completionTimestamp=ended)

    def _set(self, kind: Kind, obj: Obj, **fields: object) -> None:
        """Merge fields into the status; None takes one away."""
        current = self.context.current(kind, obj)
        if current is not None:
            status = {**status_of(current), **fields}
            self.context.set_status(kind, current, {k: v for k, v in status.items() if v is not None})


def restore_wait(context: Context) -> Program:
    """The helper in restored pods: ends when all their volumes are filled, and waits for ever where one failed."""

    async def run(pod: Obj, container: Obj, log: Callable[[str], None]) -> tuple[int, str]:
        watch = context.store.subscribe()
        try:
            while True:
                rows = [v for v in context.peek(VOLUME_RESTORE) if labels_of(v).get("velero.io/pod-uid") == uid_of(pod)]
                wanted = len(container.get("volumeMounts") or [])
                done = [v for v in rows if status_of(v).get("phase") == "Completed"]
                if len(done) >= wanted:
                    log("Done")
                    return 0, ""
                await watch.get()
        finally:
            context.store.unsubscribe(watch)

    return run
