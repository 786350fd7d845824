"""Label and field selectors, as the list, watch and deletecollection requests carry them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from hybridlab.lab.kube.errors import bad_request
from hybridlab.lab.kube.resources import Resource

Labels = Mapping[str, str]
Test = Callable[[Labels], bool]

_KEY = re.compile(r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$")
_SET = re.compile(r"^(\S+)\s+(in|notin)\s*\(([^)]*)\)$")
_COMPARE = re.compile(r"^([^=!<>\s]+)\s*(==|!=|=|>|<)\s*(\S*)$")

# Field labels beyond metadata.name and metadata.namespace, by kind (pkg/registry and pkg/apis/*/conversion.go).
_FIELDS: dict[tuple[str, str], tuple[str, ...]] = {
    ("", "pods"): (
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.nominatedNodeName",
    ),
    ("", "nodes"): ("spec.unschedulable",),
    ("", "namespaces"): ("status.phase",),
    ("", "secrets"): ("type",),
    ("", "events"): (
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "source",
        "type",
    ),
    ("", "services"): ("spec.clusterIP", "spec.type"),
    ("batch", "jobs"): ("status.successful",),
    ("apps", "replicasets"): ("status.replicas",),
    ("", "replicationcontrollers"): ("status.replicas",),
}


def _split(selector: str) -> list[str]:
    """Split at commas outside parentheses."""
    parts, depth, start = [], 0, 0
    for index, char in enumerate(selector):
        depth += (char == "(") - (char == ")")
        if char == "," and depth == 0:
            parts.append(selector[start:index])
            start = index + 1
    return [part.strip() for part in (*parts, selector[start:]) if part.strip()]


def _label_test(part: str) -> Test:
    found = _SET.match(part)
    if found:
        key, operator = found[1], found[2]
        values = {value.strip() for value in found[3].split(",")}
        if operator == "in":
            return lambda labels: labels.get(key) in values
        return lambda labels: labels.get(key) not in values
    found = _COMPARE.match(part)
    if found:
        key, operator, value = found[1], found[2], found[3]
        if operator in ("=", "=="):
            return lambda labels: labels.get(key) == value
        if operator == "!=":
            return lambda labels: labels.get(key) != value
        return lambda labels: _number_test(labels.get(key), operator, value)
    key = part.lstrip("!").strip()
    if not _KEY.match(key):
        raise bad_request(f'unable to parse requirement: found "{part}", expected: a label selector')
    if part.startswith("!"):
        return lambda labels: key not in labels
    return lambda labels: key in labels


def _number_test(have: str | None, operator: str, want: str) -> bool:
    if have is None or not have.lstrip("-").isdigit() or not want.lstrip("-").isdigit():
        return False
    return int(have) > int(want) if operator == ">" else int(have) < int(want)


def label_test(selector: str | None) -> Test:
    """A test for labels from a selector string (``a=b,c in (d,e),!f``); raises ApiError 400."""
    tests = [_label_test(part) for part in _split(selector or "")]
    return lambda labels: all(test(labels) for test in tests)


def matches(selector: Mapping[str, Any] | None, labels: Labels | None) -> bool:
    """Whether a LabelSelector object (matchLabels, matchExpressions) selects these labels; None selects nothing."""
    if selector is None:
        return False
    have = labels or {}
    if any(have.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    for expression in selector.get("matchExpressions") or ():
        key, operator = expression["key"], expression["operator"]
        values = expression.get("values") or ()
        fits = {
            "In": have.get(key) in values,
            "NotIn": have.get(key) not in values,
            "Exists": key in have,
            "DoesNotExist": key not in have,
        }[operator]
        if not fits:
            return False
    return True


def field_value(obj: Mapping[str, Any], path: str) -> str:
    """The value a field selector compares: "" where the field is absent."""
    if path == "source":
        return str((obj.get("source") or {}).get("component") or obj.get("reportingComponent") or "")
    if path == "status.successful":
        return str((obj.get("status") or {}).get("succeeded", 0))
    value: Any = obj
    for segment in path.split("."):
        value = value.get(segment) if isinstance(value, Mapping) else None
    if value is None:
        return "false" if path in ("spec.unschedulable", "spec.hostNetwork") else ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def field_test(
    selector: str | None, resource: Resource, selectable: tuple[str, ...] = ()
) -> Callable[[Mapping[str, Any]], bool]:
    """A test for objects from a field selector; raises ApiError 400 for a field this resource cannot be selected by."""
    tests: list[tuple[str, str, bool]] = []
    known = ("metadata.name", "metadata.namespace", *_FIELDS.get((resource.group, resource.plural), ()), *selectable)
    for part in _split(selector or ""):
        found = _COMPARE.match(part)
        if not found or found[2] in "<>":
            raise bad_request(f'invalid selector: "{selector}"; can\'t understand "{part}"')
        path, operator, value = found[1], found[2], found[3]
        if path not in known:
            raise bad_request(f"field label not supported: {path}")
        tests.append((path, value, operator != "!="))
    return lambda obj: all((field_value(obj, path) == value) is wanted for path, value, wanted in tests)
