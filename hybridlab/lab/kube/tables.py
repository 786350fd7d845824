"""Tables, which is what kubectl get prints: columns and cells by kind (pkg/printers/internalversion)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from hybridlab.lab.kube.resources import Resource
from hybridlab.lab.kube.store import Obj
from hybridlab.lab.kube.wire import metadata_only

Cells = Callable[[Obj], list[Any]]
_NONE = "<none>"
_UNKNOWN = "<unknown>"


def age(timestamp: str | None) -> str:
    """How long ago, as kubectl writes it ("45s", "5m30s", "3h2m", "2d")."""
    if not timestamp:
        return _UNKNOWN
    then = datetime.fromisoformat(timestamp.replace("Z", "+00:00"))
    seconds = int((datetime.now(UTC) - then).total_seconds())
    return duration(max(seconds, 0))


def duration(seconds: int) -> str:
    if seconds < 120:
        return f"{seconds}s"
    minutes, hours = seconds // 60, seconds // 3600
    if minutes < 10:
        rest = seconds % 60
        return f"{minutes}m{rest}s" if rest else f"{minutes}m"
    if hours < 3:
        return f"{minutes}m"
    if hours < 8:
        return f"{hours}h{minutes % 60}m" if minutes % 60 else f"{hours}h"
    if hours < 48:
        return f"{hours}h"
    days = hours // 24
    if days < 8:
        return f"{days}d{hours % 24}h" if hours % 24 else f"{days}d"
    return f"{days}d"


def _created(obj: Obj) -> str:
    return age(obj["metadata"].get("creationTimestamp"))


def _images(spec: Obj) -> str:
    return ",".join(c.get("image", "") for c in spec.get("containers") or ())


def _names(spec: Obj) -> str:
    return ",".join(c.get("name", "") for c in spec.get("containers") or ())


def selector_text(selector: Obj | None) -> str:
    if selector is None:
        return _NONE
    parts = [f"{k}={v}" for k, v in (selector.get("matchLabels") or {}).items()]
    for row in selector.get("matchExpressions") or ():
        values = ",".join(row.get("values") or ())
        parts.append(
            {"Exists": row["key"], "DoesNotExist": "!" + row["key"]}.get(
                row["operator"], f"{row['key']} {row['operator'].lower()} ({values})"
            )
        )
    return ",".join(parts) or _NONE


def _plain(values: Mapping[str, str] | None) -> str:
    return ",".join(f"{k}={v}" for k, v in (values or {}).items()) or _NONE


# -- pods --------------------------------------------------------------------------------------------------------------
def pod_status(pod: Obj) -> tuple[str, str, str]:
    """(READY, STATUS, RESTARTS) as kubectl shows them."""
    status, spec = pod.get("status") or {}, pod.get("spec") or {}
    reason = status.get("reason") or status.get("phase") or "Unknown"
    ready, restarts, last = 0, 0, ""
    starting = False
    for container in status.get("initContainerStatuses") or ():
        restarts += container.get("restartCount", 0)
        state = container.get("state") or {}
        ended, waiting = state.get("terminated"), state.get("waiting")
        if ended and ended.get("exitCode") == 0:
            continue
        done = sum(1 for c in status["initContainerStatuses"] if (c.get("state") or {}).get("terminated"))
        if ended:
            reason = "Init:" + (ended.get("reason") or f"ExitCode:{ended.get('exitCode')}")
        elif waiting and waiting.get("reason") not in (None, "", "PodInitializing"):
            reason = "Init:" + waiting["reason"]
        else:
            reason = f"Init:{done}/{len(spec.get('initContainers') or ())}"
        starting = True
        break
    if not starting:
        restarts = 0
        running = False
        for container in reversed(status.get("containerStatuses") or []):
            restarts += container.get("restartCount", 0)
            state = container.get("state") or {}
            ended, waiting = state.get("terminated"), state.get("waiting")
            finished = ((container.get("lastState") or {}).get("terminated") or {}).get("finishedAt")
            last = max(last, finished or "")
            if waiting and waiting.get("reason"):
                reason = waiting["reason"]
            elif ended:
                reason = ended.get("reason") or f"ExitCode:{ended.get('exitCode')}"
            elif container.get("ready") and "running" in state:
                running = True
                ready += 1
        if reason == "Completed" and running:
            reason = "Running"
    if pod["metadata"].get("deletionTimestamp"):
        reason = "Unknown" if status.get("reason") == "NodeLost" else "Terminating"
    text = f"{restarts} ({age(last)} ago)" if restarts and last else str(restarts)
    return f"{ready}/{len(spec.get('containers') or ())}", reason, text


def _pod(obj: Obj) -> list[Any]:
    status, spec = obj.get("status") or {}, obj.get("spec") or {}
    gates = spec.get("readinessGates") or []
    true = {c["type"] for c in status.get("conditions") or () if c.get("status") == "True"}
    gate = f"{sum(g['conditionType'] in true for g in gates)}/{len(gates)}" if gates else _NONE
    nominated = status.get("nominatedNodeName") or _NONE
    where = [status.get("podIP") or _NONE, spec.get("nodeName") or _NONE, nominated, gate]
    ready, reason, restarts = pod_status(obj)
    return [ready, reason, restarts, _created(obj), *where]


def _node(obj: Obj) -> list[Any]:
    status, spec = obj.get("status") or {}, obj.get("spec") or {}
    ready = next((c for c in status.get("conditions") or () if c["type"] == "Ready"), None)
    text = "Unknown" if ready is None else ("Ready" if ready["status"] == "True" else "NotReady")
    if spec.get("unschedulable"):
        text += ",SchedulingDisabled"
    prefix = "node-role.kubernetes.io/"
    labels = obj["metadata"].get("labels") or {}
    roles = sorted(key[len(prefix) :] for key in labels if key.startswith(prefix))
    addresses = {a["type"]: a["address"] for a in status.get("addresses") or ()}
    info = status.get("nodeInfo") or {}
    return [
        text,
        ",".join(roles) or _NONE,
        _created(obj),
        info.get("kubeletVersion", ""),
        addresses.get("InternalIP", _NONE),
        addresses.get("ExternalIP", _NONE),
        info.get("osImage") or _UNKNOWN,
        info.get("kernelVersion") or _UNKNOWN,
        info.get("containerRuntimeVersion") or _UNKNOWN,
    ]


# -- workloads ---------------------------------------------------------------------------------------------------------
def _template(obj: Obj) -> Obj:
    spec: Obj = ((obj.get("spec") or {}).get("template") or {}).get("spec") or {}
    return spec


def _deployment(obj: Obj) -> list[Any]:
    spec, status = obj["spec"], obj.get("status") or {}
    ready = f"{status.get('readyReplicas', 0)}/{spec.get('replicas', 1)}"
    counts = [status.get("updatedReplicas", 0), status.get("availableReplicas", 0), _created(obj)]
    return [ready, *counts, _names(_template(obj)), _images(_template(obj)), selector_text(spec.get("selector"))]


def _replicaset(obj: Obj) -> list[Any]:
    spec, status = obj["spec"], obj.get("status") or {}
    counts = [spec.get("replicas", 1), status.get("replicas", 0), status.get("readyReplicas", 0), _created(obj)]
    return [*counts, _names(_template(obj)), _images(_template(obj)), selector_text(spec.get("selector"))]


def _statefulset(obj: Obj) -> list[Any]:
    ready = f"{(obj.get('status') or {}).get('readyReplicas', 0)}/{obj['spec'].get('replicas', 1)}"
    return [ready, _created(obj), _names(_template(obj)), _images(_template(obj))]


def _daemonset(obj: Obj) -> list[Any]:
    status = obj.get("status") or {}
    keys = ("desiredNumberScheduled", "currentNumberScheduled", "numberReady", "updatedNumberScheduled")
    counts = [status.get(key, 0) for key in (*keys, "numberAvailable")]
    chosen = _plain(_template(obj).get("nodeSelector"))
    rest = [_names(_template(obj)), _images(_template(obj)), selector_text(obj["spec"].get("selector"))]
    return [*counts, chosen, _created(obj), *rest]


def _job(obj: Obj) -> list[Any]:
    spec, status = obj["spec"], obj.get("status") or {}
    wanted = spec.get("completions")
    done = f"{status.get('succeeded', 0)}/{wanted if wanted is not None else '1 of ' + str(spec.get('parallelism', 1))}"
    true = {c["type"] for c in status.get("conditions") or () if c.get("status") == "True"}
    state = "Running"
    if "Complete" in true:
        state = "Complete"
    elif "Failed" in true:
        state = "Failed"
    elif obj["metadata"].get("deletionTimestamp"):
        state = "Terminating"
    elif "Suspended" in true:
        state = "Suspended"
    took = ""
    if status.get("startTime"):
        start = datetime.fromisoformat(status["startTime"].replace("Z", "+00:00"))
        ended = status.get("completionTime")
        end = datetime.fromisoformat(ended.replace("Z", "+00:00")) if ended else datetime.now(UTC)
        took = duration(int((end - start).total_seconds()))
    rest = [_names(_template(obj)), _images(_template(obj)), selector_text(spec.get("selector"))]
    return [state, done, took, _created(obj), *rest]


def _cronjob(obj: Obj) -> list[Any]:
    spec, status = obj["spec"], obj.get("status") or {}
    last = age(status["lastScheduleTime"]) if status.get("lastScheduleTime") else _NONE
    active = len(status.get("active") or ())
    suspended = "True" if spec.get("suspend") else "False"
    pod = (((spec.get("jobTemplate") or {}).get("spec") or {}).get("template") or {}).get("spec") or {}
    zone = spec.get("timeZone") or _NONE
    return [spec["schedule"], zone, suspended, active, last, _created(obj), _names(pod), _images(pod), _NONE]


# -- the rest ----------------------------------------------------------------------------------------------------------
def _service(obj: Obj) -> list[Any]:
    spec, status = obj["spec"], obj.get("status") or {}
    kind = spec.get("type", "ClusterIP")
    points = (status.get("loadBalancer") or {}).get("ingress") or ()
    external = ",".join(p.get("ip") or p.get("hostname", "") for p in points) or ",".join(spec.get("externalIPs") or ())
    if kind == "ExternalName":
        external = spec.get("externalName", "")
    elif not external:
        external = "<pending>" if kind == "LoadBalancer" else _NONE
    ports = ",".join(
        f"{p['port']}:{p['nodePort']}/{p.get('protocol', 'TCP')}"
        if p.get("nodePort")
        else f"{p['port']}/{p.get('protocol', 'TCP')}"
        for p in spec.get("ports") or ()
    )
    address = spec.get("clusterIP") or _NONE
    return [kind, address, external, ports or _NONE, _created(obj), _plain(spec.get("selector"))]


_MODES = {"ReadWriteOnce": "RWO", "ReadOnlyMany": "ROX", "ReadWriteMany": "RWX", "ReadWriteOncePod": "RWOP"}


def _modes(modes: Sequence[str] | None) -> str:
    return ",".join(_MODES.get(mode, mode) for mode in modes or ())


def _claim(obj: Obj) -> list[Any]:
    spec, status = obj["spec"], obj.get("status") or {}
    phase = "Terminating" if obj["metadata"].get("deletionTimestamp") else status.get("phase", "")
    bound = bool(spec.get("volumeName"))
    size = (status.get("capacity") or {}).get("storage", "") if bound else ""
    modes = _modes(status.get("accessModes")) if bound else ""
    kind = spec.get("storageClassName") or ""
    rest = [spec.get("volumeAttributesClassName") or "<unset>", _created(obj), spec.get("volumeMode") or "Filesystem"]
    return [phase, spec.get("volumeName", ""), size, modes, kind, *rest]


def _volume(obj: Obj) -> list[Any]:
    spec, status = obj["spec"], obj.get("status") or {}
    phase = "Terminating" if obj["metadata"].get("deletionTimestamp") else status.get("phase", "")
    claim = spec.get("claimRef")
    name = f"{claim.get('namespace')}/{claim.get('name')}" if claim else ""
    size = (spec.get("capacity") or {}).get("storage", "")
    policy, kind = spec.get("persistentVolumeReclaimPolicy", ""), spec.get("storageClassName", "")
    rest = [kind, spec.get("volumeAttributesClassName") or "<unset>", status.get("reason", ""), _created(obj)]
    return [size, _modes(spec.get("accessModes")), policy, phase, name, *rest, spec.get("volumeMode") or "Filesystem"]


def _storageclass(obj: Obj) -> list[Any]:
    modes = obj.get("volumeBindingMode", "Immediate")
    return [obj["provisioner"], obj.get("reclaimPolicy"), modes, bool(obj.get("allowVolumeExpansion")), _created(obj)]


def _storageclass_name(obj: Obj) -> str:
    notes = obj["metadata"].get("annotations") or {}
    default = notes.get("storageclass.kubernetes.io/is-default-class") == "true"
    return str(obj["metadata"]["name"]) + (" (default)" if default else "")


def _namespace(obj: Obj) -> list[Any]:
    return [(obj.get("status") or {}).get("phase", ""), _created(obj)]


def _event(obj: Obj) -> list[Any]:
    subject = obj.get("involvedObject") or {}
    kind, name = subject.get("kind", "").lower(), subject.get("name", "")
    source = obj.get("source") or {}
    count = (obj.get("series") or {}).get("count") or obj.get("count") or 1
    first = obj.get("firstTimestamp") or obj.get("eventTime") or obj["metadata"]["creationTimestamp"]
    last = obj.get("lastTimestamp") or first
    where = source.get("component") or obj.get("reportingComponent", "")
    where += f", {source['host']}" if source.get("host") else ""
    base = [age(last), obj.get("type", ""), obj.get("reason", ""), f"{kind}/{name}", subject.get("fieldPath", "")]
    return [*base, where, obj.get("message", "").strip(), age(first), count, obj["metadata"]["name"]]


def _ingress(obj: Obj) -> list[Any]:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    hosts = [rule.get("host") or "*" for rule in spec.get("rules") or ()] or ["*"]
    points = (status.get("loadBalancer") or {}).get("ingress") or ()
    address = ",".join(p.get("ip") or p.get("hostname", "") for p in points)
    kind = spec.get("ingressClassName") or _NONE
    return [kind, ",".join(hosts), address, "80, 443" if spec.get("tls") else "80", _created(obj)]


def _role_binding(obj: Obj) -> list[Any]:
    by_kind: dict[str, list[str]] = {"User": [], "Group": [], "ServiceAccount": []}
    for subject in obj.get("subjects") or ():
        space = f"{subject['namespace']}/" if subject.get("namespace") else ""
        by_kind.setdefault(subject.get("kind", ""), []).append(space + subject.get("name", ""))
    role = f"{obj['roleRef'].get('kind')}/{obj['roleRef'].get('name')}"
    return [role, _created(obj), *(", ".join(by_kind[kind]) for kind in ("User", "Group", "ServiceAccount"))]


def _pdb(obj: Obj) -> list[Any]:
    spec, status = obj["spec"], obj.get("status") or {}
    least, most = spec.get("minAvailable", "N/A"), spec.get("maxUnavailable", "N/A")
    return [str(least), str(most), status.get("disruptionsAllowed", 0), _created(obj)]


def _lease(obj: Obj) -> list[Any]:
    return [(obj.get("spec") or {}).get("holderIdentity", ""), _created(obj)]


def _endpoints(obj: Obj) -> list[Any]:
    found = []
    for subset in obj.get("subsets") or ():
        for address in subset.get("addresses") or ():
            found += [f"{address['ip']}:{port['port']}" for port in subset.get("ports") or ()]
    text = ",".join(found[:3]) + (f" + {len(found) - 3} more..." if len(found) > 3 else "")
    return [text or _NONE, _created(obj)]


# Columns after NAME; "*" in front marks those of -o wide (priority 1).
_COLUMNS: dict[tuple[str, str], tuple[str, Cells]] = {
    ("", "pods"): ("Ready|Status|Restarts|Age|*IP|*Node|*Nominated Node|*Readiness Gates", _pod),
    ("", "nodes"): (
        "Status|Roles|Age|Version|*Internal-IP|*External-IP|*OS-Image|*Kernel-Version|*Container-Runtime",
        _node,
    ),
    ("apps", "deployments"): ("Ready|#Up-to-date|#Available|Age|*Containers|*Images|*Selector", _deployment),
    ("apps", "replicasets"): ("#Desired|#Current|#Ready|Age|*Containers|*Images|*Selector", _replicaset),
    ("apps", "statefulsets"): ("Ready|Age|*Containers|*Images", _statefulset),
    ("apps", "daemonsets"): (
        "#Desired|#Current|#Ready|#Up-to-date|#Available|Node Selector|Age|*Containers|*Images|*Selector",
        _daemonset,
    ),
    ("batch", "jobs"): ("Status|Completions|Duration|Age|*Containers|*Images|*Selector", _job),
    ("batch", "cronjobs"): (
        "Schedule|Timezone|Suspend|#Active|Last Schedule|Age|*Containers|*Images|*Selector",
        _cronjob,
    ),
    ("", "services"): ("Type|Cluster-IP|External-IP|Port(s)|Age|*Selector", _service),
    ("", "persistentvolumeclaims"): (
        "Status|Volume|Capacity|Access Modes|StorageClass|VolumeAttributesClass|Age|*VolumeMode",
        _claim,
    ),
    ("", "persistentvolumes"): (
        "Capacity|Access Modes|Reclaim Policy|Status|Claim|StorageClass|VolumeAttributesClass|Reason|Age|*VolumeMode",
        _volume,
    ),
    ("storage.k8s.io", "storageclasses"): (
        "Provisioner|ReclaimPolicy|VolumeBindingMode|AllowVolumeExpansion|Age",
        _storageclass,
    ),
    ("", "namespaces"): ("Status|Age", _namespace),
    ("", "configmaps"): (
        "#Data|Age",
        lambda o: [len(o.get("data") or ()) + len(o.get("binaryData") or ()), _created(o)],
    ),
    ("", "secrets"): ("Type|#Data|Age", lambda o: [o.get("type", ""), len(o.get("data") or {}), _created(o)]),
    ("", "serviceaccounts"): ("#Secrets|Age", lambda o: [len(o.get("secrets") or ()), _created(o)]),
    ("", "endpoints"): ("Endpoints|Age", _endpoints),
    ("networking.k8s.io", "ingresses"): ("Class|Hosts|Address|Ports|Age", _ingress),
    ("policy", "poddisruptionbudgets"): ("Min Available|Max Unavailable|#Allowed Disruptions|Age", _pdb),
    ("coordination.k8s.io", "leases"): ("Holder|Age", _lease),
    ("rbac.authorization.k8s.io", "rolebindings"): ("Role|Age|*Users|*Groups|*ServiceAccounts", _role_binding),
    ("rbac.authorization.k8s.io", "clusterrolebindings"): ("Role|Age|*Users|*Groups|*ServiceAccounts", _role_binding),
    ("rbac.authorization.k8s.io", "roles"): ("Created At", lambda o: [o["metadata"]["creationTimestamp"]]),
    ("rbac.authorization.k8s.io", "clusterroles"): ("Created At", lambda o: [o["metadata"]["creationTimestamp"]]),
    ("apiextensions.k8s.io", "customresourcedefinitions"): (
        "Created At",
        lambda o: [o["metadata"]["creationTimestamp"]],
    ),
    ("scheduling.k8s.io", "priorityclasses"): (
        "#Value|Global-Default|Age|PreemptionPolicy",
        lambda o: [o.get("value"), bool(o.get("globalDefault")), _created(o), o.get("preemptionPolicy") or _NONE],
    ),
}
_EVENT_COLUMNS = "Last Seen|Type|Reason|Object|*Subobject|*Source|Message|*First Seen|*#Count|*Name"


def _definition(text: str) -> Obj:
    wide = text.startswith("*")
    text = text.removeprefix("*")
    kind = "integer" if text.startswith("#") else "string"
    name = text.removeprefix("#")
    return {"name": name, "type": kind, "format": "", "description": name + ".", "priority": 1 if wide else 0}


def _name_column() -> Obj:
    return {**_definition("Name"), "format": "name", "description": "Name must be unique within a namespace."}


def _custom(columns: Sequence[Obj]) -> tuple[list[Obj], Cells]:
    """Columns of a CustomResourceDefinition's additionalPrinterColumns."""
    definitions = []
    for column in columns:
        row = {"name": column["name"], "type": column["type"], "format": column.get("format", "")}
        row["description"] = column.get("description", "")
        definitions.append({**row, "priority": column.get("priority", 0)})

    def cells(obj: Obj) -> list[Any]:
        row: list[Any] = []
        for column in columns:
            value = json_path(obj, column["jsonPath"])
            row.append(age(value) if column["type"] == "date" and value else value)
        return row

    return definitions, cells


def json_path(obj: Any, path: str) -> Any:
    """The first value of a simple JSONPath (``.status.conditions[?(@.type=="Ready")].status``), or None."""
    pattern = r"\.([A-Za-z0-9_\-]+|\\\.)+|\[\?\(@\.([\w.]+)==[\"']([^\"']*)[\"']\)\]|\[(\d+|\*)\]|\['([^']+)'\]"
    for found in re.finditer(pattern, path):
        if found[0].startswith("."):
            key = found[0][1:].replace("\\.", ".")
            obj = obj.get(key) if isinstance(obj, dict) else None
        elif found[2]:
            obj = next((i for i in obj or () if isinstance(i, dict) and str(i.get(found[2])) == found[3]), None)
        elif found[4]:
            index = 0 if found[4] == "*" else int(found[4])
            obj = obj[index] if isinstance(obj, list) and index < len(obj) else None
        else:
            obj = obj.get(found[5]) if isinstance(obj, dict) else None
        if obj is None:
            return None
    return obj


def _layout(resource: Resource, printer_columns: Sequence[Obj]) -> tuple[list[Obj], Cells]:
    if (resource.group, resource.plural) == ("", "events"):
        return [_definition(text) for text in _EVENT_COLUMNS.split("|")], _event
    if resource.definition and printer_columns:
        definitions, cells = _custom(printer_columns)
    else:
        text, cells = _COLUMNS.get((resource.group, resource.plural), ("Age", lambda obj: [_created(obj)]))
        definitions = [_definition(part) for part in text.split("|")]
    name = _storageclass_name if resource.plural == "storageclasses" else (lambda obj: obj["metadata"]["name"])
    return [_name_column(), *definitions], lambda obj: [name(obj), *cells(obj)]


def table(resource: Resource, objects: Sequence[Obj], printer_columns: Sequence[Obj], include: str, rv: str) -> Obj:
    """A meta.k8s.io/v1 Table; ``include`` is includeObject: Metadata (default), Object or None."""
    definitions, cells = _layout(resource, printer_columns)
    rows = []
    for obj in objects:
        row: Obj = {"cells": cells(obj)}
        if include == "Object":
            row["object"] = obj
        elif include != "None":
            row["object"] = metadata_only(obj)
        rows.append(row)
    meta = {"resourceVersion": rv}
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": meta,
        "columnDefinitions": definitions,
        "rows": rows,
    }
