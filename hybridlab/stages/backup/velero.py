"""Velero as objects: chart values, credentials, Schedule, Backup."""

from __future__ import annotations

import base64
from collections.abc import Mapping

from hybridlab.models import Json
from hybridlab.params import Params
from hybridlab.stages.nodes import SMALL_TAINT
from hybridlab.stages.objects import MANAGED

NAMESPACE = "velero"
CHART = ("https://vmware-tanzu.github.io/helm-charts", "velero", "12.1.0")
VELERO = "1.18"
PLUGIN_IMAGE = "docker.io/velero/velero-plugin-for-aws:v1.13.0"
"""Not 1.14.2: there uploads over 5 MiB fail (velero#10543), and small ones hide it."""
CREDENTIALS = "hybridlab-s3"
REPO_CREDENTIALS = "velero-repo-credentials"
SCHEDULE = "hybridlab-daily"
LOCATION = "default"


def namespace() -> dict[str, Json]:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": dict(MANAGED)}}


def chart_values(params: Params, endpoint: str) -> dict[str, Json]:
    """Values of the chart: file-system backup of all pod volumes, one S3 location, node agents on every node.

    ``checksumAlgorithm: ""`` because OCI's S3 refuses the newer checksums. Maintenance and memory are capped: kopia
    takes 250 MB for 10,000 files, and a 1 GB node has little more.
    """
    backup = params.backup
    toleration = {"key": SMALL_TAINT[0], "operator": "Exists", "effect": SMALL_TAINT[2]}
    return {
        "deployNodeAgent": True,
        "snapshotsEnabled": False,
        "credentials": {"existingSecret": CREDENTIALS},
        "initContainers": [
            {
                "name": "velero-plugin-for-aws",
                "image": PLUGIN_IMAGE,
                "volumeMounts": [{"mountPath": "/target", "name": "plugins"}],
            }
        ],
        "configuration": {
            "uploaderType": backup.uploader,
            "defaultVolumesToFsBackup": True,
            "defaultRepoMaintainFrequency": "24h",
            "backupStorageLocation": [
                {
                    "name": LOCATION,
                    "provider": "aws",
                    "default": True,
                    "bucket": backup.bucket,
                    "prefix": params.cluster,
                    "config": {
                        "region": backup.region,
                        "s3Url": endpoint,
                        "s3ForcePathStyle": "true",
                        "checksumAlgorithm": "",
                    },
                }
            ],
        },
        "nodeAgent": {"tolerations": [toleration]},
        "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}},
    }


def credentials_secret(access_key: str, secret_key: str) -> dict[str, Json]:
    text = f"[default]\naws_access_key_id={access_key}\naws_secret_access_key={secret_key}\n"
    return _secret(CREDENTIALS, {"cloud": text})


def repo_secret(password: str) -> dict[str, Json]:
    """Without it the repository is encrypted with a constant that everybody knows (static-passw0rd)."""
    return _secret(REPO_CREDENTIALS, {"repository-password": password})


def _secret(name: str, data: Mapping[str, str]) -> dict[str, Json]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": dict(MANAGED)},
        "type": "Opaque",
        "data": {k: base64.b64encode(v.encode()).decode() for k, v in data.items()},
    }


def backup_spec(params: Params) -> dict[str, Json]:
    return {
        "includedNamespaces": [params.migrate.namespace],
        "storageLocation": LOCATION,
        "defaultVolumesToFsBackup": True,
        "snapshotVolumes": False,
        "ttl": f"{params.backup.ttl_h}h0m0s",
    }


def schedule(params: Params) -> dict[str, Json]:
    return {
        "apiVersion": "velero.io/v1",
        "kind": "Schedule",
        "metadata": {"name": SCHEDULE, "namespace": NAMESPACE, "labels": dict(MANAGED)},
        "spec": {"schedule": params.backup.schedule, "template": backup_spec(params)},
    }


def backup(params: Params, name: str) -> dict[str, Json]:
    return {
        "apiVersion": "velero.io/v1",
        "kind": "Backup",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": dict(MANAGED)},
        "spec": backup_spec(params),
    }
