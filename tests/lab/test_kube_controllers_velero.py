"""Velero against a real S3 server: what is in a backup, what comes back, and what is said when it can't."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import tarfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from kube_controllers_lab import (
    ControllersLab,
    Obj,
    claim,
    configmap,
    controllers_lab,
    mounting,
    names,
    workload,
)

from hybridlab.lab.kube.controllers.commands import owners_file
from hybridlab.lab.s3 import S3Part

VELERO_REPO = "https://vmware-tanzu.github.io/helm-charts"
Body = Callable[[ControllersLab, S3Part], Awaitable[None]]


def run_velero(body: Body, folder: Path, **values: Any) -> None:
    """Run a test's body with three nodes, a bucket ``backups`` and Velero installed by its chart."""

    async def whole() -> None:
        async with controllers_lab(folder) as lab:
            s3 = S3Part()
            await s3.start(lab.world)
            try:
                (s3.root / "backups").mkdir(parents=True)
                await lab.three_nodes()
                await install(lab, s3, **values)
                await body(lab, s3)
            finally:
                await s3.stop()

    asyncio.run(whole())


async def install(lab: ControllersLab, s3: S3Part, **values: Any) -> None:
    lab.store.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "velero"}})
    text = f"[default]\naws_access_key_id={s3.access_key}\naws_secret_access_key={s3.secret_key}\n"
    for name, data in (("keys", {"cloud": text}), ("velero-repo-credentials", {"repository-password": "own"})):
        meta = {"name": name, "namespace": "velero"}
        lab.store.create({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": data})
    config = {"s3Url": s3.endpoint, "region": "lab", "s3ForcePathStyle": "true", "checksumAlgorithm": ""}
    location = {
        "name": "default",
        "provider": "aws",
        "bucket": "backups",
        "prefix": "p",
        "default": True,
        "config": config,
    }
    plugin = {
        "name": "aws",
        "image": "velero/velero-plugin-for-aws:v1.13.0",
        "volumeMounts": [{"mountPath": "/target", "name": "plugins"}],
    }
    merged = {
        "deployNodeAgent": True,
        "snapshotsEnabled": False,
        "configuration": {"backupStorageLocation": [location], "defaultVolumesToFsBackup": True},
        "credentials": {"existingSecret": "keys"},
        "initContainers": [plugin],
        **values,
    }
    spec = {
        "chart": "velero",
        "repo": VELERO_REPO,
        "version": "12.1.0",
        "targetNamespace": "velero",
        "backOffLimit": 2,
        "valuesContent": json.dumps(merged),
    }
    meta = {"name": "velero", "namespace": "kube-system"}
    lab.store.create({"apiVersion": "helm.cattle.io/v1", "kind": "HelmChart", "metadata": meta, "spec": spec})
    await lab.until(lambda: phase(lab, "backupstoragelocations", "default"), "location is validated")
    await lab.until(lambda: all(lab.is_ready(p) for p in lab.pods("velero")), "velero runs")


def velero(lab: ControllersLab, plural: str, name: str) -> Obj:
    if ("velero.io", plural) not in lab.store.resources:
        return {}
    return lab.store.get(plural, name, "velero", "velero.io") or {}


def phase(lab: ControllersLab, plural: str, name: str) -> str:
    return str(velero(lab, plural, name).get("status", {}).get("phase") or "")


def request(kind: str, name: str, **spec: Any) -> Obj:
    return {"apiVersion": "velero.io/v1", "kind": kind, "metadata": {"name": name, "namespace": "velero"}, "spec": spec}


async def finished(lab: ControllersLab, plural: str, name: str) -> Obj:
    ends = ("Completed", "PartiallyFailed", "Failed", "FailedValidation")
    await lab.until(lambda: phase(lab, plural, name) in ends, f"{plural} {name} ends", 40)
    return velero(lab, plural, name)["status"]  # type: ignore[no-any-return]


async def shop(lab: ControllersLab) -> Path:
    """A namespace with a StatefulSet and files in its claim; returns the claim's folder."""
    lab.store.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}})
    template = claim("data")
    template["metadata"].pop("namespace")
    made = workload("StatefulSet", "db", namespace="shop", serviceName="db", volumeClaimTemplates=[template])
    made["spec"]["template"]["spec"]["containers"][0]["volumeMounts"] = [{"name": "data", "mountPath": "/data"}]
    lab.store.create(made)
    lab.store.create(configmap("settings", {"a": "b"}, namespace="shop"))
    await lab.until(lambda: lab.phase("db-0", "shop") == "Running", "db runs")
    return folder_of(lab, "data-db-0", "shop")


def folder_of(lab: ControllersLab, claim_name: str, namespace: str) -> Path:
    bound = lab.store.must_get("persistentvolumeclaims", claim_name, namespace)
    return lab.folder / "volumes" / str(bound["spec"]["volumeName"])


def test_backup_and_restore_into_another_namespace_bring_back_the_same_bytes(tmp_path: Path) -> None:
    async def body(lab: ControllersLab, s3: S3Part) -> None:
        assert phase(lab, "backupstoragelocations", "default") == "Available"
        folder = await shop(lab)
        big = os.urandom(9 * 2**20)  # more than one part of a multipart upload
        (folder / "big").write_bytes(big)
        (folder / "sub").mkdir()
        (folder / "sub" / "small").write_text("x", encoding="utf-8")
        (folder / "link").symlink_to("sub/small")
        os.link(folder / "big", folder / "again")
        (folder / "empty").touch(mode=0o600)
        folder.chmod(0o750)
        lab.store.create(request("Backup", "b1", includedNamespaces=["shop"], ttl="24h0m0s"))
        status = await finished(lab, "backups", "b1")
        assert status["phase"] == "Completed", status
        assert status["progress"]["itemsBackedUp"] == status["progress"]["totalItems"] > 4
        volumes = lab.store.list("podvolumebackups", "velero", "velero.io")
        assert [v["status"]["phase"] for v in volumes] == ["Completed"]
        assert volumes[0]["metadata"]["annotations"]["velero.io/pvc-name"] == "data-db-0"
        assert volumes[0]["status"]["progress"]["bytesDone"] == len(big) + 1
        root = s3.root / "backups" / "p"
        with tarfile.open(root / "backups/b1/b1.tar.gz") as archive:
            inside = archive.getnames()
        assert "resources/configmaps/namespaces/shop/settings.json" in inside
        assert "resources/statefulsets.apps/namespaces/shop/db.json" in inside
        stored = b"".join(p.read_bytes() for p in (root / "kopia" / "shop").iterdir())
        assert len(stored) > len(big)
        assert big[:64] not in stored
        assert phase(lab, "backuprepositories", "shop-default-kopia") == "Ready"

        lab.store.create(request("Restore", "r1", backupName="b1", namespaceMapping={"shop": "drill"}))
        status = await finished(lab, "restores", "r1")
        assert status["phase"] == "Completed", status
        await lab.until(lambda: lab.phase("db-0", "drill") == "Running", "restored pod runs")
        copy = folder_of(lab, "data-db-0", "drill")
        assert copy != folder
        assert (copy / "big").read_bytes() == big
        assert (copy / "again").stat().st_ino == (copy / "big").stat().st_ino
        assert (copy / "link").readlink() == Path("sub/small")
        kept = json.loads(owners_file(copy).read_text(encoding="utf-8"))  # owners and modes, beside the files
        assert kept["empty"] == [os.getuid(), os.getgid(), 0o600]
        assert kept["."][2] == 0o750  # the folder itself as well
        assert lab.store.must_get("configmaps", "settings", "drill")["data"] == {"a": "b"}
        owner = lab.pod("db-0", "drill")["metadata"]["ownerReferences"][0]
        assert owner["uid"] == lab.store.must_get("statefulsets", "db", "drill", "apps")["metadata"]["uid"]
        assert [v["status"]["phase"] for v in lab.store.list("podvolumerestores", "velero", "velero.io")] == [
            "Completed"
        ]
        # once more into what is there already: nothing is overwritten
        (copy / "sub" / "small").write_text("newer", encoding="utf-8")
        lab.store.create(request("Restore", "r2", backupName="b1", namespaceMapping={"shop": "drill"}))
        status = await finished(lab, "restores", "r2")
        assert status["phase"] == "Completed"
        assert (copy / "sub" / "small").read_text(encoding="utf-8") == "newer"

    run_velero(body, tmp_path)


def test_one_flipped_byte_makes_the_restore_fail_and_say_so(tmp_path: Path) -> None:
    async def body(lab: ControllersLab, s3: S3Part) -> None:
        folder = await shop(lab)
        (folder / "file").write_bytes(b"a" * 100_000)
        lab.store.create(request("Backup", "b1", includedNamespaces=["shop"]))
        assert (await finished(lab, "backups", "b1"))["phase"] == "Completed"
        snapshot = lab.store.list("podvolumebackups", "velero", "velero.io")[0]["status"]["snapshotID"]
        _flip(s3.root / "backups/p/kopia/shop" / snapshot, 50_000)
        lab.store.create(request("Restore", "r1", backupName="b1", namespaceMapping={"shop": "drill"}))
        status = await finished(lab, "restores", "r1")
        assert status["phase"] == "PartiallyFailed"
        assert status["errors"] == 1
        assert "data corruption" in status["failureReason"]
        restored = lab.store.list("podvolumerestores", "velero", "velero.io")[0]["status"]
        assert restored["phase"] == "Failed"
        assert "data corruption" in restored["message"]
        assert lab.phase("db-0", "drill") == "Pending"
        _flip(s3.root / "backups/p/backups/b1/b1.tar.gz", 900)
        lab.store.create(request("Restore", "r2", backupName="b1", namespaceMapping={"shop": "other"}))
        status = await finished(lab, "restores", "r2")
        assert status["phase"] == "Failed"
        assert "error unzipping and extracting" in status["failureReason"]

    run_velero(body, tmp_path)


def test_a_resource_modifier_changes_what_restored_pods_run(tmp_path: Path) -> None:
    async def body(lab: ControllersLab, s3: S3Part) -> None:
        folder = await shop(lab)
        (folder / "file").write_bytes(b"kept")
        lab.store.create(request("Backup", "b1", includedNamespaces=["shop"]))
        assert (await finished(lab, "backups", "b1"))["phase"] == "Completed"
        name = lab.store.must_get("pods", "db-0", "shop")["spec"]["containers"][0]["name"]
        asleep = {"spec": {"containers": [{"name": name, "image": "busybox:1.37", "command": ["sleep", "86400"]}]}}
        rules = [
            {
                "conditions": {"groupResource": "pods", "resourceNameRegex": "^db-0$", "namespaces": ["shop"]},
                "strategicPatches": [{"patchData": json.dumps(asleep)}],
            },
            {
                "conditions": {"groupResource": "pods", "resourceNameRegex": "^other$"},
                "patches": [{"operation": "add", "path": "/spec/containers/0/image", "value": "nobody:1"}],
            },
        ]
        text = json.dumps({"version": "v1", "resourceModifierRules": rules})
        meta = {"name": "still", "namespace": "velero"}
        lab.store.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"rules.yaml": text}})
        wanted = {"backupName": "b1", "namespaceMapping": {"shop": "drill"}, "includedResources": ["pods", "pvc"]}
        still = {"kind": "configmap", "name": "still"}
        lab.store.create(request("Restore", "r1", **wanted, resourceModifier=still))
        status = await finished(lab, "restores", "r1")
        assert status["phase"] == "Completed", status
        spec = lab.store.must_get("pods", "db-0", "drill")["spec"]
        assert [(c["image"], c["command"]) for c in spec["containers"]] == [("busybox:1.37", ["sleep", "86400"])]
        assert spec["initContainers"][0]["name"] == "restore-wait"
        assert lab.store.must_get("pods", "db-0", "shop")["spec"]["containers"][0]["image"] != "busybox:1.37"

        missing = {"kind": "configmap", "name": "nobody"}
        lab.store.create(request("Restore", "r2", **wanted, resourceModifier=missing))
        status = await finished(lab, "restores", "r2")
        assert status["phase"] == "FailedValidation"
        assert "failed to get resource modifiers configmap velero/nobody" in status["validationErrors"][0]

    run_velero(body, tmp_path)


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[min(at, len(data) - 1)] ^= 1
    path.write_bytes(bytes(data))


def test_what_a_backup_leaves_out_is_said(tmp_path: Path) -> None:
    async def body(lab: ControllersLab, s3: S3Part) -> None:
        await shop(lab)
        host = {"name": "host", "hostPath": {"path": "/srv"}}
        lab.store.create(claim("unused", namespace="shop"))
        pinned = {"nodeSelector": {"kubernetes.io/hostname": "nowhere"}}
        lab.store.create(claim("waiting", namespace="shop"))
        lab.store.create(mounting("waits", "waiting", namespace="shop", **pinned))
        lab.store.create(claim("shared", namespace="shop"))
        for name in ("one", "two"):
            lab.store.create(mounting(name, "shared", host, namespace="shop"))
        await lab.until(lambda: all(lab.phase(n, "shop") == "Running" for n in ("one", "two")), "both run")

        def annotate(found: Obj) -> None:
            found["metadata"]["annotations"] = {"backup.velero.io/backup-volumes": "data,host"}

        for name in ("one", "two"):
            lab.store.patch("pods", name, "shop", "", annotate)
        lab.store.create(request("Backup", "b1", includedNamespaces=["shop"]))
        status = await finished(lab, "backups", "b1")
        assert status["phase"] == "Completed"
        volumes = lab.store.list("podvolumebackups", "velero", "velero.io")
        saved = sorted(v["metadata"]["annotations"].get("velero.io/pvc-name", "") for v in volumes)
        assert saved == ["data-db-0", "shared"]  # not unused, not waiting, shared once
        assert status["warnings"] == 1  # the pod that doesn't run
        lab.store.create(request("Backup", "b2", includedNamespaces=["shop"], defaultVolumesToFsBackup=False))
        status = await finished(lab, "backups", "b2")
        assert status["phase"] == "Completed"
        assert status["warnings"] == 2

    run_velero(body, tmp_path)


def test_node_without_its_agent_makes_the_backup_partial(tmp_path: Path) -> None:
    async def body(lab: ControllersLab, s3: S3Part) -> None:
        await shop(lab)
        lab.store.create(request("Backup", "b1", includedNamespaces=["shop"]))
        status = await finished(lab, "backups", "b1")
        assert status["phase"] == "PartiallyFailed"
        assert status["errors"] == 1
        failed = lab.store.list("podvolumebackups", "velero", "velero.io")[0]["status"]
        assert failed["phase"] == "Failed"
        assert failed["message"].startswith("daemonset pod not found in running state")

    run_velero(body, tmp_path, deployNodeAgent=False)


def test_location_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    async def body(lab: ControllersLab, s3: S3Part) -> None:
        good = velero(lab, "backupstoragelocations", "default")["spec"]
        (s3.root / "foreign/photos").mkdir(parents=True)
        (s3.root / "foreign/photos/a").touch()
        for name, spec, said in (
            ("no-bucket", {**good, "objectStorage": {"bucket": "nope"}}, "NoSuchBucket"),
            ("no-plugin", {**good, "provider": "azure"}, "unable to locate ObjectStore plugin named velero.io/azure"),
            ("no-secret", {**good, "credential": {"name": "x", "key": "cloud"}}, 'secret "x" not found'),
            ("bad-key", {**good, "credential": {"name": "bad", "key": "cloud"}}, "SignatureDoesNotMatch"),
            ("foreign", {**good, "objectStorage": {"bucket": "foreign"}}, "invalid top-level directories: [photos]"),
        ):
            if name == "bad-key":
                text = f"[default]\naws_access_key_id={s3.access_key}\naws_secret_access_key=wrong\n"
                meta = {"name": "bad", "namespace": "velero"}
                lab.store.create(
                    {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": {"cloud": text}}
                )
            lab.store.create(request("BackupStorageLocation", name, **{**spec, "default": False}))

            def message(name: str = name) -> str:
                status = velero(lab, "backupstoragelocations", name).get("status", {})
                return str(status.get("message")) if status.get("phase") == "Unavailable" else ""

            # what was put into the server's folder directly shows a moment later, and the location is looked at again
            await lab.until(lambda m=message, s=said: s in m(), f"{name}: {said}")  # type: ignore[misc]
        lab.store.create(request("Backup", "b1", storageLocation="no-bucket"))
        status = await finished(lab, "backups", "b1")
        assert status["phase"] == "FailedValidation"
        assert "Unavailable" in status["validationErrors"][0]
        lab.store.create(request("Backup", "b2", storageLocation="nowhere"))
        assert "not found" in (await finished(lab, "backups", "b2"))["validationErrors"][0]
        lab.store.create(request("Restore", "r1", backupName="none"))
        status = await finished(lab, "restores", "r1")
        assert status["validationErrors"] == ['Error retrieving backup: backups.velero.io "none" not found']

    run_velero(body, tmp_path)


def test_backups_are_found_again_by_another_cluster_and_deleted_with_their_data(tmp_path: Path) -> None:
    async def body(lab: ControllersLab, s3: S3Part) -> None:
        folder = await shop(lab)
        (folder / "file").write_text("data", encoding="utf-8")
        lab.store.create(request("Backup", "b1", includedNamespaces=["shop"]))
        assert (await finished(lab, "backups", "b1"))["phase"] == "Completed"
        # the object is lost, as with its cluster; the location's next look finds the backup in S3
        lab.store.delete("backups", "b1", "velero", "velero.io")
        await lab.until(
            lambda: not lab.store.list("podvolumebackups", "velero", "velero.io"), "volume records go along"
        )
        lab.store.patch(
            "backupstoragelocations",
            "default",
            "velero",
            "velero.io",
            lambda s: s["spec"].update(accessMode="ReadWrite"),
        )
        await lab.until(lambda: phase(lab, "backups", "b1") == "Completed", "found again")
        lab.store.create(request("Restore", "r1", backupName="b1", namespaceMapping={"shop": "drill"}))
        assert (await finished(lab, "restores", "r1"))["phase"] == "Completed"
        assert (folder_of(lab, "data-db-0", "drill") / "file").read_text(encoding="utf-8") == "data"
        lab.store.create(request("DeleteBackupRequest", "d1", backupName="b1"))
        await lab.until(lambda: not velero(lab, "backups", "b1"), "deleted")
        assert not (s3.root / "backups/p/backups/b1").exists()
        left = [p.name for p in (s3.root / "backups/p/kopia/shop").iterdir()]
        assert left == ["kopia.repository"]
        assert names(lab.store.list("restores", "velero", "velero.io")) == []

    run_velero(body, tmp_path)


def test_backup_expires_and_another_repository_password_is_refused(tmp_path: Path) -> None:
    async def body(lab: ControllersLab, s3: S3Part) -> None:
        await shop(lab)
        lab.store.create(request("Backup", "b1", includedNamespaces=["shop"]))
        assert (await finished(lab, "backups", "b1"))["phase"] == "Completed"
        other = base64.b64encode(b"other").decode()
        lab.store.patch(
            "secrets",
            "velero-repo-credentials",
            "velero",
            "",
            lambda s: s["data"].update({"repository-password": other}),
        )
        lab.store.create(request("Backup", "b2", includedNamespaces=["shop"], ttl="4s"))
        status = await finished(lab, "backups", "b2")
        assert status["phase"] == "PartiallyFailed"
        messages = [v["status"].get("message", "") for v in lab.store.list("podvolumebackups", "velero", "velero.io")]
        assert "error to connect to repository: invalid repository password" in messages
        await lab.until(lambda: not velero(lab, "backups", "b2"), "expired")
        assert velero(lab, "backups", "b1")

    run_velero(body, tmp_path)


def test_schedule_makes_backups_when_due(tmp_path: Path) -> None:
    async def body(lab: ControllersLab, s3: S3Part) -> None:
        template = {"includedNamespaces": ["velero"], "ttl": "24h0m0s"}
        lab.store.create(request("Schedule", "often", schedule="@every 2s", template=template))
        lab.store.create(request("Schedule", "nightly", schedule="0 3 * * *", template=template))
        lab.store.create(request("Schedule", "wrong", schedule="61 * * * *", template=template))
        await lab.until(lambda: phase(lab, "schedules", "nightly") == "Enabled", "enabled")
        await lab.until(lambda: phase(lab, "schedules", "wrong") == "FailedValidation", "refused")

        def made() -> bool:
            found = lab.store.list("backups", "velero", "velero.io", labels="velero.io/schedule-name=often")
            return any(b.get("status", {}).get("phase") == "Completed" for b in found)

        await lab.until(made, "a scheduled backup")
        assert not lab.store.list("backups", "velero", "velero.io", labels="velero.io/schedule-name=nightly")

    run_velero(body, tmp_path)
