"""Compares an object as it should be with the live one: what server-side apply would add, change or take away.

The API server fills in defaults and drops zero values, so "equal" needs to know Kubernetes' types. The tables below are
facts of k8s.io/api (listType, listMapKey, mapType, structType and pointer fields of the v1 types).
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping, Sequence

from hybridlab.models import Json
from hybridlab.quantity import parse_quantity


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_BUILTIN_GROUPS = _words(
    "apps batch policy autoscaling rbac.authorization.k8s.io networking.k8s.io storage.k8s.io scheduling.k8s.io "
    "coordination.k8s.io discovery.k8s.io node.k8s.io admissionregistration.k8s.io apiregistration.k8s.io "
    "apiextensions.k8s.io certificates.k8s.io resource.k8s.io flowcontrol.apiserver.k8s.io"
)
_SERVER_METADATA = _words(
    "creationTimestamp deletionTimestamp deletionGracePeriodSeconds generation managedFields resourceVersion selfLink "
    "uid name namespace generateName"
)
_LIST_KEYS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "containers": (("name",),),
    "initContainers": (("name",),),
    "ephemeralContainers": (("name",),),
    "volumes": (("name",),),
    "env": (("name",),),
    "imagePullSecrets": (("name",),),
    "secrets": (("name",),),
    "schedulingGates": (("name",),),
    "resourceClaims": (("name",),),
    "claims": (("name",),),
    "drivers": (("name",),),
    "webhooks": (("name",),),
    "ports": (("containerPort", "protocol"), ("port", "protocol")),
    "volumeMounts": (("mountPath",),),
    "volumeDevices": (("devicePath",),),
    "hostAliases": (("ip",),),
    "topologySpreadConstraints": (("topologyKey", "whenUnsatisfiable"),),
    "conditions": (("type",),),
    "ownerReferences": (("uid",),),
}
_KEY_DEFAULTS = {"protocol": "TCP"}
_SETS = frozenset({"finalizers", "podCIDRs", "volumeLifecycleModes", "bindMountOptions"})
# maps that apply replaces whole, so that a key more in the live one is a difference
_EXACT_MAPS = frozenset(
    {"nodeSelector", "selector", "matchLabels", "labelSelector", "podSelector", "namespaceSelector"}
)
# maps of the user's own keys: an empty string in them is a value
_FREE_MAPS = _EXACT_MAPS | _words("labels annotations data binaryData stringData parameters volumeAttributes")
_QUANTITY_MAPS = _words(
    "limits requests capacity allocatable hard overhead min max default defaultRequest maxLimitRequestRatio"
)
_QUANTITIES = frozenset({"sizeLimit", "divisor", "storage", "averageValue"})
_INT_OR_STRING = frozenset({"port", "targetPort", "maxSurge", "maxUnavailable", "minAvailable"})
# in a union the empty object is the choice itself: taking it for absent would hide that another one was made
_EMPTY_MEANS_SOMETHING = frozenset({"emptyDir", "podSelector", "namespaceSelector", "exec", "sleep"})
_UNIONS: Mapping[str, frozenset[str]] = {
    "env": frozenset({"value", "valueFrom"}),
}
# zero values that the API server keeps when they are given: absent is something else
_ZERO_KEPT = _words(
    """activeDeadlineSeconds allocateLoadBalancerNodePorts allowPrivilegeEscalation allowVolumeExpansion attachRequired
    automountServiceAccountToken averageUtilization backoffLimit backoffLimitPerIndex completions defaultMode
    enableServiceLinks expirationSeconds failedJobsHistoryLimit fsGroup hostProcess hostUsers immutable ingressClassName
    manualSelector maxFailedIndexes maxSkew maxSurge maxUnavailable minAvailable minDomains minReplicas mode optional
    parallelism podInfoOnMount priority privileged progressDeadlineSeconds readOnlyRootFilesystem replicas
    requiresRepublish revisionHistoryLimit runAsGroup runAsNonRoot runAsUser runtimeClassName setHostnameAsFQDN
    shareProcessNamespace startingDeadlineSeconds storageCapacity storageClassName successfulJobsHistoryLimit suspend
    terminationGracePeriodSeconds timeZone tolerationSeconds ttlSecondsAfterFinished weight"""
)
_MISSING = object()


def is_builtin(api_version: str) -> bool:
    """Whether the kind is compiled into the API server, which then drops zero values; custom resources keep them."""
    group, slash, _ = api_version.rpartition("/")
    return not slash or group in _BUILTIN_GROUPS


def compare(wanted: Mapping[str, Json], live: Mapping[str, Json], *, manager: str = "hybridlab") -> tuple[str, ...]:
    """Paths at which the live object lacks or contradicts what applying ``wanted`` would set, in order of ``wanted``.

    Fields that only the live object has are defaults or somebody else's, and no difference, except where apply would
    take them away: whole lists, selectors, and what ``manager`` applied before and wants no longer. A path looks like
    ``spec.template.spec.containers[web].image``; it never holds a value.
    """
    found: list[str] = []
    builtin = is_builtin(str(wanted.get("apiVersion", "")))
    secret = wanted.get("kind") == "Secret" and wanted.get("apiVersion") == "v1"
    for key, value in wanted.items():
        if key in ("apiVersion", "kind", "status"):
            continue
        if key == "metadata":
            meta = {k: v for k, v in value.items() if k not in _SERVER_METADATA}
            found += _differences(meta, live.get("metadata", {}), "metadata", "metadata", builtin)
        elif secret and key in ("data", "stringData"):
            found += _secret_differences(value or {}, live.get("data") or {}, key)
        else:
            found += _differences(value, live.get(key, _MISSING), key, key, builtin)
    if not secret:  # stringData is turned into data, so ownership does not show what was applied
        found += [path for path in _abandoned(wanted, live, manager) if path not in found]
    return tuple(found)


# -- values ------------------------------------------------------------------------------------------------------------
def _differences(wanted: Json, live: Json, path: str, key: str, builtin: bool) -> Iterator[str]:
    if live is None:
        live = _MISSING
    if live is _MISSING and key in _FREE_MAPS and isinstance(wanted, Mapping) and wanted:
        live = {}  # so that the missing keys are named
    if live is _MISSING:
        if not _same_as_absent(wanted, key, builtin):
            yield path
    elif isinstance(wanted, Mapping):
        if isinstance(live, Mapping):
            yield from _map_differences(wanted, live, path, key, builtin)
        else:
            yield path
    elif isinstance(wanted, (list, tuple)):
        if isinstance(live, (list, tuple)):
            yield from _list_differences(wanted, live, path, key, builtin)
        else:
            yield path
    elif wanted is None:
        return  # apply with null sets nothing
    elif not _scalars_equal(wanted, live, key):
        yield path


def _same_as_absent(wanted: Json, key: str, builtin: bool) -> bool:
    if wanted is None:
        return True
    if isinstance(wanted, Mapping):
        if wanted:
            return builtin and key not in _FREE_MAPS and all(_same_as_absent(v, k, builtin) for k, v in wanted.items())
        return key not in _EMPTY_MEANS_SOMETHING
    if isinstance(wanted, (list, tuple)):
        return not wanted
    return builtin and not wanted and key not in _ZERO_KEPT


def _map_differences(
    wanted: Mapping[str, Json], live: Mapping[str, Json], path: str, key: str, builtin: bool
) -> Iterator[str]:
    free, amounts = key in _FREE_MAPS, key in _QUANTITY_MAPS
    for name, value in wanted.items():
        place = _join(path, name)
        if free and not isinstance(value, (Mapping, list, tuple)):
            if value is not None and (name not in live or str(live[name]) != str(value)):
                yield place
        elif amounts and not isinstance(value, (Mapping, list, tuple)):
            if name not in live or not _amounts_equal(value, live[name]):
                yield place
        else:
            yield from _differences(value, live.get(name, _MISSING), place, name, builtin)
    if builtin and key in _EXACT_MAPS:
        yield from (_join(path, name) for name in live if name not in wanted and live[name] not in (None, {}, []))


def _list_differences(
    wanted: Sequence[Json], live: Sequence[Json], path: str, key: str, builtin: bool
) -> Iterator[str]:
    if key in _SETS:
        yield from (f"{path}[{item}]" for item in wanted if item not in live)
        return
    # a network policy's ports are one whole; a container's and a service's are told apart by number
    whole = key == "ports" and path != "spec.ports" and "ontainers[" not in path
    keys = () if whole else _merge_keys(wanted, live, key)
    if keys and (builtin or len(wanted) == len(live)):
        known = {_identity(item, keys): item for item in live}
        for item in wanted:
            name = _identity(item, keys)
            place = f"{path}[{'/'.join(str(part) for part in name)}]"
            if name not in known:
                yield place
                continue
            yield from _map_differences(item, known[name], place, "", builtin)
            yield from _other_choice(item, known[name], place, key)
    elif len(wanted) != len(live):
        yield path
    else:
        for index, (item, other) in enumerate(zip(wanted, live, strict=True)):
            yield from _differences(item, other, f"{path}[{index}]", "" if isinstance(item, Mapping) else key, builtin)


def _other_choice(wanted: Mapping[str, Json], live: Mapping[str, Json], place: str, key: str) -> Iterator[str]:
    """An env entry that should have an empty value, and has its value from elsewhere."""
    choices = _UNIONS.get(key, frozenset())
    yield from (_join(place, name) for name in sorted(choices) if live.get(name) and name not in wanted)


def _merge_keys(wanted: Sequence[Json], live: Sequence[Json], key: str) -> tuple[str, ...]:
    items = [*wanted, *live]
    if not items or not all(isinstance(item, Mapping) for item in items):
        return ()
    for keys in (*_LIST_KEYS.get(key, ()), ()):
        if keys and all(_identity(item, keys).count(None) == 0 for item in items):
            both = [[_identity(item, keys) for item in side] for side in (wanted, live)]
            return keys if all(len(set(side)) == len(side) for side in both) else ()
    return ()


def _identity(item: Mapping[str, Json], keys: Sequence[str]) -> tuple[Json, ...]:
    return tuple(item.get(k, _KEY_DEFAULTS.get(k)) for k in keys)


def _scalars_equal(wanted: Json, live: Json, key: str) -> bool:
    if isinstance(live, (Mapping, list)):
        return False
    if key in _QUANTITIES:
        return _amounts_equal(wanted, live)
    if isinstance(wanted, bool) != isinstance(live, bool):
        return False
    return bool(wanted == live) or (key in _INT_OR_STRING and str(wanted) == str(live))


def _amounts_equal(wanted: Json, live: Json) -> bool:
    try:
        return parse_quantity(wanted) == parse_quantity(live)
    except ValueError:
        return bool(wanted == live)


def _secret_differences(wanted: Mapping[str, Json], live: Mapping[str, Json], key: str) -> Iterator[str]:
    for name, value in wanted.items():
        have = _decoded(live.get(name))
        want = str(value).encode() if key == "stringData" else _decoded(value)
        if have is None or have != want:
            yield _join(key, name)


def _decoded(text: Json) -> bytes | None:
    try:
        return None if text is None else base64.b64decode(str(text), validate=False)
    except (binascii.Error, ValueError):
        return None


# -- what was applied before and is wanted no longer -------------------------------------------------------------------
def _abandoned(wanted: Mapping[str, Json], live: Mapping[str, Json], manager: str) -> Iterator[str]:
    for entry in live.get("metadata", {}).get("managedFields") or ():
        ours = entry.get("manager") == manager and entry.get("operation") == "Apply" and not entry.get("subresource")
        if ours and entry.get("apiVersion") == wanted.get("apiVersion"):
            yield from _owned_only(entry.get("fieldsV1") or {}, wanted, live, "")


def _owned_only(fields: Mapping[str, Json], wanted: Json, live: Json, path: str) -> Iterator[str]:
    for element, below in fields.items():
        kind, _, text = element.partition(":")
        if kind == "f":
            if not isinstance(live, Mapping) or text not in live:
                continue
            place = _join(path, text)
            ours = wanted.get(text) if isinstance(wanted, Mapping) else None
            if below:
                yield from _owned_only(below, ours, live[text], place)
            elif ours is None:
                yield place
        elif kind == "k":
            keys = json.loads(text)
            item, other = _item(wanted, keys), _item(live, keys)
            if other is not None and item is None:
                yield f"{path}[{'/'.join(str(part) for part in keys.values())}]"
            elif other is not None:
                yield from _owned_only(below, item, other, f"{path}[{'/'.join(str(part) for part in keys.values())}]")
        elif kind == "v":
            value = json.loads(text)
            if value in (live or ()) and value not in (wanted or ()):
                yield f"{path}[{value}]"


def _item(items: Json, keys: Mapping[str, Json]) -> Json:
    if not isinstance(items, list):
        return None
    return next((i for i in items if all(i.get(k, _KEY_DEFAULTS.get(k)) == v for k, v in keys.items())), None)


def _join(path: str, key: str) -> str:
    simple = key.replace("_", "").replace("-", "").isalnum()
    return f"{path}.{key}" if simple and path else key if simple else f"{path}[{key}]"
