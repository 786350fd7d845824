"""Velero's resource modifiers: rules in a ConfigMap that patch objects while they are restored (Velero 1.13 and later).

Known here: JSON patches (values are JSON in a string, as in Velero), merge and strategic merge patches (``patchData``),
and the conditions groupResource, resourceNameRegex and namespaces. Anything else fails the restore's validation.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from hybridlab.lab.kube.controllers.objects import Obj, name_of, namespace_of
from hybridlab.lab.kube.errors import ApiError
from hybridlab.lab.kube.patches import json_patch, merge, strategic
from hybridlab.lab.kube.schema import built_in_shape, custom_shape, type_of

_CONDITIONS = {"groupResource", "resourceNameRegex", "namespaces"}
_PATCHES = {"patches", "mergePatches", "strategicPatches"}


class BadModifiers(Exception):
    """The rules can't be used; the text goes into the restore's validationErrors."""


@dataclass(frozen=True)
class Rule:
    group_resource: str
    name: re.Pattern[str]
    namespaces: frozenset[str]
    json_patches: tuple[dict[str, Any], ...]
    merges: tuple[Any, ...]
    strategics: tuple[Any, ...]

    def fits(self, qualified: str, obj: Obj, source_namespace: str) -> bool:
        """Velero's documents don't say whether a mapped namespace or the backed-up one is meant: either will do."""
        spaces = not self.namespaces or bool(self.namespaces & {namespace_of(obj), source_namespace})
        return qualified == self.group_resource and spaces and bool(self.name.search(name_of(obj)))


def read_rules(config_map: Obj) -> tuple[Rule, ...]:
    """The rules of a ConfigMap, which must have exactly one key. Raises BadModifiers."""
    data = config_map.get("data") or {}
    if len(data) != 1:
        raise BadModifiers(f"illegal resource modifiers {name_of(config_map)} configmap")
    text = next(iter(data.values()))
    try:
        value = YAML(typ="safe").load(io.StringIO(text))
        if value.get("version") != "v1":
            raise BadModifiers(f"unsupported resource modifier version {value.get('version')}")
        return tuple(_rule(rule) for rule in value.get("resourceModifierRules") or [])
    except (YAMLError, ValueError, KeyError, TypeError, AttributeError, re.error) as error:
        raise BadModifiers(f"failed to decode yaml data into resource modifiers: {error}") from error


def _rule(rule: dict[str, Any]) -> Rule:
    conditions = rule["conditions"]
    unknown = (set(conditions) - _CONDITIONS) | (set(rule) - _PATCHES - {"conditions"})
    if unknown:
        raise BadModifiers(f"unknown field {sorted(unknown)[0]}")
    operations = []
    for patch in rule.get("patches") or []:
        operation = {"op": patch["operation"], "path": patch["path"]}
        if "from" in patch:
            operation["from"] = patch["from"]
        if "value" in patch:
            operation["value"] = _value(patch["value"])
        operations.append(operation)
    return Rule(
        conditions["groupResource"],
        re.compile(conditions.get("resourceNameRegex") or ""),
        frozenset(conditions.get("namespaces") or ()),
        tuple(operations),
        tuple(YAML(typ="safe").load(p["patchData"]) for p in rule.get("mergePatches") or []),
        tuple(YAML(typ="safe").load(p["patchData"]) for p in rule.get("strategicPatches") or []),
    )


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def modified(rules: Sequence[Rule], qualified: str, source: Obj, obj: Obj) -> Obj:
    """The object as the rules that fit its backed-up self make it. Raises ApiError for a patch that can't apply."""
    for rule in rules:
        if not rule.fits(qualified, obj, namespace_of(source)):
            continue
        try:
            if rule.json_patches:
                obj = json_patch(obj, list(rule.json_patches))
            for patch in rule.merges:
                obj = merge(obj, patch)
            for patch in rule.strategics:
                name = type_of(obj["apiVersion"], obj["kind"])
                obj = strategic(obj, patch, built_in_shape(name) if name else custom_shape(None))
        except ApiError as error:
            raise ApiError(error.status, error.reason, f"resource modifier: {error.message}") from error
    return obj
