"""A container's mounts, and what a volume entry says beyond source and target: propagation, labels, modes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from hybridlab.compose.fidelity import Record
from hybridlab.compose.model import Obj
from hybridlab.models import Json

# Docker's words → Kubernetes' (both are the kernel's: mount_namespaces(7)).
_PROPAGATION = {
    "rslave": "HostToContainer",
    "slave": "HostToContainer",
    "rshared": "Bidirectional",
    "shared": "Bidirectional",
}


@dataclass(frozen=True)
class Mount:
    """One mount of a container and the pod volume behind it; ``claim`` names the claim, if it is one.

    ``seed``: Docker would fill it from the image while it is empty.
    """

    target: str
    volume: str
    source: Obj
    read_only: bool = False
    sub_path: str = ""
    claim: str = ""
    seed: bool = False
    propagation: str = ""


def with_options(
    service: str, entry: Mapping[str, Json], mount: Mount, record: Record, *, privileged: bool = False
) -> Mount:
    """The mount with its propagation; everything else gets its words in the mount's line of the report."""
    key = f"volumes.{mount.target}"
    bind = entry.get("bind") or {}
    if bind.get("selinux"):
        record.approximated(service, key, f"SELinux label {bind['selinux']}: the runtime does it where it matters")
    if bind.get("recursive") not in (None, "", "enabled"):
        record.approximated(service, key, f"recursive {bind['recursive']}: mounts below it are as on the node")
    if (entry.get("tmpfs") or {}).get("mode"):
        record.approximated(service, key, "mode: an emptyDir is writable for everybody")
    if (entry.get("volume") or {}).get("labels"):
        record.approximated(service, key, "labels of the volume are not carried over")
    return _propagated(service, key, str(bind.get("propagation") or ""), mount, record, privileged)


def _propagated(service: str, key: str, asked: str, mount: Mount, record: Record, privileged: bool) -> Mount:
    if asked in ("", "rprivate", "private"):
        return mount
    if asked not in _PROPAGATION or "hostPath" not in mount.source:
        record.approximated(service, key, f"propagation {asked}: nothing is mounted below a volume of the cluster")
        return mount
    chosen = _PROPAGATION[asked]
    if chosen == "Bidirectional" and not privileged:
        record.approximated(service, key, f"propagation {asked}: one way only, both takes a privileged container")
        chosen = "HostToContainer"
    else:
        record.mapped(service, key, f"mountPropagation {chosen}")
    return replace(mount, propagation=chosen)
