"""Volumes of a pod as real folders: claims, ConfigMaps, Secrets, emptyDir, hostPath, projected and downward API."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hybridlab.lab.kube.controllers.commands import Mount
from hybridlab.lab.kube.controllers.objects import (
    CLAIM,
    CONFIG_MAP,
    SECRET,
    VOLUME,
    Kind,
    Obj,
    annotations_of,
    labels_of,
    name_of,
    namespace_of,
    spec_of,
    status_of,
    uid_of,
)
from hybridlab.lab.kube.controllers.work import Context


class MountFailed(Exception):
    """A volume can't be had (yet); ``reason`` is the event's: FailedMount or FailedAttachVolume."""

    def __init__(self, message: str, reason: str = "FailedMount") -> None:
        super().__init__(message)
        self.reason = reason


# Asked before a claim's volume is used on a node: (pod, volume, node name), raises MountFailed.
VolumeCheck = Callable[[Obj, Obj, str], None]


class ConfigMissing(Exception):
    """A container refers to a ConfigMap, Secret or key that isn't there (CreateContainerConfigError)."""


class Mounts:
    """Makes volumes ready; ``checks`` are the storage engines' conditions."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.checks: list[VolumeCheck] = []

    def claim_folder(self, volume_name: str) -> Path:
        """The folder that holds the bytes of a PersistentVolume."""
        return self._context.world.directory / "volumes" / volume_name

    def prepare(self, pod: Obj, node: str, machine_id: str) -> dict[str, Path]:
        """Folder (or file) of each of the pod's volumes by name. Raises MountFailed."""
        return {str(v["name"]): self._volume(pod, v, node, machine_id) for v in spec_of(pod).get("volumes") or []}

    def of_container(self, pod: Obj, container: Obj, volumes: Mapping[str, Path]) -> list[Mount]:
        """A container's mounts. Raises ConfigMissing for a subPath that leaves its volume."""
        result = []
        for entry in container.get("volumeMounts") or []:
            real = volumes.get(entry["name"])
            if real is None:
                continue
            sub = entry.get("subPath") or ""
            if sub:
                if ".." in Path(sub).parts or sub.startswith("/"):
                    raise ConfigMissing(f'subPath "{sub}" must be a relative path without ".."')
                real = real / sub
                if not real.exists():
                    real.mkdir(parents=True)
            result.append(Mount(entry["mountPath"], real, bool(entry.get("readOnly"))))
        return result

    # -- volumes ---------------------------------------------------------------------------------------------------
    def _volume(self, pod: Obj, volume: Obj, node: str, machine_id: str) -> Path:
        name = str(volume["name"])
        if "persistentVolumeClaim" in volume or "ephemeral" in volume:
            return self._claim(pod, volume, node)
        if "hostPath" in volume:
            path = self._context.world.hosts.folder(machine_id) / str(volume["hostPath"]["path"]).lstrip("/")
            kind = volume["hostPath"].get("type") or ""
            if kind in ("DirectoryOrCreate",):
                path.mkdir(parents=True, exist_ok=True)
            elif kind in ("Directory", "File", "Socket") and not path.exists():
                shown = volume["hostPath"]["path"]
                raise MountFailed(
                    f'MountVolume.SetUp failed for volume "{name}" : hostPath type check failed: {shown} is not a '
                    f"{kind.lower()}"
                )
            return path
        folder = self._context.folder("pods", uid_of(pod), "volumes", name)
        if "configMap" in volume:
            source = volume["configMap"]
            self._write(folder, self._files(pod, name, CONFIG_MAP, source.get("name", ""), source), source)
        elif "secret" in volume:
            source = volume["secret"]
            self._write(folder, self._files(pod, name, SECRET, source.get("secretName", ""), source), source)
        elif "projected" in volume:
            self._write(folder, self._projected(pod, name, volume["projected"]), volume["projected"])
        elif "downwardAPI" in volume:
            items = volume["downwardAPI"].get("items") or []
            files = {i["path"]: (field_of(pod, i.get("fieldRef") or {}) or "").encode() for i in items}
            self._write(folder, files, volume["downwardAPI"])
        return folder  # an emptyDir, or what another driver would fill, is just the folder

    def _claim(self, pod: Obj, volume: Obj, node: str) -> Path:
        name = str((volume.get("persistentVolumeClaim") or {}).get("claimName") or f"{name_of(pod)}-{volume['name']}")
        claim = self._context.get(CLAIM, name, namespace_of(pod))
        if claim is None:
            raise MountFailed(f'persistentvolumeclaim "{name}" not found')
        if status_of(claim).get("phase") != "Bound":
            raise MountFailed(f"error processing PVC {namespace_of(pod)}/{name}: PVC is not bound")
        bound = self._context.get(VOLUME, str(spec_of(claim).get("volumeName")))
        if bound is None:
            raise MountFailed(
                f"error processing PVC {namespace_of(pod)}/{name}: PV {spec_of(claim).get('volumeName')} not found"
            )
        for check in self.checks:
            check(pod, bound, node)
        folder = self.claim_folder(name_of(bound))
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _files(self, pod: Obj, volume: str, kind: Kind, name: str, source: Obj) -> dict[str, bytes]:
        found = self._context.get(kind, name, namespace_of(pod))
        if found is None:
            if source.get("optional"):
                return {}
            raise MountFailed(
                f'MountVolume.SetUp failed for volume "{volume}" : {kind.kind.lower()} "{name}" not found'
            )
        data = content_of(found)
        items = source.get("items")
        if not items:
            return data
        for item in items:
            if item["key"] not in data and not source.get("optional"):
                raise MountFailed(
                    f'MountVolume.SetUp failed for volume "{volume}" : references non-existent '
                    f"{kind.kind.lower()} key: {item['key']}"
                )
        return {item["path"]: data[item["key"]] for item in items if item["key"] in data}

    def _projected(self, pod: Obj, volume: str, projected: Obj) -> dict[str, bytes]:
        files: dict[str, bytes] = {}
        for source in projected.get("sources") or []:
            if "configMap" in source:
                files |= self._files(pod, volume, CONFIG_MAP, source["configMap"]["name"], source["configMap"])
            elif "secret" in source:
                files |= self._files(pod, volume, SECRET, source["secret"]["name"], source["secret"])
            elif "downwardAPI" in source:
                for item in source["downwardAPI"].get("items") or []:
                    files[item["path"]] = (field_of(pod, item.get("fieldRef") or {}) or "").encode()
        return files

    def _write(self, folder: Path, files: Mapping[str, bytes], source: Obj) -> None:
        mode = int(source.get("defaultMode") or 0o644)
        known = {Path(path) for path in files}
        for old in folder.iterdir():
            if not any(path.parts[0] == old.name for path in known):
                shutil.rmtree(old) if old.is_dir() else old.unlink()
        for path, content in files.items():
            if ".." in Path(path).parts:
                raise MountFailed(f"path {path} leaves its volume")
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists() and target.read_bytes() == content:
                continue
            scratch = target.with_name(target.name + ".new")
            scratch.write_bytes(content)
            scratch.chmod(mode)
            scratch.replace(target)

    # -- environment -------------------------------------------------------------------------------------------------
    def environment(self, pod: Obj, container: Obj) -> dict[str, str]:
        """A container's variables: envFrom, then env with ``$(NAME)`` expanded. Raises ConfigMissing."""
        result = {"HOSTNAME": name_of(pod), "KUBERNETES_SERVICE_HOST": "10.43.0.1", "KUBERNETES_SERVICE_PORT": "443"}
        for source in container.get("envFrom") or []:
            for kind, field in ((CONFIG_MAP, "configMapRef"), (SECRET, "secretRef")):
                reference = source.get(field)
                if reference is None:
                    continue
                found = self._context.get(kind, reference["name"], namespace_of(pod))
                if found is None and not reference.get("optional"):
                    raise ConfigMissing(f'{kind.kind.lower()} "{reference["name"]}" not found')
                for key, value in content_of(found or {}).items():
                    result[source.get("prefix", "") + key] = value.decode(errors="replace")
        for entry in container.get("env") or []:
            if entry.get("valueFrom"):
                found_value = self._from(pod, container, entry["valueFrom"])
                if found_value is not None:
                    result[entry["name"]] = found_value
            else:
                result[entry["name"]] = expand(str(entry.get("value") or ""), result)
        return result

    def _from(self, pod: Obj, container: Obj, source: Obj) -> str | None:
        for kind, field in ((CONFIG_MAP, "configMapKeyRef"), (SECRET, "secretKeyRef")):
            reference = source.get(field)
            if reference is None:
                continue
            found = self._context.get(kind, reference["name"], namespace_of(pod))
            content = content_of(found or {})
            if reference["key"] in content:
                return content[reference["key"]].decode(errors="replace")
            if reference.get("optional"):
                return None
            if found is None:
                raise ConfigMissing(f'{kind.kind.lower()} "{reference["name"]}" not found')
            where = f"{namespace_of(pod)}/{reference['name']}"
            raise ConfigMissing(f"couldn't find key {reference['key']} in {kind.kind} {where}")
        if "fieldRef" in source:
            return field_of(pod, source["fieldRef"])
        if "resourceFieldRef" in source:
            section, _, resource = str(source["resourceFieldRef"]["resource"]).partition(".")
            value = ((container.get("resources") or {}).get(section) or {}).get(resource)
            return None if value is None else str(value)
        return None


def content_of(obj: Obj) -> dict[str, bytes]:
    """The entries of a ConfigMap or Secret as bytes."""
    if obj.get("kind") == "Secret":
        return {key: base64.b64decode(value) for key, value in (obj.get("data") or {}).items()}
    result = {key: str(value).encode() for key, value in (obj.get("data") or {}).items()}
    return result | {key: base64.b64decode(value) for key, value in (obj.get("binaryData") or {}).items()}


def field_of(pod: Obj, reference: Obj) -> str | None:
    """What a fieldRef of the downward API reads."""
    path = str(reference.get("fieldPath", ""))
    if path.startswith(("metadata.labels", "metadata.annotations")):
        values = labels_of(pod) if path.startswith("metadata.labels") else annotations_of(pod)
        if "[" in path:
            return values.get(path.partition("[")[2].strip("]'\""), "")
        return "\n".join(f'{key}="{value}"' for key, value in sorted(values.items()))
    value: Any = pod
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return None if value is None else str(value)


def expand(text: str, variables: Mapping[str, str]) -> str:
    """``$(NAME)`` becomes the variable's value, ``$$`` a dollar; an unknown name stays (as in the kubelet)."""
    result, index = [], 0
    while index < len(text):
        if text[index] == "$" and index + 1 < len(text):
            if text[index + 1] == "$":
                result.append("$")
                index += 2
                continue
            end = text.find(")", index)
            if text[index + 1] == "(" and end > 0:
                name = text[index + 2 : end]
                result.append(variables.get(name, f"$({name})"))
                index = end + 1
                continue
        result.append(text[index])
        index += 1
    return "".join(result)
