"""Making a Velero backup: the objects as a tar.gz, the files of pod volumes, and the records beside them in S3."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import secrets
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from hybridlab.lab.kube.controllers.mounts import Mounts
from hybridlab.lab.kube.controllers.objects import (
    CLAIM,
    VOLUME,
    Obj,
    is_deleting,
    key_of,
    labels_of,
    name_of,
    namespace_of,
    spec_of,
    status_of,
    timestamp,
    uid_of,
)
from hybridlab.lab.kube.controllers.velero_objects import (
    EXCLUDE_LABEL,
    VOLUME_BACKUP,
    Server,
    agent_on,
    backup_labels,
    ensure_repository,
    repository_password,
)
from hybridlab.lab.kube.controllers.velero_repo import ObjectStore, Repository, StoreError, repository
from hybridlab.lab.kube.controllers.velero_select import (
    NOT_BACKED_UP,
    PodVolume,
    labels_wanted,
    namespace_wanted,
    pod_volumes,
    resource_wanted,
)
from hybridlab.lab.kube.controllers.work import Context
from hybridlab.lab.kube.resources import Resource

FORMAT_VERSION = "1.1.0"
ITEMS_S = 0.5


@dataclass
class Outcome:
    """What a backup or restore came to."""

    items: int = 0
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    resources: dict[str, list[str]] = field(default_factory=dict)

    @property
    def phase(self) -> str:
        return "PartiallyFailed" if self.errors else "Completed"

    def counts(self) -> Obj:
        """The non-zero fields for a status."""
        return {k: v for k, v in (("errors", len(self.errors)), ("warnings", len(self.warnings))) if v}


@dataclass(frozen=True)
class Item:
    resource: Resource
    obj: Obj


class BackupRun:
    """One backup being made. ``mounts`` knows the folders of volumes."""

    def __init__(self, context: Context, server: Server, mounts: Mounts, store: ObjectStore, backup: Obj) -> None:
        self._context = context
        self._server = server
        self._mounts = mounts
        self._store = store
        self._backup = backup
        self._spec = spec_of(backup)
        self.outcome = Outcome()

    async def run(self) -> Outcome:
        """Make it. Raises StoreError where nothing could be stored (the backup Failed)."""
        await self._context.takes(ITEMS_S)
        items = self._items()
        choice = self._volumes(items)
        self.outcome.warnings += choice[1]
        for volume in choice[0]:
            await self._save(volume)
        self.outcome.items = len(items)
        for item in items:
            name = item.resource.api_version + "/" + item.resource.kind
            where = namespace_of(item.obj)
            self.outcome.resources.setdefault(name, []).append(
                f"{where}/{name_of(item.obj)}" if where else name_of(item.obj)
            )
        volumes = [
            v
            for v in self._context.peek(VOLUME_BACKUP, namespace_of(self._backup))
            if labels_of(v).get("velero.io/backup-uid") == uid_of(self._backup)
        ]
        await asyncio.to_thread(self._store_items, items, volumes)
        return self.outcome

    # -- objects -----------------------------------------------------------------------------------------------------
    def _items(self) -> list[Item]:
        spec = self._spec
        items: list[Item] = []
        for (group, plural), resource in sorted(self._context.store.resources.items()):
            qualified = f"{plural}.{group}" if group else plural
            if qualified in NOT_BACKED_UP or not resource.namespaced:
                continue
            if not resource_wanted(resource, spec.get("includedResources"), spec.get("excludedResources")):
                continue
            for obj in self._context.store.peek(plural, None, group):
                if (
                    namespace_wanted(namespace_of(obj), spec.get("includedNamespaces"), spec.get("excludedNamespaces"))
                    and labels_wanted(obj, spec)
                    and not is_deleting(obj)
                    and labels_of(obj).get(EXCLUDE_LABEL) != "true"
                ):
                    items.append(Item(resource, obj))
        return items + self._cluster_scoped(items)

    def _cluster_scoped(self, items: Sequence[Item]) -> list[Item]:
        """All with includeClusterResources; otherwise the namespaces, volumes and definitions of what is taken."""
        spec, store = self._spec, self._context.store
        wanted = spec.get("includeClusterResources")
        if wanted is None and not spec.get("includedNamespaces"):
            wanted = True
        spaces = {namespace_of(item.obj) for item in items}
        bound = {spec_of(i.obj).get("volumeName") for i in items if i.obj["kind"] == CLAIM.kind}
        definitions = {i.resource.definition for i in items if i.resource.definition}
        related: dict[str, set[Any]] = {
            "namespaces": spaces,
            "persistentvolumes": bound,
            "customresourcedefinitions": definitions,
        }
        found: list[Item] = []
        for (group, plural), resource in sorted(store.resources.items()):
            if resource.namespaced:
                continue
            if not resource_wanted(resource, spec.get("includedResources"), spec.get("excludedResources")):
                continue
            for obj in store.peek(plural, None, group):
                taken = name_of(obj) in related.get(plural, set())
                everything = wanted and plural != "namespaces" and labels_wanted(obj, spec)
                if (taken and wanted is not False) or (taken and plural == "namespaces") or everything:
                    found.append(Item(resource, obj))
        return found

    def _store_items(self, items: Sequence[Item], volumes: Sequence[Obj]) -> None:
        """Write all but velero-backup.json under backups/<name>/."""
        name = name_of(self._backup)
        base = f"backups/{name}/{name}"
        with tempfile.TemporaryFile() as file:
            write_items(file, items)
            file.seek(0)
            self._store.put_file(f"{base}.tar.gz", file)
        self._store.put_json(f"{base}-podvolumebackups.json.gz", volumes, compressed=True)
        self._store.put_json(f"{base}-resource-list.json.gz", self.outcome.resources, compressed=True)
        results = {"errors": {"velero": self.outcome.errors}, "warnings": {"velero": self.outcome.warnings}}
        self._store.put_json(f"{base}-results.gz", results, compressed=True)
        lines = [f'level=warning msg="{w}"' for w in self.outcome.warnings]
        lines += [f'level=error msg="{e}"' for e in self.outcome.errors]
        lines.append(f'level=info msg="Backed up a total of {len(items)} items"')
        self._store.put(f"{base}-logs.gz", gzip.compress("\n".join(lines).encode()))

    # -- volumes -----------------------------------------------------------------------------------------------------
    def _volumes(self, items: Sequence[Item]) -> tuple[Sequence[PodVolume], Sequence[str]]:
        everything = self._spec.get("defaultVolumesToFsBackup")
        if everything is None:
            everything = self._server.argument("default-volumes-to-fs-backup") == "true"
        pods = [item.obj for item in items if item.obj["kind"] == "Pod"]
        choice = pod_volumes(
            pods,
            {key_of(c): c for c in self._context.peek(CLAIM)},
            {name_of(v): v for v in self._context.peek(VOLUME)},
            everything=bool(everything),
        )
        return choice.volumes, choice.warnings

    async def _save(self, volume: PodVolume) -> None:
        """Save one volume's files; its PodVolumeBackup says how it went."""
        pod, node = volume.pod, str(spec_of(volume.pod).get("nodeName"))
        made = self._context.create(self._volume_backup(volume, node))
        if made is None:
            return
        problem = ""
        done = 0
        if not agent_on(self._context, self._server.namespace, node):
            problem = f"daemonset pod not found in running state in node {node}"
        else:
            self._phase(made, phase="InProgress", startTimestamp=timestamp(self._context.now()))
            try:
                repo = await self._repository(namespace_of(pod))
                snapshot = secrets.token_hex(16)
                folder = self._folder(volume)
                done = await asyncio.to_thread(repo.save, snapshot, folder, _ignore)
                self._phase(made, snapshotID=snapshot, path=f"/host_pods/{uid_of(pod)}/volumes/{volume.volume}")
            except (StoreError, OSError) as error:
                problem = str(error)
        ended = timestamp(self._context.now())
        if problem:
            self._phase(made, phase="Failed", message=problem, completionTimestamp=ended)
            where = f"{namespace_of(pod)}/{name_of(pod)}"
            self.outcome.errors.append(f"pod volume backup failed: {where} volume {volume.volume}: {problem}")
        else:
            progress = {"bytesDone": done, "totalBytes": done}
            self._phase(made, phase="Completed", progress=progress, completionTimestamp=ended)

    async def _repository(self, namespace: str) -> Repository:
        location = str(self._spec["storageLocation"])
        password = repository_password(self._context, self._server.namespace)
        try:
            repo = await asyncio.to_thread(repository, self._store, namespace, password)
        except StoreError as error:
            ensure_repository(self._context, self._server, location, namespace, str(error))
            raise
        ensure_repository(self._context, self._server, location, namespace)
        return repo

    def _folder(self, volume: PodVolume) -> Path:
        if volume.persistent_volume:
            return self._mounts.claim_folder(volume.persistent_volume)
        return self._context.folder("pods", uid_of(volume.pod), "volumes", volume.volume)

    def _volume_backup(self, volume: PodVolume, node: str) -> Obj:
        pod, backup = volume.pod, self._backup
        labels = backup_labels(backup)
        annotations: dict[str, str] = {}
        tags = {
            "backup": name_of(backup),
            "backup-uid": uid_of(backup),
            "ns": namespace_of(pod),
            "pod": name_of(pod),
            "pod-uid": uid_of(pod),
            "volume": volume.volume,
        }
        if volume.claim:
            claim = self._context.get(CLAIM, volume.claim, namespace_of(pod))
            labels["velero.io/pvc-uid"] = tags["pvc-uid"] = uid_of(claim or {})
            annotations["velero.io/pvc-name"] = volume.claim
        return {
            "apiVersion": "velero.io/v1",
            "kind": "PodVolumeBackup",
            "metadata": {
                "generateName": f"{name_of(backup)}-",
                "namespace": namespace_of(backup),
                "labels": labels,
                "annotations": annotations,
                "ownerReferences": [
                    {
                        "apiVersion": "velero.io/v1",
                        "kind": "Backup",
                        "name": name_of(backup),
                        "uid": uid_of(backup),
                        "controller": True,
                    }
                ],
            },
            "spec": {
                "backupStorageLocation": self._spec["storageLocation"],
                "node": node,
                "pod": {"kind": "Pod", "name": name_of(pod), "namespace": namespace_of(pod), "uid": uid_of(pod)},
                "repoIdentifier": self._store.identifier(namespace_of(pod)),
                "tags": tags,
                "uploaderType": "kopia",
                "volume": volume.volume,
            },
        }

    def _phase(self, made: Obj, **fields: object) -> None:
        found = self._context.current(VOLUME_BACKUP, made)
        if found is not None:
            self._context.set_status(VOLUME_BACKUP, found, {**status_of(found), **fields})


def _ignore(done: int) -> None:
    """Progress of one volume is told when it ends: they take seconds here."""


def write_items(file: IO[bytes], items: Sequence[Item]) -> None:
    """Velero's layout: resources/<resource>/{namespaces/<ns>|cluster}/<name>.json and metadata/version."""
    with tarfile.open(fileobj=file, mode="w:gz", compresslevel=6) as archive:
        _add(archive, "metadata/version", FORMAT_VERSION.encode())
        for item in items:
            where = f"namespaces/{namespace_of(item.obj)}" if item.resource.namespaced else "cluster"
            path = f"resources/{item.resource.qualified}/{where}/{name_of(item.obj)}.json"
            _add(archive, path, json.dumps(item.obj).encode())


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def record(store: ObjectStore, backup: Obj) -> None:
    """Write velero-backup.json, from which other clusters learn of the backup."""
    store.put_json(f"backups/{name_of(backup)}/velero-backup.json", backup)


def forget(store: ObjectStore, name: str, volumes: Sequence[Obj]) -> None:
    """Remove a backup and the data of its volumes from the object store."""
    for volume in volumes:
        snapshot = status_of(volume).get("snapshotID")
        if snapshot:
            store.delete(f"kopia/{spec_of(volume)['pod']['namespace']}/{snapshot}")
    store.delete_folder(f"backups/{name}/")
