"""Pod specs: containers, ports, environment, volumes, probes, resources, affinity, tolerations."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from typing import Any

from hybridlab.lab.kube.errors import Cause, duplicate, forbidden_field, invalid_value, required, unsupported
from hybridlab.lab.kube.validation.meta import dns_label, dns_subdomain, label_selector, labels, one_of, qualified_name

Obj = dict[str, Any]

_PULL = ("Always", "IfNotPresent", "Never")
_ENV_TEXT = "a valid environment variable name must consist only of printable ASCII characters other than '='"
_PORT_NAME = re.compile(r"^(?=.*[a-z])[a-z0-9]([a-z0-9-]*[a-z0-9])?$")
_UNITS = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}


def amount(text: str) -> Decimal:
    """The value of a quantity ("500m", "1.5Gi", "1e3")."""
    found = re.match(r"^([+-]?[0-9.]+)(Ki|Mi|Gi|Ti|Pi|Ei|[numkMGTPE]?)$", text)
    if not found:
        try:
            return Decimal(text)
        except InvalidOperation:
            return Decimal(0)
    number, unit = Decimal(found[1]), found[2]
    if unit.endswith("i"):
        return number * Decimal(1024) ** ("KMGTPE".index(unit[0]) + 1)
    return number * Decimal(10) ** _UNITS[unit]


def port_number(value: Any, field: str) -> list[Cause]:
    if isinstance(value, int) and 1 <= value <= 65535:
        return []
    return [invalid_value(field, value, "must be between 1 and 65535, inclusive")]


def port_name(value: str, field: str) -> list[Cause]:
    """IANA service name."""
    if len(value) > 15:
        return [invalid_value(field, value, "must be no more than 15 characters")]
    if not _PORT_NAME.match(value) or "--" in value:
        detail = "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)"
        return [invalid_value(field, value, detail)]
    return []


def port_or_name(value: Any, field: str) -> list[Cause]:
    return port_name(value, field) if isinstance(value, str) else port_number(value, field)


def resources(value: Obj, field: str) -> list[Cause]:
    """requests and limits of a container."""
    causes: list[Cause] = []
    limits, requests = value.get("limits") or {}, value.get("requests") or {}
    for kind, amounts in (("limits", limits), ("requests", requests)):
        for name, text in amounts.items():
            place = f"{field}.{kind}[{name}]"
            if amount(text) < 0:
                causes.append(invalid_value(place, text, "must be greater than or equal to 0"))
            standard = name in ("cpu", "memory", "ephemeral-storage") or name.startswith("hugepages-")
            if not standard and "/" not in name:
                causes.append(invalid_value(place, name, "must be a standard resource type or fully qualified"))
    for name, text in requests.items():
        if name in limits and amount(text) > amount(limits[name]):
            detail = f"must be less than or equal to {name} limit of {limits[name]}"
            causes.append(invalid_value(f"{field}.requests", text, detail))
    return causes


def _ports(container: Obj, field: str) -> list[Cause]:
    causes: list[Cause] = []
    names: set[str] = set()
    for index, port in enumerate(container.get("ports") or ()):
        place = f"{field}.ports[{index}]"
        name = port.get("name")
        if name:
            causes += port_name(name, f"{place}.name")
            if name in names:
                causes.append(duplicate(f"{place}.name", name))
            names.add(name)
        if not port.get("containerPort"):
            causes.append(required(f"{place}.containerPort"))
        else:
            causes += port_number(port["containerPort"], f"{place}.containerPort")
        if port.get("hostPort"):
            causes += port_number(port["hostPort"], f"{place}.hostPort")
        causes += one_of(port.get("protocol"), f"{place}.protocol", ("TCP", "UDP", "SCTP"))
    return causes


def _env(container: Obj, field: str) -> list[Cause]:
    causes: list[Cause] = []
    for index, variable in enumerate(container.get("env") or ()):
        place = f"{field}.env[{index}]"
        name = variable.get("name") or ""
        if not name:
            causes.append(required(f"{place}.name"))
        elif "=" in name or not name.isprintable() or not name.isascii():
            causes.append(invalid_value(f"{place}.name", name, _ENV_TEXT))
        source = variable.get("valueFrom")
        if source is not None:
            if variable.get("value"):
                causes.append(invalid_value(f"{place}.valueFrom", "", "may not be specified when `value` is not empty"))
            if len(source) != 1:
                detail = "may not have more than one field specified at a time" if source else "must specify one of: "
                causes.append(invalid_value(f"{place}.valueFrom", "", detail))
            for kind in ("secretKeyRef", "configMapKeyRef"):
                if kind in source:
                    for key in ("name", "key"):
                        if not source[kind].get(key):
                            causes.append(required(f"{place}.valueFrom.{kind}.{key}"))
    return causes


def _mounts(container: Obj, field: str, volumes: set[str]) -> list[Cause]:
    causes: list[Cause] = []
    seen: set[str] = set()
    for index, mount in enumerate(container.get("volumeMounts") or ()):
        place = f"{field}.volumeMounts[{index}]"
        name, path = mount.get("name") or "", mount.get("mountPath") or ""
        if not name:
            causes.append(required(f"{place}.name"))
        elif name not in volumes:
            causes.append(Cause(f"{place}.name", f'Not found: "{name}"', "FieldValueNotFound"))
        if not path:
            causes.append(required(f"{place}.mountPath"))
        elif path in seen:
            causes.append(invalid_value(f"{place}.mountPath", path, "must be unique"))
        seen.add(path)
        sub = mount.get("subPath") or ""
        if sub.startswith("/"):
            causes.append(invalid_value(f"{place}.subPath", sub, "must be a relative path"))
        if ".." in sub.split("/"):
            causes.append(invalid_value(f"{place}.subPath", sub, "must not contain '..'"))
    return causes


def _handler(handler: Obj, field: str) -> list[Cause]:
    kinds = [kind for kind in ("exec", "httpGet", "tcpSocket", "grpc", "sleep") if kind in handler]
    if not kinds:
        return [required(field, "must specify a handler type")]
    causes = [forbidden_field(f"{field}.{k}", "may not specify more than 1 handler type") for k in kinds[1:]]
    if "exec" in handler and not handler["exec"].get("command"):
        causes.append(required(f"{field}.exec.command"))
    for kind in ("httpGet", "tcpSocket"):
        if kind in handler:
            causes += port_or_name(handler[kind].get("port", 0), f"{field}.{kind}.port")
    if "httpGet" in handler:
        causes += one_of(handler["httpGet"].get("scheme"), f"{field}.httpGet.scheme", ("HTTP", "HTTPS"))
    return causes


def _probes(container: Obj, field: str) -> list[Cause]:
    causes: list[Cause] = []
    for name in ("livenessProbe", "readinessProbe", "startupProbe"):
        probe = container.get(name)
        if probe is None:
            continue
        causes += _handler(probe, f"{field}.{name}")
        for key in ("initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"):
            if probe.get(key, 0) < 0:
                causes.append(invalid_value(f"{field}.{name}.{key}", probe[key], "must be greater than or equal to 0"))
        if name != "readinessProbe" and probe.get("successThreshold", 1) != 1:
            causes.append(invalid_value(f"{field}.{name}.successThreshold", probe["successThreshold"], "must be 1"))
    return causes


def _container(container: Obj, field: str, volumes: set[str], names: set[str], kind: str) -> list[Cause]:
    causes: list[Cause] = []
    name = container.get("name") or ""
    if not name:
        causes.append(required(f"{field}.name"))
    else:
        causes += dns_label(name, f"{field}.name")
        if name in names:
            causes.append(duplicate(f"{field}.name", name))
        names.add(name)
    image = container.get("image") or ""
    if not image:
        causes.append(required(f"{field}.image"))
    elif image != image.strip():
        causes.append(invalid_value(f"{field}.image", image, "must not have leading or trailing whitespace"))
    causes += one_of(container.get("imagePullPolicy"), f"{field}.imagePullPolicy", _PULL)
    causes += _ports(container, field)
    causes += _env(container, field)
    causes += _mounts(container, field, volumes)
    if kind == "container" or container.get("restartPolicy") == "Always":
        causes += _probes(container, field)
    else:
        for probe in ("livenessProbe", "readinessProbe", "startupProbe", "lifecycle"):
            if probe in container:
                detail = "may not be set for init containers without restartPolicy=Always"
                causes.append(forbidden_field(f"{field}.{probe}", detail))
    for hook in ("postStart", "preStop"):
        if hook in (container.get("lifecycle") or {}) and kind == "container":
            causes += _handler(container["lifecycle"][hook], f"{field}.lifecycle.{hook}")
    return causes + resources(container.get("resources") or {}, f"{field}.resources")


def _volumes(spec: Obj, field: str) -> list[Cause]:
    causes: list[Cause] = []
    names: set[str] = set()
    for index, volume in enumerate(spec.get("volumes") or ()):
        place = f"{field}[{index}]"
        name = volume.get("name") or ""
        if not name:
            causes.append(required(f"{place}.name"))
        else:
            causes += dns_label(name, f"{place}.name")
            if name in names:
                causes.append(duplicate(f"{place}.name", name))
            names.add(name)
        sources = [key for key in volume if key != "name"]
        for extra in sources[1:]:
            causes.append(forbidden_field(f"{place}.{extra}", "may not specify more than 1 volume type"))
        for source, key in (
            ("persistentVolumeClaim", "claimName"),
            ("secret", "secretName"),
            ("configMap", "name"),
            ("hostPath", "path"),
        ):
            if source in volume and not volume[source].get(key):
                causes.append(required(f"{place}.{source}.{key}"))
    return causes


def _node_term(term: Obj, field: str) -> list[Cause]:
    causes: list[Cause] = []
    for index, expression in enumerate(term.get("matchExpressions") or ()):
        place = f"{field}.matchExpressions[{index}]"
        operator, values = expression.get("operator"), expression.get("values") or []
        if operator in ("In", "NotIn") and not values:
            causes.append(required(f"{place}.values", "must be specified when `operator` is 'In' or 'NotIn'"))
        elif operator in ("Exists", "DoesNotExist") and values:
            detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"
            causes.append(forbidden_field(f"{place}.values", detail))
        elif operator in ("Gt", "Lt") and len(values) != 1:
            causes.append(required(f"{place}.values", "must be specified single value when `operator` is 'Lt' or 'Gt'"))
        elif operator not in ("In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"):
            causes.append(invalid_value(f"{place}.operator", operator or "", "not a valid selector operator"))
        causes += qualified_name(expression.get("key") or "", f"{place}.key")
    return causes


def _affinity(affinity: Obj, field: str) -> list[Cause]:
    causes: list[Cause] = []
    node = affinity.get("nodeAffinity") or {}
    must, prefer = "requiredDuringSchedulingIgnoredDuringExecution", "preferredDuringSchedulingIgnoredDuringExecution"
    if must in node:
        place = f"{field}.nodeAffinity.{must}.nodeSelectorTerms"
        terms = node[must].get("nodeSelectorTerms") or []
        if not terms:
            causes.append(required(place, "must have at least one node selector term"))
        for index, term in enumerate(terms):
            causes += _node_term(term, f"{place}[{index}]")
    for index, row in enumerate(node.get(prefer) or ()):
        place = f"{field}.nodeAffinity.{prefer}[{index}]"
        if not 1 <= row.get("weight", 0) <= 100:
            causes.append(invalid_value(f"{place}.weight", row.get("weight", 0), "must be in the range 1-100"))
        causes += _node_term(row.get("preference") or {}, f"{place}.preference")
    for kind in ("podAffinity", "podAntiAffinity"):
        rules = affinity.get(kind) or {}
        terms = [(f"{must}[{i}]", t) for i, t in enumerate(rules.get(must) or ())]
        for index, row in enumerate(rules.get(prefer) or ()):
            if not 1 <= row.get("weight", 0) <= 100:
                place = f"{field}.{kind}.{prefer}[{index}].weight"
                causes.append(invalid_value(place, row.get("weight", 0), "must be in the range 1-100"))
            terms.append((f"{prefer}[{index}].podAffinityTerm", row.get("podAffinityTerm") or {}))
        for where, term in terms:
            place = f"{field}.{kind}.{where}"
            if not term.get("topologyKey"):
                causes.append(required(f"{place}.topologyKey", "can not be empty"))
            causes += label_selector(term.get("labelSelector"), f"{place}.labelSelector")
    return causes


def _tolerations(spec: Obj, field: str) -> list[Cause]:
    causes: list[Cause] = []
    for index, toleration in enumerate(spec.get("tolerations") or ()):
        place = f"{field}[{index}]"
        operator = toleration.get("operator") or "Equal"
        if toleration.get("key"):
            causes += qualified_name(toleration["key"], f"{place}.key")
        elif operator != "Exists":
            detail = 'operator must be Exists when `key` is empty, which means "match all values and all keys"'
            causes.append(invalid_value(f"{place}.operator", operator, detail))
        if operator not in ("Equal", "Exists"):
            causes.append(unsupported(f"{place}.operator", operator, ("Equal", "Exists")))
        if operator == "Exists" and toleration.get("value"):
            detail = "value must be empty when `operator` is 'Exists'"
            causes.append(invalid_value(f"{place}.operator", toleration["value"], detail))
        causes += one_of(toleration.get("effect"), f"{place}.effect", ("NoSchedule", "PreferNoSchedule", "NoExecute"))
        if "tolerationSeconds" in toleration and toleration.get("effect") != "NoExecute":
            detail = "effect must be 'NoExecute' when `tolerationSeconds` is set"
            causes.append(invalid_value(f"{place}.effect", toleration.get("effect") or "", detail))
    return causes


def pod_spec(spec: Obj, field: str, *, restart: tuple[str, ...] = ("Always", "OnFailure", "Never")) -> list[Cause]:
    """A whole pod spec; ``restart`` are the restart policies its owner allows."""
    causes = _volumes(spec, f"{field}.volumes")
    volumes = {v.get("name") for v in spec.get("volumes") or ()}
    if not spec.get("containers"):
        causes.append(required(f"{field}.containers"))
    names: set[str] = set()
    for index, container in enumerate(spec.get("containers") or ()):
        causes += _container(container, f"{field}.containers[{index}]", volumes, names, "container")
    for index, container in enumerate(spec.get("initContainers") or ()):
        causes += _container(container, f"{field}.initContainers[{index}]", volumes, names, "init")
    causes += one_of(spec.get("restartPolicy"), f"{field}.restartPolicy", restart, needed=True)
    causes += one_of(
        spec.get("dnsPolicy"), f"{field}.dnsPolicy", ("ClusterFirst", "ClusterFirstWithHostNet", "Default", "None")
    )
    causes += labels(spec.get("nodeSelector"), f"{field}.nodeSelector")
    causes += _affinity(spec.get("affinity") or {}, f"{field}.affinity")
    causes += _tolerations(spec, f"{field}.tolerations")
    if spec.get("serviceAccountName"):
        causes += dns_subdomain(spec["serviceAccountName"], f"{field}.serviceAccountName")
    if spec.get("hostname"):
        causes += dns_label(spec["hostname"], f"{field}.hostname")
    if spec.get("hostNetwork"):
        for index, container in enumerate(spec.get("containers") or ()):
            for number, port in enumerate(container.get("ports") or ()):
                if port.get("hostPort") and port["hostPort"] != port.get("containerPort"):
                    place = f"{field}.containers[{index}].ports[{number}].containerPort"
                    detail = "must match `hostPort` when `hostNetwork` is true"
                    causes.append(invalid_value(place, port["containerPort"], detail))
    seconds = spec.get("activeDeadlineSeconds")
    if seconds is not None and seconds < 1:
        causes.append(
            invalid_value(f"{field}.activeDeadlineSeconds", seconds, "must be between 1 and 2147483647, inclusive")
        )
    return causes


# What may change in a running pod (ValidatePodUpdate).
_FORBIDDEN_UPDATE = (
    "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,"
    "`spec.activeDeadlineSeconds`,`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously "
    "negative),`spec.tolerations` (only additions to existing tolerations)"
)


def pod_update(spec: Obj, old: Obj) -> list[Cause]:
    """Changes of a pod's spec that are refused."""

    def fixed(value: Obj) -> Obj:
        kept = {k: v for k, v in value.items() if k not in ("activeDeadlineSeconds", "tolerations")}
        if not old.get("nodeName"):  # the scheduler's binding
            kept.pop("nodeName", None)
        for key in ("containers", "initContainers"):
            if key in kept:
                kept[key] = [{k: v for k, v in c.items() if k not in ("image", "resources")} for c in kept[key]]
        if "schedulingGates" in kept:
            kept.pop("schedulingGates")
        return {k: v for k, v in kept.items() if v not in ([], {}, None)}

    return [] if fixed(spec) == fixed(old) else [forbidden_field("spec", _FORBIDDEN_UPDATE)]
