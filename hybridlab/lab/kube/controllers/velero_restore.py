"""Restoring a Velero backup: objects in Velero's order, then the files of pod volumes while their pods wait."""

from __future__ import annotations

import asyncio
import json
import secrets
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridlab.lab.kube.controllers.mounts import Mounts
from hybridlab.lab.kube.controllers.objects import (
    CLAIM,
    NAMESPACE,
    POD,
    Obj,
    annotations_of,
    is_deleting,
    labels_of,
    name_of,
    namespace_of,
    spec_of,
    status_of,
    timestamp,
    uid_of,
)
from hybridlab.lab.kube.controllers.velero_backup import Item, Outcome
from hybridlab.lab.kube.controllers.velero_modifiers import Rule, modified
from hybridlab.lab.kube.controllers.velero_objects import (
    BACKUP_LABEL,
    RESTORE_LABEL,
    VOLUME_BACKUP,
    VOLUME_RESTORE,
    Server,
    agent_on,
    ensure_repository,
    repository_password,
)
from hybridlab.lab.kube.controllers.velero_repo import ObjectStore, StoreError, repository
from hybridlab.lab.kube.controllers.velero_select import (
    NOT_RESTORED,
    labels_wanted,
    namespace_wanted,
    resource_wanted,
)
from hybridlab.lab.kube.controllers.work import Context
from hybridlab.lab.kube.errors import ApiError

RESTORE_S = 0.5
WAIT_CONTAINER = "restore-wait"
FS_TIMEOUT_S = 4 * 3600.0  # how long a restored pod may take until its volumes can be filled; a minute at any speed
_ORDER = [
    "customresourcedefinitions.apiextensions.k8s.io",
    "namespaces",
    "storageclasses.storage.k8s.io",
    "persistentvolumes",
    "persistentvolumeclaims",
    "serviceaccounts",
    "secrets",
    "configmaps",
    "limitranges",
    "pods",
    "replicasets.apps",
]
_BINDINGS = ("pv.kubernetes.io/", "volume.kubernetes.io/", "volume.beta.kubernetes.io/")


@dataclass(frozen=True)
class Pending:
    """A volume to fill: the snapshot, and the restored pod that waits for it."""

    pod: Obj
    volume: str
    snapshot: str
    source_namespace: str


class RestoreRun:
    """One restore being made."""

    def __init__(
        self,
        context: Context,
        server: Server,
        mounts: Mounts,
        store: ObjectStore,
        restore: Obj,
        backup: Obj,
        rules: Sequence[Rule] = (),
    ) -> None:
        self._rules = rules
        self._context = context
        self._server = server
        self._mounts = mounts
        self._store = store
        self._restore = restore
        self._backup = backup
        self._spec = spec_of(restore)
        self._mapping: dict[str, str] = self._spec.get("namespaceMapping") or {}
        self.outcome = Outcome()

    async def run(self) -> Outcome:
        """Do it. Raises StoreError where the backup can't be read (the restore Failed)."""
        await self._context.takes(RESTORE_S)
        objects = await asyncio.to_thread(self._download)
        items = self._wanted(objects)
        snapshots = self._snapshots()
        pending: list[Pending] = []
        for item in items:
            try:
                pending += self._put(item, snapshots)
            except ApiError as error:
                where = f"{item.resource.qualified}/{name_of(item.obj)}"
                self.outcome.errors.append(f"error restoring {where}: {error.message}")
        self.outcome.items = len(items)
        await asyncio.gather(*(self._fill(volume) for volume in pending))
        return self.outcome

    # -- reading the backup ------------------------------------------------------------------------------------------
    def _download(self) -> list[tuple[str, Obj]]:
        """(resource, object) of everything in the backup. Raises StoreError."""
        name = name_of(self._backup)
        key = f"backups/{name}/{name}.tar.gz"
        found: list[tuple[str, Obj]] = []
        with tempfile.TemporaryFile() as file:
            shutil.copyfileobj(self._store.open(key), file)
            file.seek(0)
            try:
                with tarfile.open(fileobj=file, mode="r:gz") as archive:
                    for info in archive:
                        parts = info.name.split("/")
                        source = archive.extractfile(info) if parts[0] == "resources" and info.isreg() else None
                        if source is not None:
                            found.append((parts[1], json.loads(source.read())))
                # the tar ends before the gzip does: read on, so that its checksum is looked at
                file.seek(0)
                _check_gzip(file)
            except (tarfile.TarError, OSError, EOFError, zlib.error, ValueError) as error:
                raise StoreError(f"error unzipping and extracting: {error}") from error
        return found

    def _wanted(self, objects: Sequence[tuple[str, Obj]]) -> list[Item]:
        """The objects to restore, in order."""
        spec, items = self._spec, []
        excluded = list(spec.get("excludedResources") or [])
        resources = {r.qualified: r for r in self._context.store.resources.values()}
        unknown: set[str] = set()
        for qualified, obj in objects:
            resource = resources.get(qualified)
            if qualified in NOT_RESTORED:
                continue
            if resource is None:
                unknown.add(qualified)
                continue
            if not resource_wanted(resource, spec.get("includedResources"), excluded) or not labels_wanted(obj, spec):
                continue
            space = namespace_of(obj) if resource.namespaced else ""
            if space and not namespace_wanted(space, spec.get("includedNamespaces"), spec.get("excludedNamespaces")):
                continue
            if qualified == "namespaces" and not namespace_wanted(
                name_of(obj), spec.get("includedNamespaces"), spec.get("excludedNamespaces")
            ):
                continue
            items.append(Item(resource, obj))
        for qualified in sorted(unknown):
            self.outcome.warnings.append(
                f"Skipping restore of resource {qualified} because it cannot be resolved via discovery"
            )

        def order(item: Item) -> tuple[int, str]:
            name = item.resource.qualified
            return (_ORDER.index(name), name) if name in _ORDER else (len(_ORDER), name)

        return sorted(items, key=order)

    def _snapshots(self) -> dict[tuple[str, str, str], str]:
        """Snapshot by (namespace, pod, volume); a claim that several pods mount is found under each of them."""
        found: dict[tuple[str, str, str], str] = {}
        for volume in self._context.peek(VOLUME_BACKUP, namespace_of(self._backup)):
            if labels_of(volume).get(BACKUP_LABEL) != name_of(self._backup):
                continue
            if status_of(volume).get("phase") == "Completed" and status_of(volume).get("snapshotID"):
                pod = spec_of(volume)["pod"]
                found[(pod["namespace"], pod["name"], spec_of(volume)["volume"])] = status_of(volume)["snapshotID"]
        return found

    # -- objects -----------------------------------------------------------------------------------------------------
    def _put(self, item: Item, snapshots: dict[tuple[str, str, str], str]) -> list[Pending]:
        """Create one object; what exists is left alone with a warning where it differs."""
        qualified, source = item.resource.qualified, item.obj
        if qualified == "persistentvolumes":
            return []  # file-system backups come back into volumes provisioned anew
        if qualified == "namespaces":
            self._namespace(self._mapping.get(name_of(source), name_of(source)), source)
            return []
        if qualified == "configmaps" and name_of(source) == "kube-root-ca.crt":
            return []
        if qualified == "pods" and status_of(source).get("phase") in ("Succeeded", "Failed"):
            return []
        if qualified == "jobs.batch" and any(
            c["type"] == "Complete" for c in status_of(source).get("conditions") or []
        ):
            return []
        obj = self._clean(item)
        volumes: list[str] = []
        if qualified == "pods":
            key = (namespace_of(source), name_of(source))
            volumes = [v["name"] for v in spec_of(source).get("volumes") or [] if (*key, v["name"]) in snapshots]
            if volumes:
                self._add_wait(obj, volumes)
        obj = modified(self._rules, qualified, source, obj)
        if item.resource.namespaced:
            self._namespace(namespace_of(obj), None)
        made = self._context.create(obj)
        if made is None:
            self._exists(item, obj)
            return []
        return [
            Pending(made, v, snapshots[(namespace_of(source), name_of(source), v)], namespace_of(source))
            for v in volumes
        ]

    def _namespace(self, name: str, source: Obj | None) -> None:
        if self._context.get(NAMESPACE, name) is not None:
            return
        meta: Obj = {"name": name}
        if source is not None:
            labels = {k: v for k, v in labels_of(source).items() if k != "kubernetes.io/metadata.name"}
            meta.update(labels=labels, annotations=annotations_of(source))
        self._context.create({"apiVersion": "v1", "kind": "Namespace", "metadata": meta})

    def _exists(self, item: Item, wanted: Obj) -> None:
        found = self._context.store.get(
            item.resource.plural, name_of(wanted), namespace_of(wanted) or None, item.resource.group
        )
        if found is None or item.resource.kind == "ServiceAccount":
            return
        same = all(found.get(k) == v for k, v in wanted.items() if k not in ("metadata", "status"))
        if same:
            return
        if self._spec.get("existingResourcePolicy") == "update":
            self._context.store.update({**wanted, "metadata": {**found["metadata"], **wanted["metadata"]}})
            return
        self.outcome.warnings.append(
            f'could not restore, {item.resource.qualified} "{name_of(wanted)}" already exists. Warning: the in-cluster '
            "version is different than the backed-up version"
        )

    def _clean(self, item: Item) -> Obj:
        """The object without what belongs to its old life."""
        source = item.obj
        meta: Obj = {
            "name": name_of(source),
            "labels": {
                **labels_of(source),
                BACKUP_LABEL: name_of(self._backup),
                RESTORE_LABEL: name_of(self._restore),
            },
        }
        annotations = dict(annotations_of(source))
        if item.resource.namespaced:
            meta["namespace"] = self._mapping.get(namespace_of(source), namespace_of(source))
        obj: Obj = {k: v for k, v in source.items() if k not in ("metadata", "status")}
        spec: Any = dict(obj["spec"]) if isinstance(obj.get("spec"), dict) else None
        if item.resource.kind == CLAIM.kind and spec is not None:
            spec.pop("volumeName", None)
            annotations = {k: v for k, v in annotations.items() if not k.startswith(_BINDINGS)}
        elif item.resource.kind == "Service" and spec is not None:
            if spec.get("clusterIP") != "None":
                spec.pop("clusterIP", None)
                spec.pop("clusterIPs", None)
            if not self._spec.get("preserveNodePorts"):
                spec["ports"] = [{k: v for k, v in p.items() if k != "nodePort"} for p in spec.get("ports") or []]
        elif item.resource.kind == "Pod" and spec is not None:
            spec.pop("nodeName", None)
            spec.pop("priority", None)
        elif item.resource.kind == "Job" and spec is not None:
            spec = _job_without_its_uid(spec)
            meta["labels"] = {k: v for k, v in meta["labels"].items() if "controller-uid" not in k}
        if spec is not None:
            obj["spec"] = spec
        if annotations:
            meta["annotations"] = annotations
        return {**obj, "metadata": meta}

    # -- volumes -----------------------------------------------------------------------------------------------------
    def _add_wait(self, pod: Obj, volumes: Sequence[str]) -> None:
        """The init container that holds the pod back until its volumes are filled."""
        container = {
            "name": WAIT_CONTAINER,
            "image": self._server.image,
            "command": ["/velero-restore-helper"],
            "args": [uid_of(self._restore)],
            "volumeMounts": [{"name": name, "mountPath": f"/restores/{name}"} for name in volumes],
        }
        spec = dict(pod["spec"])
        others = [c for c in spec.get("initContainers") or [] if c["name"] != WAIT_CONTAINER]
        spec["initContainers"] = [container, *others]
        pod["spec"] = spec

    async def _fill(self, pending: Pending) -> None:
        made = self._context.create(self._volume_restore(pending))
        if made is None:
            return
        problem, done = "", 0
        try:
            pod = await self._waiting(pending.pod)
            node = str(spec_of(pod)["nodeName"])
            self._phase(made, phase="InProgress", node=node, startTimestamp=timestamp(self._context.now()))
            password = repository_password(self._context, self._server.namespace)
            repo = await asyncio.to_thread(repository, self._store, pending.source_namespace, password)
            location = str(spec_of(self._backup)["storageLocation"])
            ensure_repository(self._context, self._server, location, pending.source_namespace)
            folder = self._folder(pod, pending.volume)
            done = await asyncio.to_thread(repo.load, pending.snapshot, folder, lambda _: None)
        except (StoreError, OSError, TimeoutError) as error:
            problem = str(error)
        ended = timestamp(self._context.now())
        if problem:
            self._phase(made, phase="Failed", message=problem, completionTimestamp=ended)
            where = f"{namespace_of(pending.pod)}/{name_of(pending.pod)}"
            self.outcome.errors.append(f"pod volume restore failed: {where} volume {pending.volume}: {problem}")
        else:
            progress = {"bytesDone": done, "totalBytes": done}
            self._phase(made, phase="Completed", progress=progress, completionTimestamp=ended)

    async def _waiting(self, pod: Obj) -> Obj:
        """The restored pod once its init container waits on a node with an agent. Raises TimeoutError."""
        changed = asyncio.Event()
        watch = self._context.store.subscribe()

        async def follow() -> None:
            while True:
                _, resource, _ = await watch.get()
                if resource.plural == "pods":
                    changed.set()

        follower = asyncio.ensure_future(follow())
        loop = asyncio.get_running_loop()
        end = loop.time() + max(self._context.scaled(FS_TIMEOUT_S), 60.0)
        try:
            while True:
                changed.clear()
                found = self._context.current(POD, pod)
                if found is None or is_deleting(found):
                    raise TimeoutError(f"pod {name_of(pod)} was deleted before its volumes were restored")
                ready = any(
                    c["name"] == WAIT_CONTAINER and "running" in c["state"]
                    for c in status_of(found).get("initContainerStatuses") or []
                )
                if ready and agent_on(self._context, self._server.namespace, str(spec_of(found).get("nodeName"))):
                    return found
                left = end - loop.time()
                if left <= 0:
                    raise TimeoutError("timed out waiting for all PodVolumeRestores to complete")
                try:
                    await asyncio.wait_for(changed.wait(), left)
                except TimeoutError:
                    continue
        finally:
            follower.cancel()
            self._context.store.unsubscribe(watch)

    def _folder(self, pod: Obj, volume: str) -> Path:
        source = next(v for v in spec_of(pod)["volumes"] if v["name"] == volume)
        if "persistentVolumeClaim" not in source:
            return self._context.folder("pods", uid_of(pod), "volumes", volume)
        claim = self._context.get(CLAIM, source["persistentVolumeClaim"]["claimName"], namespace_of(pod))
        name = str(spec_of(claim or {}).get("volumeName") or "")
        if not name:
            raise OSError(f"claim of volume {volume} is not bound")
        return self._mounts.claim_folder(name)

    def _volume_restore(self, pending: Pending) -> Obj:
        pod, restore = pending.pod, self._restore
        return {
            "apiVersion": "velero.io/v1",
            "kind": "PodVolumeRestore",
            "metadata": {
                "name": f"{name_of(restore)}-{secrets.token_hex(3)}",
                "namespace": namespace_of(restore),
                "labels": {
                    RESTORE_LABEL: name_of(restore),
                    "velero.io/restore-uid": uid_of(restore),
                    "velero.io/pod-uid": uid_of(pod),
                },
                "ownerReferences": [
                    {
                        "apiVersion": "velero.io/v1",
                        "kind": "Restore",
                        "name": name_of(restore),
                        "uid": uid_of(restore),
                        "controller": True,
                    }
                ],
            },
            "spec": {
                "backupStorageLocation": spec_of(self._backup)["storageLocation"],
                "pod": {"kind": "Pod", "name": name_of(pod), "namespace": namespace_of(pod), "uid": uid_of(pod)},
                "repoIdentifier": self._store.identifier(pending.source_namespace),
                "snapshotID": pending.snapshot,
                "sourceNamespace": pending.source_namespace,
                "uploaderType": "kopia",
                "volume": pending.volume,
            },
        }

    def _phase(self, made: Obj, **fields: object) -> None:
        found = self._context.current(VOLUME_RESTORE, made)
        if found is not None:
            self._context.set_status(VOLUME_RESTORE, found, {**status_of(found), **fields})


def _check_gzip(file: Any) -> None:
    import gzip

    with gzip.open(file) as whole:
        while whole.read(2**20):
            pass


def _job_without_its_uid(spec: Obj) -> Obj:
    template = dict(spec["template"])
    meta = dict(template.get("metadata") or {})
    meta["labels"] = {k: v for k, v in (meta.get("labels") or {}).items() if "controller-uid" not in k}
    template["metadata"] = meta
    return {**{k: v for k, v in spec.items() if k != "selector"}, "template": template}
