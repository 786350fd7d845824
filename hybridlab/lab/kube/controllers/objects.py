"""Pure helpers on Kubernetes objects as plain JSON: names, selectors, quantities, conditions, hashes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

Obj = dict[str, Any]  # a Kubernetes object, or a part of one, as JSON

_HASH_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"  # k8s.io/apimachinery/pkg/util/rand: no vowels, so no words
_SUFFIXES: Mapping[str, float] = {
    "": 1,
    "n": 1e-9,
    "u": 1e-6,
    "m": 1e-3,
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
    "P": 1e15,
    "E": 1e18,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
    "Pi": 2**50,
    "Ei": 2**60,
}
_QUANTITY = re.compile(r"^([+-]?[0-9.]+)((?:[eE][+-]?[0-9]+)?)(n|u|m|k|[MGTPE]|[KMGTPE]i)?$")


@dataclass(frozen=True)
class Kind:
    """Where objects of one kind live. ``group`` is "" for the core group."""

    plural: str
    group: str
    version: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version


NAMESPACE = Kind("namespaces", "", "v1", "Namespace", False)
NODE = Kind("nodes", "", "v1", "Node", False)
POD = Kind("pods", "", "v1", "Pod")
SERVICE = Kind("services", "", "v1", "Service")
ENDPOINTS = Kind("endpoints", "", "v1", "Endpoints")
EVENT = Kind("events", "", "v1", "Event")
SECRET = Kind("secrets", "", "v1", "Secret")
CONFIG_MAP = Kind("configmaps", "", "v1", "ConfigMap")
SERVICE_ACCOUNT = Kind("serviceaccounts", "", "v1", "ServiceAccount")
CLAIM = Kind("persistentvolumeclaims", "", "v1", "PersistentVolumeClaim")
VOLUME = Kind("persistentvolumes", "", "v1", "PersistentVolume", False)
DEPLOYMENT = Kind("deployments", "apps", "v1", "Deployment")
REPLICA_SET = Kind("replicasets", "apps", "v1", "ReplicaSet")
STATEFUL_SET = Kind("statefulsets", "apps", "v1", "StatefulSet")
DAEMON_SET = Kind("daemonsets", "apps", "v1", "DaemonSet")
REVISION = Kind("controllerrevisions", "apps", "v1", "ControllerRevision")
JOB = Kind("jobs", "batch", "v1", "Job")
CRON_JOB = Kind("cronjobs", "batch", "v1", "CronJob")
LEASE = Kind("leases", "coordination.k8s.io", "v1", "Lease")
ENDPOINT_SLICE = Kind("endpointslices", "discovery.k8s.io", "v1", "EndpointSlice")
STORAGE_CLASS = Kind("storageclasses", "storage.k8s.io", "v1", "StorageClass", False)
VOLUME_ATTACHMENT = Kind("volumeattachments", "storage.k8s.io", "v1", "VolumeAttachment", False)
DISRUPTION_BUDGET = Kind("poddisruptionbudgets", "policy", "v1", "PodDisruptionBudget")
CRD = Kind("customresourcedefinitions", "apiextensions.k8s.io", "v1", "CustomResourceDefinition", False)
HELM_CHART = Kind("helmcharts", "helm.cattle.io", "v1", "HelmChart")
HELM_CHART_CONFIG = Kind("helmchartconfigs", "helm.cattle.io", "v1", "HelmChartConfig")
JIVA_VOLUME = Kind("jivavolumes", "openebs.io", "v1", "JivaVolume")
JIVA_POLICY = Kind("jivavolumepolicies", "openebs.io", "v1", "JivaVolumePolicy")


# -- reading -------------------------------------------------------------------------------------------------------
def name_of(obj: Obj) -> str:
    return str(obj.get("metadata", {}).get("name", ""))


def namespace_of(obj: Obj) -> str:
    return str(obj.get("metadata", {}).get("namespace") or "")


def uid_of(obj: Obj) -> str:
    return str(obj.get("metadata", {}).get("uid", ""))


def labels_of(obj: Obj) -> dict[str, str]:
    return obj.get("metadata", {}).get("labels") or {}


def annotations_of(obj: Obj) -> dict[str, str]:
    return obj.get("metadata", {}).get("annotations") or {}


def spec_of(obj: Obj) -> Obj:
    spec: Obj = obj.get("spec") or {}
    return spec


def status_of(obj: Obj) -> Obj:
    status: Obj = obj.get("status") or {}
    return status


def key_of(obj: Obj) -> tuple[str, str]:
    return namespace_of(obj), name_of(obj)


def is_deleting(obj: Obj) -> bool:
    return bool(obj.get("metadata", {}).get("deletionTimestamp"))


def controller_of(obj: Obj) -> Obj | None:
    """The owner reference with ``controller: true``, or None."""
    for reference in obj.get("metadata", {}).get("ownerReferences") or []:
        if reference.get("controller"):
            found: Obj = reference
            return found
    return None


def owned_by(obj: Obj, owner: Obj) -> bool:
    reference = controller_of(obj)
    return reference is not None and reference.get("uid") == uid_of(owner)


def owner_reference(owner: Obj, *, block: bool = True) -> Obj:
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": name_of(owner),
        "uid": uid_of(owner),
        "controller": True,
        "blockOwnerDeletion": block,
    }


def matches(selector: Obj | None, labels: Mapping[str, str]) -> bool:
    """Whether a LabelSelector picks these labels; an empty one picks everything, None nothing."""
    if selector is None:
        return False
    if any(labels.get(k) != v for k, v in (selector.get("matchLabels") or {}).items()):
        return False
    return all(requirement_met(r, labels) for r in selector.get("matchExpressions") or [])


def requirement_met(requirement: Obj, labels: Mapping[str, str]) -> bool:
    """One matchExpressions entry of a label or node selector (In, NotIn, Exists, DoesNotExist, Gt, Lt)."""
    value = labels.get(requirement["key"])
    values: list[str] = requirement.get("values") or []
    operator = requirement["operator"]
    if operator == "In":
        return value in values
    if operator == "NotIn":
        return value not in values
    if operator == "Exists":
        return value is not None
    if operator == "DoesNotExist":
        return value is None
    try:
        left, right = int(value or ""), int(values[0])
    except (ValueError, IndexError):
        return False
    return left > right if operator == "Gt" else left < right


# -- quantities and times --------------------------------------------------------------------------------------------
def quantity(value: Any) -> float:
    """A resource quantity in its base unit: cores for cpu, bytes for memory and storage."""
    if isinstance(value, int | float):
        return float(value)
    found = _QUANTITY.match(str(value).strip())
    if not found:
        return 0.0
    return float(found[1] + found[2]) * _SUFFIXES[found[3] or ""]


def timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def micro_timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def seconds_of(text: str | None) -> float:
    """Unix time of an RFC 3339 timestamp; 0 for none."""
    if not text:
        return 0.0
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def duration(text: str | None, default: float = 0.0) -> float:
    """Seconds of a Go duration such as ``720h0m0s``."""
    if not text:
        return default
    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
    return sum(float(n) * units[u] for n, u in re.findall(r"([0-9.]+)(ms|h|m|s)", str(text)))


# -- writing ---------------------------------------------------------------------------------------------------------
def set_condition(
    status: Obj,
    kind: str,
    value: bool | str,
    now: float,
    *,
    reason: str = "",
    message: str = "",
    extra: Mapping[str, str] | None = None,
) -> bool:
    """Put a condition into a status; the transition time moves only when the value does. Returns whether it changed.

    ``extra`` maps more time fields (``lastUpdateTime``, ``lastHeartbeatTime``) to their values when something changed.
    """
    word = value if isinstance(value, str) else ("True" if value else "False")
    conditions: list[Obj] = status.setdefault("conditions", [])
    wanted: Obj = {"type": kind, "status": word}
    if reason:
        wanted["reason"] = reason
    if message:
        wanted["message"] = message
    for index, old in enumerate(conditions):
        if old.get("type") == kind:
            if all(old.get(k, "") == wanted.get(k, "") for k in ("status", "reason", "message")):
                return False
            same = old.get("status") == word
            wanted["lastTransitionTime"] = old.get("lastTransitionTime") if same else timestamp(now)
            conditions[index] = {**wanted, **(extra or {})}
            return True
    conditions.append({**wanted, "lastTransitionTime": timestamp(now), **(extra or {})})
    return True


def condition(obj: Obj, kind: str) -> Obj | None:
    for entry in status_of(obj).get("conditions") or []:
        if entry.get("type") == kind:
            found: Obj = entry
            return found
    return None


def condition_is(obj: Obj, kind: str, value: str = "True") -> bool:
    found = condition(obj, kind)
    return found is not None and found.get("status") == value


def hash_of(value: Any, length: int = 10) -> str:
    """A name suffix that depends on the JSON value only."""
    number = int.from_bytes(hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()[:12])
    letters = []
    for _ in range(length):
        number, index = divmod(number, len(_HASH_ALPHABET))
        letters.append(_HASH_ALPHABET[index])
    return "".join(letters)


# -- pods ------------------------------------------------------------------------------------------------------------
def pod_phase(pod: Obj) -> str:
    return str(status_of(pod).get("phase", "Pending"))


def is_finished(pod: Obj) -> bool:
    return pod_phase(pod) in ("Succeeded", "Failed")


def is_active(pod: Obj) -> bool:
    return not is_finished(pod) and not is_deleting(pod)


def is_ready(pod: Obj) -> bool:
    return condition_is(pod, "Ready")


def ready_since(pod: Obj) -> float:
    found = condition(pod, "Ready")
    if found is None or found.get("status") != "True":
        return 0.0
    return seconds_of(found.get("lastTransitionTime"))


def containers_of(pod_spec: Obj) -> list[Obj]:
    return list(pod_spec.get("containers") or [])


def requests_of(pod: Obj) -> dict[str, float]:
    """What the scheduler counts for a pod: the sum over containers, at least the largest init container, a pod each."""
    totals: dict[str, float] = {}
    for container in containers_of(spec_of(pod)):
        for resource, value in _requests(container).items():
            totals[resource] = totals.get(resource, 0.0) + value
    for container in spec_of(pod).get("initContainers") or []:
        for resource, value in _requests(container).items():
            totals[resource] = max(totals.get(resource, 0.0), value)
    totals["pods"] = 1.0
    return totals


def _requests(container: Obj) -> dict[str, float]:
    resources = container.get("resources") or {}
    return {
        resource: quantity(value)
        for resource, value in {**(resources.get("limits") or {}), **(resources.get("requests") or {})}.items()
    }


def tolerates(tolerations: Iterable[Obj], taint: Obj) -> bool:
    return any(tolerance_of(t, taint) for t in tolerations)


def tolerance_of(toleration: Obj, taint: Obj) -> bool:
    """Whether one toleration covers one taint."""
    if toleration.get("effect") and toleration["effect"] != taint.get("effect"):
        return False
    if not toleration.get("key"):
        return toleration.get("operator") == "Exists"
    if toleration["key"] != taint.get("key"):
        return False
    if toleration.get("operator", "Equal") == "Exists":
        return True
    return (toleration.get("value") or "") == (taint.get("value") or "")
