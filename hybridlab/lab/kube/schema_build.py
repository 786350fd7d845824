"""Make data/kube-schema.json: the built-in kinds, their fields and types, from the Kubernetes client's models.

Run as ``python -m hybridlab.lab.kube.schema_build`` after changing the client's version; a unit test compares. The file
exists because importing all the client's models takes a second, which is longer than the lab may take to start.

What the models don't say is in the tables here, from the struct tags of k8s.io/api (patchMergeKey, patchStrategy,
listType, listMapKey, structType): they decide how strategic merge patch and server-side apply treat a list or map.
"""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from hybridlab.lab.kube.resources import BUILT_IN

EXTRA_KINDS = {
    "autoscaling/v1/Scale": "V1Scale",
    "policy/v1/Eviction": "V1Eviction",
    "v1/Binding": "V1Binding",
    "v1/DeleteOptions": "V1DeleteOptions",
    "authentication.k8s.io/v1/TokenRequest": "AuthenticationV1TokenRequest",
    "authentication.k8s.io/v1/SelfSubjectReview": "V1SelfSubjectReview",
    "authentication.k8s.io/v1/TokenReview": "V1TokenReview",
    "authorization.k8s.io/v1/SelfSubjectAccessReview": "V1SelfSubjectAccessReview",
    "authorization.k8s.io/v1/SelfSubjectRulesReview": "V1SelfSubjectRulesReview",
    "authorization.k8s.io/v1/SubjectAccessReview": "V1SubjectAccessReview",
}
MODELS = {"v1/Event": "CoreV1Event", "autoscaling/v2/HorizontalPodAutoscaler": "V2HorizontalPodAutoscaler"}

# "Type.field" -> the key(s) by which items of that list are told apart; the first is the strategic merge key.
LIST_KEYS = {
    "V1PodSpec.volumes": "name",
    "V1PodSpec.containers": "name",
    "V1PodSpec.initContainers": "name",
    "V1PodSpec.ephemeralContainers": "name",
    "V1PodSpec.imagePullSecrets": "name",
    "V1PodSpec.hostAliases": "ip",
    "V1PodSpec.resourceClaims": "name",
    "V1PodSpec.schedulingGates": "name",
    "V1PodSpec.topologySpreadConstraints": "topologyKey whenUnsatisfiable",
    "V1Container.ports": "containerPort protocol",
    "V1Container.env": "name",
    "V1Container.volumeMounts": "mountPath",
    "V1Container.volumeDevices": "devicePath",
    "V1EphemeralContainer.env": "name",
    "V1EphemeralContainer.volumeMounts": "mountPath",
    "V1ServiceSpec.ports": "port protocol",
    "V1ServiceAccount.secrets": "name",
    "V1ObjectMeta.ownerReferences": "uid",
    "V1NodeStatus.addresses": "type",
    "V1PodStatus.podIPs": "ip",
    "V1PodStatus.hostIPs": "ip",
    "V1MutatingWebhookConfiguration.webhooks": "name",
    "V1ValidatingWebhookConfiguration.webhooks": "name",
    "V1ResourceRequirements.claims": "name",
}
SET_LISTS = {"V1ObjectMeta.finalizers", "V1NodeSpec.podCIDRs"}
RETAIN_KEYS = {"V1PodSpec.volumes", "V1PodSpec.resourceClaims", "V1DeploymentSpec.strategy"}
ATOMIC_TYPES = {
    "V1LabelSelector",
    "V1LocalObjectReference",
    "V1ObjectFieldSelector",
    "V1ResourceFieldSelector",
    "V1SecretKeySelector",
    "V1ConfigMapKeySelector",
    "V1ObjectReference",
    "CoreV1ObjectReference",
    "V1TypedLocalObjectReference",
    "V1NodeSelector",
    "V1NodeSelectorTerm",
    "V1ScopeSelector",
    "V1TopologySelectorTerm",
    "V1SecretReference",
    "CoreV1EndpointPort",
    "V1EndpointAddress",
    "V1RoleRef",
}
ATOMIC_MAPS = {"V1PodSpec.nodeSelector", "V1ServiceSpec.selector"}
QUANTITY_MAPS = {"requests", "limits", "capacity", "allocatable", "allocatedResources", "hard", "used", "overhead"}
QUANTITY_MAPS |= {"default", "defaultRequest", "max", "min", "maxLimitRequestRatio", "podFixed"}
QUANTITIES = {"sizeLimit", "divisor", "averageValue", "maximumVolumeSize", "memory"}

_SCALARS = {
    "str": "string",
    "int": "integer",
    "bool": "boolean",
    "float": "number",
    "datetime": "date-time",
    "bytes": "byte",
    "object": "object",
    "V1JSONSchemaProps": "object",  # looked at by hybridlab.lab.kube.crd instead
}


def _type(info: Any, declared: str, name: str) -> str:
    if declared == "object" and "Union" in str(info.annotation):
        return "int-or-string"
    if declared == "Dict[str, str]" and name in QUANTITY_MAPS:
        return "{}quantity"
    if declared == "str" and name in QUANTITIES:
        return "quantity"
    return _shape(declared)


def _shape(declared: str) -> str:
    for prefix, sign in (("Dict[str, ", "{}"), ("List[", "[]")):
        if declared.startswith(prefix):
            return sign + _shape(declared[len(prefix) : -1])
    return _SCALARS.get(declared, declared)


def _first_sentence(text: str) -> str:
    text = re.sub(r"\s+", " ", text or "").strip()
    return re.split(r"(?<=[a-z)`\"'])\. ", text, maxsplit=1)[0].rstrip(".") + "." if text else ""


def _extras(owner: str, name: str, kind: str) -> dict[str, Any]:
    path = f"{owner}.{name}"
    extras: dict[str, Any] = {}
    if path in LIST_KEYS:
        extras["keys"] = LIST_KEYS[path].split()
    elif name == "conditions" and kind.startswith("[]") and owner.endswith("Status"):
        extras["keys"] = ["type"]
    if path in SET_LISTS:
        extras["set"] = True
    if path in RETAIN_KEYS:
        extras["retain"] = True
    if path in ATOMIC_MAPS:
        extras["atomic"] = True
    return extras


def _describe(client: Any, name: str) -> dict[str, Any]:
    model = getattr(client, name)
    by_wire_name = {info.serialization_alias or field: info for field, info in model.model_fields.items()}
    fields = {}
    for attribute, json_name in model.attribute_map.items():
        info = by_wire_name[json_name]
        kind = _type(info, model.openapi_types[attribute], json_name)
        row: list[Any] = [kind, 1 if info.is_required() else 0, _first_sentence(info.description or "")]
        extras = _extras(name, json_name, kind)
        fields[json_name] = [*row, extras] if extras else row
    doc = _first_sentence((model.__doc__ or "").split("Attributes:")[0])
    return {"d": doc, "f": fields, **({"atomic": True} if name in ATOMIC_TYPES else {})}


def build() -> dict[str, Any]:
    """The whole schema: ``kinds`` ("apps/v1/Deployment" → type name) and ``types`` (see hybridlab.lab.kube.schema)."""
    from kubernetes import client  # a second to import: only the generator pays for it

    kinds = dict(EXTRA_KINDS)
    for resource in BUILT_IN:
        key = f"{resource.api_version}/{resource.kind}"
        kinds[key] = MODELS.get(key, "V1" + resource.kind)
    types: dict[str, Any] = {}
    todo = sorted(set(kinds.values()))
    while todo:
        name = todo.pop()
        if name not in types:
            types[name] = _describe(client, name)
            todo += [r for r in (f[0].lstrip("[]{}") for f in types[name]["f"].values()) if hasattr(client, r)]
    return {"kinds": dict(sorted(kinds.items())), "types": dict(sorted(types.items()))}


def text() -> str:
    """The file's content: one type a line, so that a change of the client shows in a diff."""
    schema = build()
    rows = [f"{json.dumps(name)}:{json.dumps(body, separators=(',', ':'))}" for name, body in schema["types"].items()]
    kinds = json.dumps(schema["kinds"], separators=(",", ":"))
    return '{"kinds":' + kinds + ',"types":{\n' + ",\n".join(rows) + "\n}}\n"


def main() -> None:
    target = Path(str(files("hybridlab.data"))) / "kube-schema.json"
    target.write_text(text(), encoding="utf-8")


if __name__ == "__main__":
    main()
