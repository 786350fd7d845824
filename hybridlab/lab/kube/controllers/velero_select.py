"""What a Velero backup or restore takes: namespaces, resources, labels; and which volumes of which pods. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

from hybridlab.lab.kube.controllers.objects import (
    Obj,
    annotations_of,
    labels_of,
    matches,
    name_of,
    namespace_of,
    pod_phase,
    spec_of,
)
from hybridlab.lab.kube.resources import Resource

OPT_IN = "backup.velero.io/backup-volumes"
OPT_OUT = "backup.velero.io/backup-volumes-excludes"
# what is never worth keeping: made anew by their controllers, or Velero's own
NOT_BACKED_UP = ("events", "events.events.k8s.io")
NOT_RESTORED = (
    "nodes",
    "events",
    "events.events.k8s.io",
    "backups.velero.io",
    "restores.velero.io",
    "backuprepositories.velero.io",
    "csinodes.storage.k8s.io",
    "volumeattachments.storage.k8s.io",
    "endpoints",
    "endpointslices.discovery.k8s.io",
)
_HOST_PATH = "Volume {volume} in pod {pod} is a hostPath volume which is not supported for pod volume backup, skipping"
_NEVER_DATA = ("secret", "configMap", "projected", "downwardAPI")


def names_resource(word: str, resource: Resource) -> bool:
    """Whether a word of includedResources means this resource: plural, singular, kind or short name, group optional."""
    word = word.lower()
    names = {resource.plural, resource.singular, resource.kind.lower(), *resource.short_names}
    return word in names or word in {f"{name}.{resource.group}" for name in names if resource.group}


def resource_wanted(resource: Resource, included: Sequence[str] | None, excluded: Sequence[str] | None) -> bool:
    if any(word == "*" or names_resource(word, resource) for word in excluded or ()):
        return False
    return not included or any(word == "*" or names_resource(word, resource) for word in included)


def namespace_wanted(namespace: str, included: Sequence[str] | None, excluded: Sequence[str] | None) -> bool:
    if any(fnmatch(namespace, pattern) for pattern in excluded or ()):
        return False
    return not included or any(fnmatch(namespace, pattern) for pattern in included)


def labels_wanted(obj: Obj, spec: Obj) -> bool:
    if spec.get("orLabelSelectors"):
        return any(matches(selector, labels_of(obj)) for selector in spec["orLabelSelectors"])
    return spec.get("labelSelector") is None or matches(spec["labelSelector"], labels_of(obj))


@dataclass(frozen=True)
class PodVolume:
    """A volume of a pod whose files are to be saved; ``claim`` is "" for an emptyDir."""

    pod: Obj
    volume: str
    claim: str
    persistent_volume: str


@dataclass(frozen=True)
class Choice:
    """Volumes to save, and warnings about those that are not."""

    volumes: Sequence[PodVolume]
    warnings: Sequence[str]


def pod_volumes(
    pods: Iterable[Obj],
    claims: Mapping[tuple[str, str], Obj],
    volumes: Mapping[str, Obj],
    *,
    everything: bool,
) -> Choice:
    """Which volumes file-system backup takes: all but what is excluded, or with opt-in those that annotations name.

    hostPath is not supported and only warned about, pods that don't run are skipped, and a claim that several pods
    mount is saved once (pkg/podvolume/backupper.go).
    """
    chosen: list[PodVolume] = []
    warnings: list[str] = []
    seen: set[str] = set()
    for pod in pods:
        wanted = _wanted(pod, everything)
        if not wanted:
            continue
        where = f"{namespace_of(pod)}/{name_of(pod)}"
        if pod_phase(pod) != "Running":
            if pod_phase(pod) not in ("Succeeded", "Failed"):
                warnings.append(
                    f"Skip pod volumes of pod {where}: pod is not in the expected status, status is {pod_phase(pod)}"
                )
            continue
        for name in wanted:
            source = next((v for v in spec_of(pod).get("volumes") or [] if v["name"] == name), None)
            if source is None:
                warnings.append(f"No volume named {name} found in pod {where}, skipping")
                continue
            claim_name = str((source.get("persistentVolumeClaim") or {}).get("claimName") or "")
            claim = claims.get((namespace_of(pod), claim_name))
            bound = str(spec_of(claim).get("volumeName") or "") if claim is not None else ""
            if claim_name:
                if bound in seen:
                    continue
                if "hostPath" in spec_of(volumes.get(bound, {})):
                    warnings.append(_HOST_PATH.format(volume=name, pod=where))
                    continue
                seen.add(bound)
            elif "hostPath" in source:
                warnings.append(_HOST_PATH.format(volume=name, pod=where))
                continue
            chosen.append(PodVolume(pod, name, claim_name, bound))
    return Choice(chosen, warnings)


def _wanted(pod: Obj, everything: bool) -> list[str]:
    if not everything:
        return [w.strip() for w in annotations_of(pod).get(OPT_IN, "").split(",") if w.strip()]
    excluded = {w.strip() for w in annotations_of(pod).get(OPT_OUT, "").split(",")}
    return [
        v["name"]
        for v in spec_of(pod).get("volumes") or []
        if v["name"] not in excluded and not any(kind in v for kind in (*_NEVER_DATA, "hostPath"))
    ]
