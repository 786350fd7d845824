"""Claims and volumes: binding, provisioning, growing, protection while in use, and what happens after release.

The bytes of a volume are a folder of the lab, ``volumes/<name of the volume>``.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence

from hybridlab.lab.kube.controllers.commands import owners_file
from hybridlab.lab.kube.controllers.mounts import Mounts
from hybridlab.lab.kube.controllers.objects import (
    CLAIM,
    POD,
    STORAGE_CLASS,
    VOLUME,
    Obj,
    annotations_of,
    condition_is,
    containers_of,
    is_deleting,
    is_finished,
    key_of,
    name_of,
    namespace_of,
    quantity,
    spec_of,
    status_of,
    uid_of,
)
from hybridlab.lab.kube.controllers.predicates import SELECTED_NODE, claims_of, volume_suits
from hybridlab.lab.kube.controllers.provisioners import PROVISIONED_BY, CannotProvision, Provisioner
from hybridlab.lab.kube.controllers.work import Context, Controller, Key, on

PROVISION_S = 0.1
DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"
_CLAIM_IN_USE = "kubernetes.io/pvc-protection"
_VOLUME_IN_USE = "kubernetes.io/pv-protection"
_SOURCE = "persistentvolume-controller"
_VOLUMES = "*volumes*"  # the first part of a volume's key, which no namespace can be called


class Storage(Controller):
    """Looks after claims (key: namespace, name) and volumes (key: ``*volumes*``, name)."""

    name = "storage"

    def __init__(self, context: Context, mounts: Mounts, provisioners: Sequence[Provisioner]) -> None:
        super().__init__(context)
        self._mounts = mounts
        self._provisioners = {p.driver: p for p in provisioners}

    def keys(self, event: str, kind: tuple[str, str], obj: Obj) -> Iterable[Key]:
        if on(CLAIM, kind):
            keys = [key_of(obj)]
            if spec_of(obj).get("volumeName"):
                keys.append((_VOLUMES, spec_of(obj)["volumeName"]))
            return keys
        if on(VOLUME, kind):
            reference = spec_of(obj).get("claimRef")
            mine = [(_VOLUMES, name_of(obj))]
            if reference:
                return [*mine, (reference["namespace"], reference["name"])]
            return [*mine, *self._pending()]
        if on(STORAGE_CLASS, kind):
            return self._pending()
        if on(POD, kind):
            if event == "DELETED" or is_finished(obj):
                return [(namespace_of(obj), name) for name in claims_of(obj)]
            if condition_is(obj, "Ready") and self._is_provisioner(obj):
                return [*self._pending(), *((_VOLUMES, name_of(v)) for v in self.context.peek(VOLUME))]
            return [(namespace_of(obj), name) for name in claims_of(obj)] if event == "ADDED" else []
        return []

    def _pending(self) -> list[Key]:
        return [key_of(c) for c in self.context.peek(CLAIM) if status_of(c).get("phase") != "Bound"]

    def _is_provisioner(self, pod: Obj) -> bool:
        images = [str(c.get("image", "")) for c in containers_of(spec_of(pod))]
        return any(own in image for p in self._provisioners.values() for own in p.images for image in images)

    async def reconcile(self, key: Key) -> float | None:
        if key[0] == _VOLUMES:
            volume = self.context.get(VOLUME, key[1])
            if volume is not None:
                self._volume(volume)
            return None
        claim = self.context.get(CLAIM, key[1], key[0])
        if claim is None:
            self._ephemeral(key)
            return None
        if is_deleting(claim):
            self._let_go(claim)
            return None
        if _CLAIM_IN_USE not in (claim["metadata"].get("finalizers") or []):
            claim = self.context.change(CLAIM, claim, _protect) or claim
        if spec_of(claim).get("volumeName"):
            self._bind(claim, str(spec_of(claim)["volumeName"]))
            return None
        return await self._find(claim)

    def _ephemeral(self, key: Key) -> None:
        """Make the claim of a generic ephemeral volume, owned by its pod."""
        for pod in self.context.peek(POD, key[0]):
            for volume in spec_of(pod).get("volumes") or []:
                if volume.get("ephemeral") and f"{name_of(pod)}-{volume['name']}" == key[1] and not is_deleting(pod):
                    template = volume["ephemeral"]["volumeClaimTemplate"]
                    reference = {
                        "apiVersion": "v1",
                        "kind": "Pod",
                        "name": name_of(pod),
                        "uid": uid_of(pod),
                        "controller": True,
                    }
                    meta = {**(template.get("metadata") or {}), "name": key[1], "namespace": key[0]}
                    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "spec": template["spec"]}
                    self.context.create({**claim, "metadata": {**meta, "ownerReferences": [reference]}})

    # -- claims ------------------------------------------------------------------------------------------------------
    async def _find(self, claim: Obj) -> float | None:
        """Bind a claim to a volume there is, or have one made."""
        if "storageClassName" not in spec_of(claim):
            default = self._default_class()
            if default is None and not self._static(claim):
                self._say(
                    claim, "FailedBinding", "no persistent volumes available for this claim and no storage class is set"
                )
                return None
            if default is not None:
                claim = self.context.change(CLAIM, claim, lambda c: c["spec"].update(storageClassName=default)) or claim
        static = self._static(claim)
        class_name = spec_of(claim).get("storageClassName") or ""
        storage_class = self.context.get(STORAGE_CLASS, class_name) if class_name else None
        waits = storage_class is not None and storage_class.get("volumeBindingMode") == "WaitForFirstConsumer"
        selected = annotations_of(claim).get(SELECTED_NODE)
        if static is not None and (not waits or selected):
            self._bind(claim, static)
            return None
        if not class_name:
            self._say(
                claim, "FailedBinding", "no persistent volumes available for this claim and no storage class is set"
            )
            return None
        if storage_class is None:
            text = f'storageclass.storage.k8s.io "{class_name}" not found'
            self._say(claim, "ProvisioningFailed", text, "Warning")
            return None
        if waits and not selected:
            self._say(claim, "WaitForFirstConsumer", "waiting for first consumer to be created before binding")
            return None
        return await self._provision(claim, storage_class, selected)

    async def _provision(self, claim: Obj, storage_class: Obj, node: str | None) -> float | None:
        driver = str(storage_class["provisioner"])
        provisioner = self._provisioners.get(driver)
        if provisioner is None or not provisioner.is_running():
            self._say(
                claim,
                "ExternalProvisioning",
                f"Waiting for a volume to be created either by the external provisioner '{driver}' or manually by the "
                "system administrator. If volume creation is delayed, please verify that the provisioner is running "
                "and correctly registered.",
            )
            return None
        whole = f"{namespace_of(claim)}/{name_of(claim)}"
        message = f'External provisioner is provisioning volume for claim "{whole}"'
        self.context.event(claim, "Normal", "Provisioning", message, driver)
        await self.context.takes(PROVISION_S)
        current = self.context.current(CLAIM, claim)
        if current is None or is_deleting(current):
            return None
        try:
            volume = provisioner.volume(current, storage_class, node)
        except CannotProvision as error:
            text = f'failed to provision volume with StorageClass "{name_of(storage_class)}": {error}'
            self.context.event(claim, "Warning", "ProvisioningFailed", text, driver)
            if node is not None:  # let the scheduler choose again
                self.context.change(CLAIM, current, _unselect)
            return 10.0
        self._mounts.claim_folder(name_of(volume)).mkdir(parents=True, exist_ok=True)
        self.context.create(volume)
        message = f"Successfully provisioned volume {name_of(volume)}"
        self.context.event(claim, "Normal", "ProvisioningSucceeded", message, driver)
        self._bind(current, name_of(volume))
        return None

    def _default_class(self) -> str | None:
        marked = [c for c in self.context.peek(STORAGE_CLASS) if annotations_of(c).get(DEFAULT_CLASS) == "true"]
        if not marked:
            return None
        return name_of(max(marked, key=lambda c: (c["metadata"]["creationTimestamp"], name_of(c))))

    def _static(self, claim: Obj) -> str | None:
        """The smallest free volume that suits."""
        fitting = [v for v in self.context.peek(VOLUME) if not is_deleting(v) and volume_suits(v, claim)]
        fitting.sort(
            key=lambda v: (spec_of(v).get("claimRef") is None, quantity(spec_of(v)["capacity"]["storage"]), name_of(v))
        )
        return name_of(fitting[0]) if fitting else None

    def _bind(self, claim: Obj, name: str) -> None:
        """Tie a claim and a volume together, in both; a volume that is gone makes the claim Lost."""
        volume = self.context.get(VOLUME, name)
        status = status_of(claim)
        if volume is None:
            if status.get("phase") == "Bound":
                status["phase"] = "Lost"
                self.context.set_status(CLAIM, claim, status)
                message = "Bound claim has lost its PersistentVolume. Data on the volume is lost!"
                self.context.event(claim, "Warning", "ClaimLost", message, _SOURCE)
            return
        reference = spec_of(volume).get("claimRef")
        if reference and (reference.get("uid") or uid_of(claim)) != uid_of(claim):
            text = f'volume "{name}" already bound to a different claim.'
            self._say(claim, "FailedBinding", text, "Warning")
            return
        if not reference or not reference.get("uid"):
            volume = (
                self.context.change(VOLUME, volume, lambda v: v["spec"].update(claimRef=_reference(claim))) or volume
            )
        volume_status = status_of(volume)
        if volume_status.get("phase") != "Bound":
            self.context.set_status(VOLUME, volume, {**volume_status, "phase": "Bound"})
        done = annotations_of(claim).get("pv.kubernetes.io/bind-completed")
        if spec_of(claim).get("volumeName") != name or not done:
            claim = self.context.change(CLAIM, claim, lambda c: _tie(c, volume)) or claim
        self._grow(claim, volume)

    def _grow(self, claim: Obj, volume: Obj) -> None:
        """Report the size; make volume and claim bigger where more is asked for and the class allows it."""
        wanted = spec_of(claim)["resources"]["requests"]["storage"]
        size = spec_of(volume)["capacity"]["storage"]
        storage_class = self.context.get(STORAGE_CLASS, spec_of(claim).get("storageClassName") or "")
        if (
            quantity(wanted) > quantity(size)
            and storage_class is not None
            and storage_class.get("allowVolumeExpansion")
        ):
            self.context.change(VOLUME, volume, lambda v: v["spec"]["capacity"].update(storage=wanted))
            message = "MountVolume.NodeExpandVolume succeeded for volume " + name_of(volume)
            self.context.event(claim, "Normal", "FileSystemResizeSuccessful", message, "kubelet")
            size = wanted
        status = {
            **status_of(claim),
            "phase": "Bound",
            "accessModes": list(spec_of(volume)["accessModes"]),
            "capacity": {"storage": size},
        }
        self.context.set_status(CLAIM, claim, status)

    def _let_go(self, claim: Obj) -> None:
        """A deleted claim goes once no pod uses it."""
        users = [
            pod
            for pod in self.context.peek(POD, namespace_of(claim))
            if name_of(claim) in claims_of(pod) and not is_finished(pod)
        ]
        if not users:
            self.context.change(CLAIM, claim, lambda found: _drop_finalizer(found, _CLAIM_IN_USE))

    def _say(self, claim: Obj, reason: str, message: str, kind: str = "Normal") -> None:
        self.context.event(claim, kind, reason, message, _SOURCE)

    # -- volumes -----------------------------------------------------------------------------------------------------
    def _volume(self, volume: Obj) -> None:
        reference = spec_of(volume).get("claimRef")
        status = status_of(volume)
        claim = self.context.get(CLAIM, reference["name"], reference["namespace"]) if reference else None
        if claim is not None and reference and reference.get("uid") and uid_of(claim) != reference["uid"]:
            claim = None
        if is_deleting(volume):
            if claim is None or spec_of(claim).get("volumeName") != name_of(volume):
                self.context.change(VOLUME, volume, lambda found: _drop_finalizer(found, _VOLUME_IN_USE))
            return
        if claim is not None:
            return
        if reference is None or not reference.get("uid"):
            if status.get("phase") not in ("Available",):
                self.context.set_status(VOLUME, volume, {**status, "phase": "Available"})
            return
        if status.get("phase") != "Released":
            volume = self.context.set_status(VOLUME, volume, {**status, "phase": "Released"}) or volume
        if spec_of(volume).get("persistentVolumeReclaimPolicy") == "Delete":
            self._remove(volume)

    def _remove(self, volume: Obj) -> None:
        """Reclaim policy Delete: the provisioner removes the bytes, then the object."""
        driver = annotations_of(volume).get(PROVISIONED_BY, "")
        provisioner = self._provisioners.get(driver)
        if provisioner is None or not provisioner.may_remove(volume):
            return  # looked at again when its provisioner's pods are ready
        folder = self._mounts.claim_folder(name_of(volume))
        shutil.rmtree(folder, ignore_errors=True)
        owners_file(folder).unlink(missing_ok=True)
        provisioner.removed(volume)
        self.context.delete(VOLUME, volume)


def _protect(claim: Obj) -> None:
    claim["metadata"].setdefault("finalizers", []).append(_CLAIM_IN_USE)


def _unselect(claim: Obj) -> None:
    claim["metadata"].get("annotations", {}).pop(SELECTED_NODE, None)


def _drop_finalizer(obj: Obj, finalizer: str) -> None:
    obj["metadata"]["finalizers"] = [f for f in obj["metadata"].get("finalizers") or [] if f != finalizer]


def _reference(claim: Obj) -> Obj:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "namespace": namespace_of(claim),
        "name": name_of(claim),
        "uid": uid_of(claim),
        "resourceVersion": claim["metadata"]["resourceVersion"],
    }


def _tie(claim: Obj, volume: Obj) -> None:
    claim["spec"]["volumeName"] = name_of(volume)
    claim["metadata"].setdefault("annotations", {})["pv.kubernetes.io/bind-completed"] = "yes"
    driver = annotations_of(volume).get(PROVISIONED_BY)
    if driver:
        claim["metadata"]["annotations"]["volume.kubernetes.io/storage-provisioner"] = driver
    claim["metadata"]["annotations"]["pv.kubernetes.io/bound-by-controller"] = "yes"
