"""Names, labels, annotations and label selectors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hybridlab.lab.kube.errors import Cause, forbidden_field, invalid_value, required, unsupported

Obj = dict[str, Any]

_LABEL = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
_LABEL_1035 = re.compile(r"^[a-z]([-a-z0-9]*[a-z0-9])?$")
_SUBDOMAIN = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
_QUALIFIED = re.compile(r"^([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]$")
_VALUE = re.compile(r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$")
_CONFIG_KEY = re.compile(r"^[-._a-zA-Z0-9]+$")

_SUBDOMAIN_TEXT = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'example.com', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
_LABEL_TEXT = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with "
    "an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
)
_LABEL_1035_TEXT = (
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, "
    "and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is "
    "'[a-z]([-a-z0-9]*[a-z0-9])?')"
)
_QUALIFIED_TEXT = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric "
    "character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is "
    "'([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
)
_VALUE_TEXT = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is "
    "'(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
)
_CONFIG_KEY_TEXT = (
    "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or "
    "'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"
)


def _too_long(limit: int) -> str:
    return f"must be no more than {limit} characters"


def dns_label(value: str, field: str) -> list[Cause]:
    """DNS-1123 label: container, volume, port and namespace names."""
    if len(value) > 63:
        return [invalid_value(field, value, _too_long(63))]
    return [] if _LABEL.match(value) else [invalid_value(field, value, _LABEL_TEXT)]


def dns_label_1035(value: str, field: str) -> list[Cause]:
    """DNS-1035 label: names of Services."""
    if len(value) > 63:
        return [invalid_value(field, value, _too_long(63))]
    return [] if _LABEL_1035.match(value) else [invalid_value(field, value, _LABEL_1035_TEXT)]


def dns_subdomain(value: str, field: str) -> list[Cause]:
    """DNS-1123 subdomain: names of most objects."""
    if len(value) > 253:
        return [invalid_value(field, value, _too_long(253))]
    return [] if _SUBDOMAIN.match(value) else [invalid_value(field, value, _SUBDOMAIN_TEXT)]


def _path_segment(value: str, field: str) -> list[Cause]:
    if value in (".", "..") or "/" in value or "%" in value:
        return [invalid_value(field, value, "may not contain '/' or '%', or be '.' or '..'")]
    return []


def config_key(value: str, field: str) -> list[Cause]:
    """A key of a ConfigMap or Secret."""
    if len(value) > 253:
        return [invalid_value(field, value, _too_long(253))]
    return [] if _CONFIG_KEY.match(value) else [invalid_value(field, value, _CONFIG_KEY_TEXT)]


def qualified_name(value: str, field: str) -> list[Cause]:
    """``prefix/name``, as keys of labels, annotations, taints, resources."""
    prefix, slash, name = value.rpartition("/")
    if slash and not _SUBDOMAIN.match(prefix):
        return [invalid_value(field, value, "prefix part " + _SUBDOMAIN_TEXT)]
    if not name:
        return [invalid_value(field, value, "name part must be non-empty")]
    if len(name) > 63:
        return [invalid_value(field, value, "name part " + _too_long(63))]
    return [] if _QUALIFIED.match(name) else [invalid_value(field, value, _QUALIFIED_TEXT)]


def labels(values: Mapping[str, str] | None, field: str) -> list[Cause]:
    causes = []
    for key, value in (values or {}).items():
        causes += qualified_name(key, field)
        if len(value) > 63:
            causes.append(invalid_value(field, value, _too_long(63)))
        elif not _VALUE.match(value):
            causes.append(invalid_value(field, value, _VALUE_TEXT))
    return causes


def annotation_map(values: Mapping[str, str] | None, field: str) -> list[Cause]:
    causes = []
    for key in values or {}:
        causes += qualified_name(key.lower(), field)
    size = sum(len(key.encode()) + len(str(value).encode()) for key, value in (values or {}).items())
    if size > 262144:
        causes.append(Cause(field, "Too long: may not be more than 262144 bytes", "FieldValueTooLong"))
    return causes


def label_selector(selector: Obj | None, field: str) -> list[Cause]:
    """A LabelSelector object."""
    causes = labels((selector or {}).get("matchLabels"), f"{field}.matchLabels")
    for index, expression in enumerate((selector or {}).get("matchExpressions") or ()):
        place = f"{field}.matchExpressions[{index}]"
        operator, values = expression.get("operator"), expression.get("values") or []
        if operator in ("In", "NotIn"):
            if not values:
                causes.append(required(f"{place}.values", "must be specified when `operator` is 'In' or 'NotIn'"))
        elif operator in ("Exists", "DoesNotExist"):
            if values:
                detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"
                causes.append(forbidden_field(f"{place}.values", detail))
        else:
            causes.append(invalid_value(f"{place}.operator", operator or "", "not a valid selector operator"))
        causes += qualified_name(expression.get("key") or "", f"{place}.key")
    return causes


_LABEL_NAMES = {("", "namespaces")}
_1035_NAMES = {("", "services")}
_PATH_NAMES = {
    ("rbac.authorization.k8s.io", "roles"),
    ("rbac.authorization.k8s.io", "clusterroles"),
    ("rbac.authorization.k8s.io", "rolebindings"),
    ("rbac.authorization.k8s.io", "clusterrolebindings"),
}


def validate_metadata(group: str, plural: str, meta: Obj, *, strict_name: bool = True) -> list[Cause]:
    """Everything under metadata."""
    causes: list[Cause] = []
    name = meta.get("name") or ""
    if not name:
        causes.append(required("metadata.name", "name or generateName is required"))
    elif not strict_name:
        pass
    elif (group, plural) in _LABEL_NAMES:
        causes += dns_label(name, "metadata.name")
    elif (group, plural) in _1035_NAMES:
        causes += dns_label_1035(name, "metadata.name")
    elif (group, plural) in _PATH_NAMES:
        causes += _path_segment(name, "metadata.name")
    else:
        causes += dns_subdomain(name, "metadata.name")
    causes += labels(meta.get("labels"), "metadata.labels")
    causes += annotation_map(meta.get("annotations"), "metadata.annotations")
    for index, finalizer in enumerate(meta.get("finalizers") or ()):
        causes += qualified_name(finalizer, f"metadata.finalizers[{index}]")
    for index, owner in enumerate(meta.get("ownerReferences") or ()):
        place = f"metadata.ownerReferences[{index}]"
        for key in ("apiVersion", "kind", "name", "uid"):
            if not owner.get(key):
                causes.append(invalid_value(f"{place}.{key}", "", "must not be empty"))
    controllers = [o for o in meta.get("ownerReferences") or () if o.get("controller")]
    if len(controllers) > 1:
        detail = "Only one reference can have Controller set to true"
        causes.append(Cause("metadata.ownerReferences", f"Invalid value: {detail}"))
    return causes


def one_of(value: Any, field: str, choices: tuple[str, ...], *, needed: bool = False) -> list[Cause]:
    """An enumeration; absent is fine unless ``needed``."""
    if value in (None, ""):
        return [required(field)] if needed else []
    return [] if value in choices else [unsupported(field, value, choices)]
