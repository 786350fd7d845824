"""Provisioners: what makes a PersistentVolume for a claim. Each works only while its own pods run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from hybridlab.lab.kube.controllers.objects import (
    NODE,
    POD,
    Obj,
    annotations_of,
    containers_of,
    is_deleting,
    is_ready,
    labels_of,
    name_of,
    namespace_of,
    spec_of,
    uid_of,
)
from hybridlab.lab.kube.controllers.predicates import HOSTNAME
from hybridlab.lab.kube.controllers.work import Context

PROVISIONED_BY = "pv.kubernetes.io/provisioned-by"


class CannotProvision(Exception):
    """The provisioner refuses, for the reason it would give; ``final`` where another node would not help either."""


def runs(context: Context, image: str) -> bool:
    """Whether a ready pod runs this image (name without registry and tag)."""
    return any(
        image in str(container.get("image", ""))
        for pod in context.peek(POD)
        if is_ready(pod) and not is_deleting(pod)
        for container in containers_of(spec_of(pod))
    )


class Provisioner(ABC):
    """Makes the volume of one claim; ``driver`` is the StorageClass's provisioner.

    ``images`` are those of the pods that must be ready for it: when one gets ready, waiting claims are looked at again.
    """

    driver = ""
    images: tuple[str, ...] = ()

    def __init__(self, context: Context) -> None:
        self.context = context

    def is_running(self) -> bool:
        return all(runs(self.context, image) for image in self.images)

    @abstractmethod
    def volume(self, claim: Obj, storage_class: Obj, node: str | None) -> Obj:
        """The PersistentVolume to create, for a consumer on ``node`` (None: binds at once). Raises CannotProvision."""

    def removed(self, volume: Obj) -> None:  # noqa: B027  most have nothing besides the folder
        """The volume was deleted: remove what else belongs to it."""

    def may_remove(self, volume: Obj) -> bool:
        return self.is_running()

    def new(self, claim: Obj, storage_class: Obj, node: str | None, source: Mapping[str, Any]) -> Obj:
        """A PersistentVolume bound to the claim; pinned to ``node`` when given."""
        spec: Obj = {
            "capacity": {"storage": spec_of(claim)["resources"]["requests"]["storage"]},
            "accessModes": list(spec_of(claim)["accessModes"]),
            "persistentVolumeReclaimPolicy": storage_class.get("reclaimPolicy", "Delete"),
            "storageClassName": name_of(storage_class),
            "volumeMode": spec_of(claim).get("volumeMode", "Filesystem"),
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "namespace": namespace_of(claim),
                "name": name_of(claim),
                "uid": uid_of(claim),
                "resourceVersion": claim["metadata"].get("resourceVersion", ""),
            },
            **source,
        }
        if node is not None:
            found = self.context.get(NODE, node)
            host = labels_of(found or {}).get(HOSTNAME, node)
            terms = [{"matchExpressions": [{"key": HOSTNAME, "operator": "In", "values": [host]}]}]
            spec["nodeAffinity"] = {"required": {"nodeSelectorTerms": terms}}
        return {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {
                "name": volume_name(claim),
                "annotations": {PROVISIONED_BY: self.driver},
                "finalizers": ["kubernetes.io/pv-protection"],
            },
            "spec": spec,
        }


def volume_name(claim: Obj) -> str:
    return f"pvc-{uid_of(claim)}"


def only_modes(claim: Obj, allowed: Sequence[str], message: str) -> None:
    if any(mode not in allowed for mode in spec_of(claim)["accessModes"]):
        raise CannotProvision(message)


class LocalPath(Provisioner):
    """K3s' local-path: a directory on the consumer's node; ``local`` or hostPath as class or claim say."""

    driver = "rancher.io/local-path"
    images = ("local-path-provisioner",)

    def volume(self, claim: Obj, storage_class: Obj, node: str | None) -> Obj:
        if node is None:
            raise CannotProvision("configuration error, no node was specified")
        only_modes(
            claim,
            ("ReadWriteOnce", "ReadWriteOncePod"),
            "NodePath only supports ReadWriteOnce and ReadWriteOncePod (1.22+) access modes",
        )
        folder = f"{volume_name(claim)}_{namespace_of(claim)}_{name_of(claim)}"
        path = f"/var/lib/rancher/k3s/storage/{folder}"
        kind = annotations_of(claim).get("volumeType") or annotations_of(storage_class).get("defaultVolumeType")
        if kind == "local":
            return self.new(claim, storage_class, node, {"local": {"path": path}})
        return self.new(claim, storage_class, node, {"hostPath": {"path": path, "type": "DirectoryOrCreate"}})


class OpenEbsLocal(Provisioner):
    """OpenEBS Local PV, hostpath: a ``local`` volume on the consumer's node."""

    driver = "openebs.io/local"
    images = ("provisioner-localpv",)

    def volume(self, claim: Obj, storage_class: Obj, node: str | None) -> Obj:
        if node is None:
            raise CannotProvision("configuration error, no node was specified")
        only_modes(claim, ("ReadWriteOnce",), "Only support ReadWriteOnce access mode")
        path = f"/var/openebs/local/{volume_name(claim)}"
        made = self.new(claim, storage_class, node, {"local": {"path": path, "fsType": ""}})
        made["metadata"]["labels"] = {"openebs.io/cas-type": "local-hostpath"}
        return made
