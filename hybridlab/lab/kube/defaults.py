"""What the real API server fills in when a built-in object is stored (pkg/apis/*/v1/defaults.go)."""

from __future__ import annotations

import base64
import ipaddress
import secrets
from collections.abc import Callable, Iterable
from typing import Any

Obj = dict[str, Any]


def _set(target: Obj, values: Obj) -> None:
    for key, value in values.items():
        target.setdefault(key, value)


# -- pods --------------------------------------------------------------------------------------------------------------
def pod_spec(spec: Obj) -> None:
    """Defaults of a pod spec, also inside a template."""
    _set(
        spec,
        {
            "restartPolicy": "Always",
            "terminationGracePeriodSeconds": 30,
            "dnsPolicy": "ClusterFirst",
            "securityContext": {},
            "schedulerName": "default-scheduler",
        },
    )
    if "serviceAccountName" in spec:
        spec.setdefault("serviceAccount", spec["serviceAccountName"])
    elif "serviceAccount" in spec:
        spec["serviceAccountName"] = spec["serviceAccount"]
    for container in _containers(spec):
        _container(container)
    for volume in spec.get("volumes") or ():
        _volume(volume)


def _containers(spec: Obj) -> Iterable[Obj]:
    for key in ("initContainers", "containers", "ephemeralContainers"):
        for container in spec.get(key) or ():
            if isinstance(container, dict):
                yield container


def _container(container: Obj) -> None:
    image = container.get("image", "")
    tag = image.rpartition("/")[2]
    latest = ("@" not in image) and (":" not in tag or tag.endswith(":latest"))
    _set(
        container,
        {
            "imagePullPolicy": "Always" if latest else "IfNotPresent",
            "resources": {},
            "terminationMessagePath": "/dev/termination-log",
            "terminationMessagePolicy": "File",
        },
    )
    for port in container.get("ports") or ():
        port.setdefault("protocol", "TCP")
    for name in ("livenessProbe", "readinessProbe", "startupProbe"):
        if name in container:
            _probe(container[name])
    for variable in container.get("env") or ():
        source = variable.get("valueFrom") or {}
        if "fieldRef" in source:
            source["fieldRef"].setdefault("apiVersion", "v1")
    resources = container["resources"]
    for name, amount in (resources.get("limits") or {}).items():
        resources.setdefault("requests", {}).setdefault(name, amount)


def _probe(probe: Obj) -> None:
    _set(probe, {"timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3})
    if "httpGet" in probe:
        _set(probe["httpGet"], {"path": "/", "scheme": "HTTP"})


def _volume(volume: Obj) -> None:
    for kind in ("secret", "configMap", "downwardAPI", "projected"):
        if kind in volume:
            volume[kind].setdefault("defaultMode", 420)
    if "hostPath" in volume:
        volume["hostPath"].setdefault("type", "")
    if not set(volume) - {"name"}:
        volume["emptyDir"] = {}
    for source in (volume.get("projected") or {}).get("sources") or ():
        if "serviceAccountToken" in source:
            source["serviceAccountToken"].setdefault("expirationSeconds", 3600)


def qos_class(spec: Obj) -> str:
    """Guaranteed, Burstable or BestEffort (pkg/apis/core/v1/helper/qos)."""
    every = [container.get("resources") or {} for container in _containers(spec)]
    if not any(r.get("requests") or r.get("limits") for r in every):
        return "BestEffort"
    for resources in every:
        limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
        if not all(name in limits and requests.get(name, limits[name]) == limits[name] for name in ("cpu", "memory")):
            return "Burstable"
    return "Guaranteed"


def _pod(obj: Obj, creating: bool) -> None:
    spec = obj.setdefault("spec", {})
    pod_spec(spec)
    _set(spec, {"enableServiceLinks": True, "preemptionPolicy": "PreemptLowerPriority", "priority": 0})
    if not spec.get("serviceAccountName"):
        spec["serviceAccountName"] = spec["serviceAccount"] = "default"


# -- workloads ---------------------------------------------------------------------------------------------------------
def _template(spec: Obj) -> Obj:
    template: Obj = spec.setdefault("template", {})
    if isinstance(template.get("spec"), dict):
        pod_spec(template["spec"])
    return template


def _deployment(obj: Obj, creating: bool) -> None:
    spec = obj.setdefault("spec", {})
    _set(spec, {"replicas": 1, "revisionHistoryLimit": 10, "progressDeadlineSeconds": 600})
    strategy = spec.setdefault("strategy", {})
    if strategy.setdefault("type", "RollingUpdate") == "RollingUpdate":
        _set(strategy.setdefault("rollingUpdate", {}), {"maxUnavailable": "25%", "maxSurge": "25%"})
    _template(spec)


def _replicaset(obj: Obj, creating: bool) -> None:
    spec = obj.setdefault("spec", {})
    spec.setdefault("replicas", 1)
    _template(spec)


def _statefulset(obj: Obj, creating: bool) -> None:
    spec = obj.setdefault("spec", {})
    _set(spec, {"replicas": 1, "revisionHistoryLimit": 10, "podManagementPolicy": "OrderedReady"})
    strategy = spec.setdefault("updateStrategy", {})
    if strategy.setdefault("type", "RollingUpdate") == "RollingUpdate":
        strategy.setdefault("rollingUpdate", {}).setdefault("partition", 0)
    policy = spec.setdefault("persistentVolumeClaimRetentionPolicy", {})
    _set(policy, {"whenDeleted": "Retain", "whenScaled": "Retain"})
    for claim in spec.get("volumeClaimTemplates") or ():
        _set(claim, {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "status": {"phase": "Pending"}})
        claim.setdefault("spec", {}).setdefault("volumeMode", "Filesystem")
    _template(spec)


def _daemonset(obj: Obj, creating: bool) -> None:
    spec = obj.setdefault("spec", {})
    spec.setdefault("revisionHistoryLimit", 10)
    strategy = spec.setdefault("updateStrategy", {})
    if strategy.setdefault("type", "RollingUpdate") == "RollingUpdate":
        _set(strategy.setdefault("rollingUpdate", {}), {"maxUnavailable": 1, "maxSurge": 0})
    _template(spec)


def _job_spec(spec: Obj) -> None:
    _set(spec, {"backoffLimit": 6, "completionMode": "NonIndexed", "suspend": False, "manualSelector": False})
    if "completions" not in spec and "parallelism" not in spec:
        spec["completions"] = 1
    spec.setdefault("parallelism", 1)
    spec.setdefault("podReplacementPolicy", "TerminatingOrFailed")
    _template(spec)


def _job(obj: Obj, creating: bool) -> None:
    spec = obj.setdefault("spec", {})
    _job_spec(spec)


def _cronjob(obj: Obj, creating: bool) -> None:
    spec = obj.setdefault("spec", {})
    _set(
        spec,
        {
            "concurrencyPolicy": "Allow",
            "suspend": False,
            "successfulJobsHistoryLimit": 3,
            "failedJobsHistoryLimit": 1,
        },
    )
    template = (spec.get("jobTemplate") or {}).get("spec")
    if isinstance(template, dict) and isinstance((template.get("template") or {}).get("spec"), dict):
        pod_spec(template["template"]["spec"])


# -- the rest ----------------------------------------------------------------------------------------------------------
def _service(obj: Obj, creating: bool) -> None:
    spec = obj.setdefault("spec", {})
    _set(spec, {"type": "ClusterIP", "sessionAffinity": "None"})
    for port in spec.get("ports") or ():
        port.setdefault("protocol", "TCP")
        port.setdefault("targetPort", port.get("port"))
    if spec["type"] == "ExternalName":
        return
    _set(spec, {"internalTrafficPolicy": "Cluster", "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack"})
    if spec["type"] in ("NodePort", "LoadBalancer"):
        spec.setdefault("externalTrafficPolicy", "Cluster")
    if spec["type"] == "LoadBalancer":
        spec.setdefault("allocateLoadBalancerNodePorts", True)


def _claim(obj: Obj, creating: bool) -> None:
    obj.setdefault("spec", {}).setdefault("volumeMode", "Filesystem")
    if creating:
        obj.setdefault("status", {}).setdefault("phase", "Pending")


def _volume_object(obj: Obj, creating: bool) -> None:
    _set(obj.setdefault("spec", {}), {"volumeMode": "Filesystem", "persistentVolumeReclaimPolicy": "Retain"})
    if creating:
        obj.setdefault("status", {}).setdefault("phase", "Pending")


def _storageclass(obj: Obj, creating: bool) -> None:
    _set(obj, {"reclaimPolicy": "Delete", "volumeBindingMode": "Immediate"})


def _secret(obj: Obj, creating: bool) -> None:
    obj.setdefault("type", "Opaque")
    plain = obj.pop("stringData", None)
    if plain:
        data = obj.setdefault("data", {})
        data.update({key: base64.b64encode(value.encode()).decode() for key, value in plain.items()})


def _binding(obj: Obj, creating: bool) -> None:
    reference = obj.get("roleRef") or {}
    reference.setdefault("apiGroup", "rbac.authorization.k8s.io")
    for subject in obj.get("subjects") or ():
        if subject.get("kind") != "ServiceAccount":
            subject.setdefault("apiGroup", "rbac.authorization.k8s.io")


def _crd(obj: Obj, creating: bool) -> None:
    spec = obj.get("spec") or {}
    names = spec.get("names") or {}
    if names.get("kind"):
        names.setdefault("singular", names["kind"].lower())
        names.setdefault("listKind", names["kind"] + "List")
    spec.setdefault("conversion", {"strategy": "None"})


_DEFAULTS: dict[tuple[str, str], Callable[[Obj, bool], None]] = {
    ("", "pods"): _pod,
    ("", "services"): _service,
    ("", "persistentvolumeclaims"): _claim,
    ("", "persistentvolumes"): _volume_object,
    ("", "secrets"): _secret,
    ("apps", "deployments"): _deployment,
    ("apps", "replicasets"): _replicaset,
    ("apps", "statefulsets"): _statefulset,
    ("apps", "daemonsets"): _daemonset,
    ("batch", "jobs"): _job,
    ("batch", "cronjobs"): _cronjob,
    ("storage.k8s.io", "storageclasses"): _storageclass,
    ("rbac.authorization.k8s.io", "rolebindings"): _binding,
    ("rbac.authorization.k8s.io", "clusterrolebindings"): _binding,
    ("apiextensions.k8s.io", "customresourcedefinitions"): _crd,
}


def fill(group: str, plural: str, obj: Obj, *, creating: bool) -> None:
    """Fill in the defaults of a built-in object, in place; kinds without any stay as they are."""
    function = _DEFAULTS.get((group, plural))
    if function:
        function(obj, creating)


# -- what only the server can know -------------------------------------------------------------------------------------
def _allocate_service(obj: Obj, old: Obj | None) -> None:
    """Cluster IP and node ports: kept from the old object where the new one says nothing."""
    spec = obj["spec"]
    if spec["type"] == "ExternalName":
        return
    before = (old or {}).get("spec") or {}
    if not spec.get("clusterIP"):
        # K3s' service range; two in 65,000 rarely meet, and nothing routes by these addresses in the lab
        fresh = str(ipaddress.ip_address("10.43.0.0") + 256 + secrets.randbelow(65000))
        spec["clusterIP"] = before.get("clusterIP") or fresh
    spec.setdefault("clusterIPs", [spec["clusterIP"]])
    if spec["type"] not in ("NodePort", "LoadBalancer"):
        return
    known = {(p.get("port"), p.get("protocol")): p.get("nodePort") for p in before.get("ports") or ()}
    for port in spec.get("ports") or ():
        if not port.get("nodePort"):
            found = known.get((port.get("port"), port["protocol"]))
            port["nodePort"] = found or 30000 + secrets.randbelow(2768)


def _allocate_pod(obj: Obj, old: Obj | None) -> None:
    if old:
        return
    spec = obj["spec"]
    taints = spec.setdefault("tolerations", [])
    for key in ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"):
        if not any(t.get("key") in (key, None) and t.get("effect") in ("NoExecute", None) for t in taints):
            taints.append({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300})
    _set(obj.setdefault("status", {}), {"phase": "Pending", "qosClass": qos_class(spec)})


def _allocate_job(obj: Obj, old: Obj | None) -> None:
    """The selector by the job's own uid, and the labels its pods carry."""
    spec = obj["spec"]
    if old or spec.get("manualSelector"):
        return
    uid, name = obj["metadata"]["uid"], obj["metadata"]["name"]
    labels = spec["template"].setdefault("metadata", {}).setdefault("labels", {})
    for prefix in ("", "batch.kubernetes.io/"):
        labels |= {f"{prefix}controller-uid": uid, f"{prefix}job-name": name}
    spec.setdefault("selector", {}).setdefault("matchLabels", {})["batch.kubernetes.io/controller-uid"] = uid
    obj["metadata"].setdefault("labels", dict(labels))


_ALLOCATE: dict[tuple[str, str], Callable[[Obj, Obj | None], None]] = {
    ("", "services"): _allocate_service,
    ("", "pods"): _allocate_pod,
    ("batch", "jobs"): _allocate_job,
}


def allocate(group: str, plural: str, obj: Obj, old: Obj | None) -> None:
    """Give a new or changed object, after ``fill``, what the server itself decides; nobody owns these fields."""
    function = _ALLOCATE.get((group, plural))
    if function:
        function(obj, old)
