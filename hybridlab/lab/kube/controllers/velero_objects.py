"""Velero's kinds, and what its server's own settings say: read from the pods and arguments of its Deployment."""

from __future__ import annotations

import configparser
from collections.abc import Mapping
from dataclasses import dataclass

from hybridlab.lab.kube.controllers.mounts import content_of
from hybridlab.lab.kube.controllers.objects import (
    POD,
    SECRET,
    Kind,
    Obj,
    is_deleting,
    is_ready,
    labels_of,
    name_of,
    namespace_of,
    spec_of,
    status_of,
)
from hybridlab.lab.kube.controllers.velero_repo import ObjectStore, StoreError
from hybridlab.lab.kube.controllers.work import Context

LOCATION = Kind("backupstoragelocations", "velero.io", "v1", "BackupStorageLocation")
BACKUP = Kind("backups", "velero.io", "v1", "Backup")
RESTORE = Kind("restores", "velero.io", "v1", "Restore")
SCHEDULE = Kind("schedules", "velero.io", "v1", "Schedule")
DELETION = Kind("deletebackuprequests", "velero.io", "v1", "DeleteBackupRequest")
VOLUME_BACKUP = Kind("podvolumebackups", "velero.io", "v1", "PodVolumeBackup")
VOLUME_RESTORE = Kind("podvolumerestores", "velero.io", "v1", "PodVolumeRestore")
REPOSITORY = Kind("backuprepositories", "velero.io", "v1", "BackupRepository")
KINDS = (LOCATION, BACKUP, RESTORE, SCHEDULE, DELETION)

BACKUP_LABEL = "velero.io/backup-name"
RESTORE_LABEL = "velero.io/restore-name"
LOCATION_LABEL = "velero.io/storage-location"
SCHEDULE_LABEL = "velero.io/schedule-name"
EXCLUDE_LABEL = "velero.io/exclude-from-backup"
REPO_SECRET = "velero-repo-credentials"
DEFAULT_PASSWORD = "static-passw0rd"  # Velero's constant, used where nobody set another
DONE = ("Completed", "PartiallyFailed")
SERVER_IMAGE = "velero/velero:"
PLUGIN_IMAGE = "velero-plugin-for-aws"


@dataclass(frozen=True)
class Server:
    """A Velero server that runs: its namespace and what its arguments say."""

    pod: Obj

    @property
    def namespace(self) -> str:
        return namespace_of(self.pod)

    @property
    def image(self) -> str:
        return str(self._container["image"])

    @property
    def _container(self) -> Obj:
        found: Obj = spec_of(self.pod)["containers"][0]
        return found

    def argument(self, name: str, default: str = "") -> str:
        for arg in self._container.get("args") or []:
            key, equals, value = str(arg).partition("=")
            if key == f"--{name}":
                return value if equals else "true"
        return default

    @property
    def plugins(self) -> list[str]:
        return [str(c.get("image", "")) for c in spec_of(self.pod).get("initContainers") or []]

    @property
    def credentials_secret(self) -> str:
        for volume in spec_of(self.pod).get("volumes") or []:
            if volume["name"] == "cloud-credentials":
                return str(volume["secret"]["secretName"])
        return ""


def is_server(pod: Obj) -> bool:
    containers = spec_of(pod).get("containers") or [{}]
    return SERVER_IMAGE in str(containers[0].get("image", "")) and (containers[0].get("args") or [""])[0] == "server"


def server_in(context: Context, namespace: str) -> Server | None:
    """The ready Velero server of a namespace; it works on objects of its own namespace only."""
    for pod in context.peek(POD, namespace):
        if is_server(pod) and is_ready(pod) and not is_deleting(pod):
            return Server(pod)
    return None


def agent_on(context: Context, namespace: str, node: str) -> bool:
    """Whether the node agent runs on a node: without it no volume there is read or written."""
    return any(
        labels_of(pod).get("name") == "node-agent" and spec_of(pod).get("nodeName") == node and is_ready(pod)
        for pod in context.peek(POD, namespace)
    )


def store_of(context: Context, server: Server, location: Obj) -> ObjectStore:
    """The object store of a location, with the credentials it names. Raises StoreError."""
    spec = spec_of(location)
    provider = str(spec.get("provider") or "")
    if provider.removeprefix("velero.io/") != "aws" or not any(PLUGIN_IMAGE in image for image in server.plugins):
        raise StoreError(f"unable to locate ObjectStore plugin named velero.io/{provider.removeprefix('velero.io/')}")
    access_key, secret_key = _credentials(context, server, location)
    config: Mapping[str, str] = spec.get("config") or {}
    where = spec["objectStorage"]
    prefix = str(where.get("prefix") or "").strip("/")
    return ObjectStore(
        bucket=str(where["bucket"]),
        prefix=f"{prefix}/" if prefix else "",
        endpoint=str(config.get("s3Url") or ""),
        region=str(config.get("region") or ""),
        path_style=str(config.get("s3ForcePathStyle") or "").lower() == "true",
        access_key=access_key,
        secret_key=secret_key,
    )


def _credentials(context: Context, server: Server, location: Obj) -> tuple[str, str]:
    reference = spec_of(location).get("credential")
    name = reference["name"] if reference else server.credentials_secret
    key = reference["key"] if reference else "cloud"
    secret = context.get(SECRET, name, server.namespace) if name else None
    if secret is None:
        raise StoreError(
            f'unable to get credentials: secret "{name}" not found' if name else "no credentials were given"
        )
    data = content_of(secret)
    if key not in data:
        raise StoreError(f'unable to get key for secret: secret "{name}" has no key "{key}"')
    profile = str((spec_of(location).get("config") or {}).get("profile") or "default")
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(data[key].decode())
        return parser[profile]["aws_access_key_id"].strip(), parser[profile]["aws_secret_access_key"].strip()
    except (configparser.Error, KeyError, UnicodeDecodeError) as error:
        raise StoreError(f"failed to get shared config profile, {profile}") from error


def repository_password(context: Context, namespace: str) -> str:
    """The password of the volume repositories; Velero makes the Secret with its constant where it is missing."""
    secret = context.get(SECRET, REPO_SECRET, namespace)
    if secret is None:
        context.create(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": REPO_SECRET, "namespace": namespace},
                "type": "Opaque",
                "stringData": {"repository-password": DEFAULT_PASSWORD},
            }
        )
        return DEFAULT_PASSWORD
    return content_of(secret).get("repository-password", b"").decode()


def ensure_repository(context: Context, server: Server, location: str, volume_namespace: str, error: str = "") -> None:
    """The BackupRepository of a namespace's volumes, Ready or with what is wrong."""
    name = f"{volume_namespace}-{location}-kopia"
    found = context.get(REPOSITORY, name, server.namespace)
    if found is None:
        labels = {
            LOCATION_LABEL: location,
            "velero.io/volume-namespace": volume_namespace,
            "velero.io/repository-type": "kopia",
        }
        found = context.create(
            {
                "apiVersion": "velero.io/v1",
                "kind": "BackupRepository",
                "metadata": {"name": name, "namespace": server.namespace, "labels": labels},
                "spec": {
                    "backupStorageLocation": location,
                    "maintenanceFrequency": "1h0m0s",
                    "repositoryType": "kopia",
                    "resticIdentifier": "",
                    "volumeNamespace": volume_namespace,
                },
            }
        )
    if found is not None:
        status = {**status_of(found), "phase": "NotReady" if error else "Ready"}
        status.pop("message", None)
        if error:
            status["message"] = error
        context.set_status(REPOSITORY, found, status)


def backup_labels(backup: Obj) -> dict[str, str]:
    return {BACKUP_LABEL: name_of(backup), "velero.io/backup-uid": backup["metadata"]["uid"]}
