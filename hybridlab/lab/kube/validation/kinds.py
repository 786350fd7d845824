"""Validation of each built-in kind."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from hybridlab.lab.kube.errors import (
    Cause,
    duplicate,
    forbidden_field,
    invalid_value,
    required,
    unsupported,
)
from hybridlab.lab.kube.resources import Resource
from hybridlab.lab.kube.schema import type_named, type_of
from hybridlab.lab.kube.selectors import matches
from hybridlab.lab.kube.validation.meta import (
    annotation_map,
    config_key,
    dns_label,
    dns_subdomain,
    label_selector,
    labels,
    one_of,
    qualified_name,
    validate_metadata,
)
from hybridlab.lab.kube.validation.pods import amount, pod_spec, pod_update, port_name, port_number, port_or_name

Obj = dict[str, Any]
IMMUTABLE = "field is immutable"


def _template(spec: Obj, field: str, restart: tuple[str, ...]) -> list[Cause]:
    template = spec.get("template") or {}
    meta = template.get("metadata") or {}
    causes = labels(meta.get("labels"), f"{field}.metadata.labels")
    causes += annotation_map(meta.get("annotations"), f"{field}.metadata.annotations")
    return causes + pod_spec(template.get("spec") or {}, f"{field}.spec", restart=restart)


def _selector(spec: Obj, field: str) -> list[Cause]:
    """A workload's selector, which must select its own template."""
    selector = spec.get("selector")
    if selector is None:
        return [required(field)]
    causes = label_selector(selector, field)
    if not selector.get("matchLabels") and not selector.get("matchExpressions"):
        causes.append(invalid_value(field, selector, "empty selector is invalid for deployment"))
    own = ((spec.get("template") or {}).get("metadata") or {}).get("labels") or {}
    if not causes and not matches(selector, own):
        causes.append(
            invalid_value("spec.template.metadata.labels", own, "`selector` does not match template `labels`")
        )
    return causes


def _count(value: Any, field: str) -> list[Cause]:
    if value is not None and value < 0:
        return [invalid_value(field, value, "must be greater than or equal to 0")]
    return []


def _percent(value: Any, field: str) -> list[Cause]:
    if isinstance(value, str) and not re.match(r"^[0-9]+%$", value):
        detail = "a valid percent string must be a numeric string followed by an ending '%'"
        detail += " (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')"
        return [invalid_value(field, value, detail)]
    return _count(value, field) if isinstance(value, int) else []


def _fixed(obj: Obj, old: Obj | None, *paths: str) -> list[Cause]:
    """Fields that can't change once they are there."""
    causes = []
    for path in paths if old else ():
        have: Any = obj
        was: Any = old
        for segment in path.split("."):
            have, was = (have or {}).get(segment), (was or {}).get(segment)
        if have != was:
            causes.append(invalid_value(path, have, IMMUTABLE))
    return causes


def _deployment(obj: Obj, old: Obj | None) -> list[Cause]:
    spec = obj["spec"]
    causes = _count(spec.get("replicas"), "spec.replicas") + _selector(spec, "spec.selector")
    causes += _template(spec, "spec.template", ("Always",))
    strategy = spec.get("strategy") or {}
    causes += one_of(strategy.get("type"), "spec.strategy.type", ("Recreate", "RollingUpdate"))
    rolling = strategy.get("rollingUpdate")
    if strategy.get("type") == "Recreate" and rolling is not None:
        detail = "may not be specified when strategy `type` is 'Recreate'"
        causes.append(forbidden_field("spec.strategy.rollingUpdate", detail))
    elif rolling:
        for key in ("maxUnavailable", "maxSurge"):
            causes += _percent(rolling.get(key), f"spec.strategy.rollingUpdate.{key}")
        if all(rolling.get(key) in (0, "0%") for key in ("maxUnavailable", "maxSurge")):
            detail = "may not be 0 when `maxSurge` is 0"
            place = "spec.strategy.rollingUpdate.maxUnavailable"
            causes.append(invalid_value(place, rolling["maxUnavailable"], detail))
    return causes + _fixed(obj, old, "spec.selector")


def _replicaset(obj: Obj, old: Obj | None) -> list[Cause]:
    spec = obj["spec"]
    causes = _count(spec.get("replicas"), "spec.replicas") + _selector(spec, "spec.selector")
    return causes + _template(spec, "spec.template", ("Always",)) + _fixed(obj, old, "spec.selector")


def _daemonset(obj: Obj, old: Obj | None) -> list[Cause]:
    spec = obj["spec"]
    causes = _selector(spec, "spec.selector") + _template(spec, "spec.template", ("Always",))
    kind = (spec.get("updateStrategy") or {}).get("type")
    causes += one_of(kind, "spec.updateStrategy.type", ("OnDelete", "RollingUpdate"))
    return causes + _fixed(obj, old, "spec.selector")


_STATEFUL_MUTABLE = (
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
)


def _statefulset(obj: Obj, old: Obj | None) -> list[Cause]:
    spec = obj["spec"]
    causes = _count(spec.get("replicas"), "spec.replicas") + _selector(spec, "spec.selector")
    causes += _template(spec, "spec.template", ("Always",)) if not spec.get("volumeClaimTemplates") else []
    if spec.get("volumeClaimTemplates"):
        template = spec.get("template") or {}
        names = [(claim.get("metadata") or {}).get("name") for claim in spec["volumeClaimTemplates"]]
        pod = dict(template.get("spec") or {})
        others = [volume for volume in pod.get("volumes") or () if volume.get("name") not in names]
        pod["volumes"] = [*others, *({"name": name, "emptyDir": {}} for name in names)]
        causes += _template({**spec, "template": {**template, "spec": pod}}, "spec.template", ("Always",))
    causes += one_of(spec.get("podManagementPolicy"), "spec.podManagementPolicy", ("OrderedReady", "Parallel"))
    if old:
        kept = {k: v for k, v in spec.items() if k not in _STATEFUL_MUTABLE}
        if kept != {k: v for k, v in old["spec"].items() if k not in _STATEFUL_MUTABLE}:
            fields = "', '".join(_STATEFUL_MUTABLE[:-1]) + f"' and '{_STATEFUL_MUTABLE[-1]}"
            detail = f"updates to statefulset spec for fields other than '{fields}' are forbidden"
            causes.append(forbidden_field("spec", detail))
    return causes


def _job_spec(spec: Obj, field: str) -> list[Cause]:
    causes = []
    for key in ("parallelism", "completions", "backoffLimit", "ttlSecondsAfterFinished", "activeDeadlineSeconds"):
        causes += _count(spec.get(key), f"{field}.{key}")
    causes += one_of(spec.get("completionMode"), f"{field}.completionMode", ("NonIndexed", "Indexed"))
    policy = ((spec.get("template") or {}).get("spec") or {}).get("restartPolicy")
    if policy == "Always":
        return [*causes, unsupported(f"{field}.template.spec.restartPolicy", "Always", ("Never", "OnFailure"))]
    return causes + _template(spec, f"{field}.template", ("OnFailure", "Never"))


def _job(obj: Obj, old: Obj | None) -> list[Cause]:
    causes = _job_spec(obj["spec"], "spec")
    suspended = bool(old and old["spec"].get("suspend"))
    fixed = ("spec.selector", "spec.completions", "spec.completionMode")
    return causes + _fixed(obj, old, *fixed, *(() if suspended else ("spec.template",)))


def _cronjob(obj: Obj, old: Obj | None) -> list[Cause]:
    spec = obj["spec"]
    causes = [] if spec.get("schedule") else [required("spec.schedule")]
    schedule = spec.get("schedule") or "@daily"
    if not schedule.startswith("@") and len(schedule.split()) != 5:
        count = len(schedule.split())
        detail = f"expected exactly 5 fields, found {count}: [{schedule}]"
        causes.append(invalid_value("spec.schedule", schedule, detail))
    policies = ("Allow", "Forbid", "Replace")
    causes += one_of(spec.get("concurrencyPolicy"), "spec.concurrencyPolicy", policies)
    return causes + _job_spec((spec.get("jobTemplate") or {}).get("spec") or {}, "spec.jobTemplate.spec")


def _pod(obj: Obj, old: Obj | None) -> list[Cause]:
    if old:
        return pod_update(obj["spec"], old["spec"]) if obj["spec"] != old["spec"] else []
    return pod_spec(obj["spec"], "spec")


def _service(obj: Obj, old: Obj | None) -> list[Cause]:
    spec = obj["spec"]
    causes: list[Cause] = []
    kinds = ("ClusterIP", "ExternalName", "LoadBalancer", "NodePort")
    causes += one_of(spec.get("type"), "spec.type", kinds)
    headless = spec.get("clusterIP") == "None"
    ports = spec.get("ports") or []
    if not ports and not headless and spec.get("type") != "ExternalName":
        causes.append(required("spec.ports"))
    if spec.get("type") == "ExternalName" and not spec.get("externalName"):
        causes.append(required("spec.externalName"))
    names: set[str] = set()
    pairs: set[tuple[int, str]] = set()
    for index, port in enumerate(ports):
        place = f"spec.ports[{index}]"
        name = port.get("name") or ""
        if not name and len(ports) > 1:
            causes.append(required(f"{place}.name"))
        elif name:
            causes += dns_label(name, f"{place}.name")
            if name in names:
                causes.append(duplicate(f"{place}.name", name))
            names.add(name)
        causes += port_number(port.get("port", 0), f"{place}.port")
        causes += one_of(port.get("protocol"), f"{place}.protocol", ("SCTP", "TCP", "UDP"))
        causes += port_or_name(port.get("targetPort", 1), f"{place}.targetPort")
        pair = (port.get("port", 0), port.get("protocol") or "TCP")
        if pair in pairs:
            causes.append(duplicate(place, {"port": pair[0], "protocol": pair[1]}))
        pairs.add(pair)
        node_port = port.get("nodePort")
        if node_port and not 30000 <= node_port <= 32767:
            detail = "provided port is not in the valid range. The range of valid ports is 30000-32767"
            causes.append(invalid_value(f"{place}.nodePort", node_port, detail))
    causes += labels(spec.get("selector"), "spec.selector")
    same_type = bool(old and old["spec"].get("type") == spec.get("type") != "ExternalName")
    if old and same_type and old["spec"].get("clusterIP") != spec.get("clusterIP"):
        causes.append(invalid_value("spec.clusterIP", spec.get("clusterIP"), IMMUTABLE))
    return causes


def _claim(obj: Obj, old: Obj | None) -> list[Cause]:
    spec = obj["spec"]
    modes = ("ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod")
    causes: list[Cause] = []
    if not spec.get("accessModes"):
        causes.append(required("spec.accessModes", "at least 1 access mode is required"))
    for mode in spec.get("accessModes") or ():
        causes += one_of(mode, "spec.accessModes", modes)
    size = ((spec.get("resources") or {}).get("requests") or {}).get("storage")
    if size is None:
        causes.append(required("spec.resources[storage]"))
    elif amount(size) <= 0:
        causes.append(invalid_value("spec.resources[storage]", size, "must be greater than zero"))
    causes += label_selector(spec.get("selector"), "spec.selector")
    if old:
        causes += _claim_update(spec, old["spec"], size)
    return causes


def _claim_update(spec: Obj, old: Obj, size: str | None) -> list[Cause]:
    free = ("resources", "volumeName", "volumeAttributesClassName")
    kept = {k: v for k, v in spec.items() if k not in free}
    was = {k: v for k, v in old.items() if k not in free}
    if not was.get("storageClassName"):  # the default class is filled in later
        kept.pop("storageClassName", None)
        was.pop("storageClassName", None)
    causes = []
    if kept != was or (old.get("volumeName") and spec.get("volumeName") != old["volumeName"]):
        detail = (
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims"
        )
        causes.append(forbidden_field("spec", detail))
    before = ((old.get("resources") or {}).get("requests") or {}).get("storage")
    if size and before and amount(size) < amount(before):
        causes.append(forbidden_field("spec.resources.requests.storage", "field can not be less than status.capacity"))
    return causes


def _volume(obj: Obj, old: Obj | None) -> list[Cause]:
    spec = obj["spec"]
    causes: list[Cause] = []
    if not spec.get("accessModes"):
        causes.append(required("spec.accessModes"))
    if not (spec.get("capacity") or {}).get("storage"):
        causes.append(required("spec.capacity"))
    sources = set(spec) & {"hostPath", "local", "nfs", "csi", "iscsi", "awsElasticBlockStore", "rbd", "cephfs", "fc"}
    if not sources:
        causes.append(required("spec", "must specify a volume type"))
    policies = ("Delete", "Recycle", "Retain")
    return causes + one_of(spec.get("persistentVolumeReclaimPolicy"), "spec.persistentVolumeReclaimPolicy", policies)


def _storageclass(obj: Obj, old: Obj | None) -> list[Cause]:
    causes = [] if obj.get("provisioner") else [required("provisioner")]
    causes += one_of(obj.get("reclaimPolicy"), "reclaimPolicy", ("Delete", "Retain"))
    modes = ("Immediate", "WaitForFirstConsumer")
    causes += one_of(obj.get("volumeBindingMode"), "volumeBindingMode", modes)
    if old:
        for key, text in (
            ("provisioner", "updates to provisioner are forbidden."),
            ("parameters", "updates to parameters are forbidden."),
            ("reclaimPolicy", "updates to reclaimPolicy are forbidden."),
        ):
            if obj.get(key) != old.get(key):
                causes.append(forbidden_field(key, text))
        if obj.get("volumeBindingMode") != old.get("volumeBindingMode"):
            causes.append(invalid_value("volumeBindingMode", obj.get("volumeBindingMode"), IMMUTABLE))
    return causes


def _keys(obj: Obj, old: Obj | None) -> list[Cause]:
    """ConfigMaps and Secrets."""
    causes: list[Cause] = []
    size = 0
    for part in ("data", "binaryData"):
        for key, value in (obj.get(part) or {}).items():
            causes += config_key(key, f"{part}[{key}]")
            size += len(value.encode())
    if size > 1024 * 1024:
        causes.append(Cause("", "Too long: may not be more than 1048576 bytes", "FieldValueTooLong"))
    if old and old.get("immutable"):
        for key in ("immutable", "data", "binaryData"):
            if obj.get(key) != old.get(key):
                detail = "field is immutable when `immutable` is set"
                causes.append(forbidden_field(key, detail))
    return causes


_SECRET_KEYS = {
    "kubernetes.io/dockerconfigjson": (".dockerconfigjson",),
    "kubernetes.io/dockercfg": (".dockercfg",),
    "kubernetes.io/tls": ("tls.crt", "tls.key"),
    "kubernetes.io/ssh-auth": ("ssh-privatekey",),
}


def _secret(obj: Obj, old: Obj | None) -> list[Cause]:
    causes = _keys(obj, old)
    for key in _SECRET_KEYS.get(obj.get("type", ""), ()):
        if key not in (obj.get("data") or {}):
            causes.append(required(f"data[{key}]"))
    if old and obj.get("type") != old.get("type"):
        causes.append(invalid_value("type", obj.get("type"), IMMUTABLE))
    return causes


def _node(obj: Obj, old: Obj | None) -> list[Cause]:
    causes: list[Cause] = []
    seen: set[tuple[str, str]] = set()
    effects = ("NoExecute", "NoSchedule", "PreferNoSchedule")
    for index, taint in enumerate((obj.get("spec") or {}).get("taints") or ()):
        place = f"spec.taints[{index}]"
        causes += qualified_name(taint.get("key") or "", f"{place}.key")
        causes += one_of(taint.get("effect"), f"{place}.effect", effects, needed=True)
        pair = (taint.get("key", ""), taint.get("effect", ""))
        if pair in seen:
            causes.append(Cause(place, f"Duplicate value: {pair[0]}:{pair[1]}", "FieldValueDuplicate"))
        seen.add(pair)
    return causes


def _ingress(obj: Obj, old: Obj | None) -> list[Cause]:
    spec = obj.get("spec") or {}
    causes: list[Cause] = []
    if not spec.get("rules") and not spec.get("defaultBackend"):
        causes.append(Cause("spec", "Invalid value: null: either `defaultBackend` or `rules` must be specified"))
    for index, rule in enumerate(spec.get("rules") or ()):
        host = rule.get("host")
        if host:
            causes += dns_subdomain(host.removeprefix("*."), f"spec.rules[{index}].host")
        for number, path in enumerate((rule.get("http") or {}).get("paths") or ()):
            place = f"spec.rules[{index}].http.paths[{number}]"
            kinds = ("Exact", "ImplementationSpecific", "Prefix")
            causes += one_of(path.get("pathType"), f"{place}.pathType", kinds, needed=True)
            if path.get("pathType") in ("Exact", "Prefix") and not (path.get("path") or "").startswith("/"):
                causes.append(invalid_value(f"{place}.path", path.get("path") or "", "must be an absolute path"))
            port = ((path.get("backend") or {}).get("service") or {}).get("port") or {}
            if port.get("name"):
                causes += port_name(port["name"], f"{place}.backend.service.port.name")
    return causes


def _rules(obj: Obj, old: Obj | None) -> list[Cause]:
    causes = []
    for index, rule in enumerate(obj.get("rules") or ()):
        if not rule.get("verbs"):
            causes.append(required(f"rules[{index}].verbs", "verbs must contain at least one value"))
    return causes


def _binding(obj: Obj, old: Obj | None) -> list[Cause]:
    reference = obj.get("roleRef") or {}
    causes = one_of(reference.get("kind"), "roleRef.kind", ("ClusterRole", "Role"))
    if not reference.get("name"):
        causes.append(required("roleRef.name"))
    if old and old.get("roleRef") != reference:
        causes.append(invalid_value("roleRef", reference, "cannot change roleRef"))
    for index, subject in enumerate(obj.get("subjects") or ()):
        if not subject.get("name"):
            causes.append(required(f"subjects[{index}].name"))
        if subject.get("kind") == "ServiceAccount" and not subject.get("namespace"):
            causes.append(required(f"subjects[{index}].namespace"))
    return causes


def _crd(obj: Obj, old: Obj | None) -> list[Cause]:
    spec = obj.get("spec") or {}
    names = spec.get("names") or {}
    causes = [required(f"spec.{key}") for key in ("group", "scope", "versions") if not spec.get(key)]
    causes += [required(f"spec.names.{key}") for key in ("plural", "kind") if not names.get(key)]
    causes += one_of(spec.get("scope"), "spec.scope", ("Cluster", "Namespaced"))
    wanted = f"{names.get('plural')}.{spec.get('group')}"
    if obj["metadata"].get("name") != wanted:
        detail = 'must be spec.names.plural+"."+spec.group'
        causes.append(invalid_value("metadata.name", obj["metadata"].get("name"), detail))
    versions = spec.get("versions") or []
    if versions and sum(bool(v.get("storage")) for v in versions) != 1:
        causes.append(Cause("spec.versions", "Invalid value: must have exactly one version marked as storage version"))
    for index, version in enumerate(versions):
        if not (version.get("schema") or {}).get("openAPIV3Schema"):
            causes.append(required(f"spec.versions[{index}].schema.openAPIV3Schema", "schemas are required"))
    return causes + _fixed(obj, old, "spec.scope", "spec.names.kind", "spec.names.plural", "spec.group")


_RBAC = "rbac.authorization.k8s.io"
_KINDS: dict[tuple[str, str], Callable[[Obj, Obj | None], list[Cause]]] = {
    ("", "pods"): _pod,
    ("", "services"): _service,
    ("", "persistentvolumeclaims"): _claim,
    ("", "persistentvolumes"): _volume,
    ("", "configmaps"): _keys,
    ("", "secrets"): _secret,
    ("", "nodes"): _node,
    ("apps", "deployments"): _deployment,
    ("apps", "replicasets"): _replicaset,
    ("apps", "daemonsets"): _daemonset,
    ("apps", "statefulsets"): _statefulset,
    ("batch", "jobs"): _job,
    ("batch", "cronjobs"): _cronjob,
    ("storage.k8s.io", "storageclasses"): _storageclass,
    ("networking.k8s.io", "ingresses"): _ingress,
    (_RBAC, "roles"): _rules,
    (_RBAC, "clusterroles"): _rules,
    (_RBAC, "rolebindings"): _binding,
    (_RBAC, "clusterrolebindings"): _binding,
    ("apiextensions.k8s.io", "customresourcedefinitions"): _crd,
}


def _missing(value: Any, type_name: str, path: str) -> list[Cause]:
    """Required fields (by the published schema) that kinds without a function of their own lack."""
    if type_name.startswith("[]") and isinstance(value, list):
        return [c for i, item in enumerate(value) for c in _missing(item, type_name[2:], f"{path}[{i}]")]
    described = type_named(type_name)
    if described is None or not isinstance(value, dict):
        return []
    causes = []
    for name, field in described.fields.items():
        place = f"{path}.{name}" if path else name
        if name in value:
            causes += _missing(value[name], field.type, place) if name not in ("metadata", "status") else []
        elif field.required:
            causes.append(required(place))
    return causes


def validate(resource: Resource, obj: Obj, old: Obj | None) -> list[Cause]:
    """All the reasons to refuse an object, new or changed; empty when it is fine."""
    key = (resource.group, resource.plural)
    causes = validate_metadata(*key, obj["metadata"], strict_name=old is None)
    function = _KINDS.get(key)
    if function:
        return causes + function(obj, old)
    if resource.definition:
        return causes
    type_name = type_of(resource.api_version, resource.kind)
    return causes + (_missing(obj, type_name, "") if type_name else [])
