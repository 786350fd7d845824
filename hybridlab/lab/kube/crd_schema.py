"""Structural schemas of custom resources: pruning, defaults and validation, as apiextensions-apiserver does them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hybridlab.lab.kube.errors import Cause, invalid_value, required, unsupported
from hybridlab.lab.kube.store import clone

Schema = Mapping[str, Any]


def prune(value: Any, schema: Schema, path: str, unknown: list[str]) -> Any:
    """Drop the fields the schema doesn't know, and list their paths in ``unknown``."""
    if isinstance(value, list):
        items = schema.get("items") or {}
        return [prune(item, items, f"{path}[{i}]", unknown) for i, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    properties = schema.get("properties") or {}
    extra = schema.get("additionalProperties")
    keep = schema.get("x-kubernetes-preserve-unknown-fields") or extra is True
    root_fields: set[str] = set()
    if schema.get("x-kubernetes-embedded-resource") or path == "":
        root_fields = {"apiVersion", "kind", "metadata"}
    result = {}
    for key, item in value.items():
        place = f"{path}.{key}" if path else key
        if key in root_fields:
            result[key] = item
        elif key in properties:
            result[key] = prune(item, properties[key], place, unknown)
        elif isinstance(extra, Mapping):
            result[key] = prune(item, extra, place, unknown)
        elif keep:
            result[key] = item
        else:
            unknown.append(place)
    return result


def fill(value: Any, schema: Schema) -> None:
    """Fill in the schema's defaults, in place; a null counts as absent where it isn't allowed."""
    if isinstance(value, list):
        for item in value:
            fill(item, schema.get("items") or {})
        return
    if not isinstance(value, dict):
        return
    for key, child in (schema.get("properties") or {}).items():
        if "default" in child and (key not in value or (value[key] is None and not child.get("nullable"))):
            value[key] = clone(child["default"])
        if key in value:
            fill(value[key], child)
    extra = schema.get("additionalProperties")
    if isinstance(extra, Mapping):
        for item in value.values():
            fill(item, extra)


_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
}
_NAMES = {dict: "object", list: "array", str: "string", bool: "boolean", int: "integer", float: "number"}


def _type_cause(value: Any, schema: Schema, path: str) -> Cause | None:
    if schema.get("x-kubernetes-int-or-string"):
        if isinstance(value, (int, str)) and not isinstance(value, bool):
            return None
        return Cause(path, f'Invalid value: "{_NAMES.get(type(value))}": must be an integer or a string')
    wanted = schema.get("type")
    if not wanted:
        return None
    fits = isinstance(value, _TYPES.get(wanted, (object,)))
    if isinstance(value, bool) and wanted in ("integer", "number"):
        fits = False
    if fits:
        return None
    have = _NAMES.get(type(value), "null")
    detail = f'{path} in body must be of type {wanted}: "{have}"'
    return Cause(path, f'Invalid value: "{have}": {detail}', "FieldValueTypeInvalid")


def check(value: Any, schema: Schema, path: str = "") -> list[Cause]:
    """All the ways a value breaks its schema."""
    if value is None:
        if schema.get("nullable") or not schema.get("type"):
            return []
        detail = f'{path} in body must be of type {schema["type"]}: "null"'
        return [Cause(path, f'Invalid value: "null": {detail}', "FieldValueTypeInvalid")]
    wrong = _type_cause(value, schema, path)
    if wrong:
        return [wrong]
    causes: list[Cause] = []
    if schema.get("enum") is not None and value not in schema["enum"]:
        causes.append(unsupported(path, value, [str(choice) for choice in schema["enum"]]))
    if isinstance(value, str):
        causes += _check_string(value, schema, path)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        causes += _check_number(value, schema, path)
    elif isinstance(value, list):
        causes += _check_list(value, schema, path)
    elif isinstance(value, dict):
        causes += _check_object(value, schema, path)
    for part in schema.get("allOf") or ():
        causes += check(value, part, path)
    for alternative in ("anyOf", "oneOf"):
        options = schema.get(alternative) or ()
        if options and not any(not check(value, option, path) for option in options):
            detail = f"{path} in body must validate at least one schema ({alternative})"
            causes.append(invalid_value(path, value, detail))
    return causes


def _check_string(value: str, schema: Schema, path: str) -> list[Cause]:
    causes = []
    if len(value) < schema.get("minLength", 0):
        causes.append(invalid_value(path, value, f"{path} in body should be at least {schema['minLength']} chars long"))
    if "maxLength" in schema and len(value) > schema["maxLength"]:
        causes.append(Cause(path, f"Too long: may not be more than {schema['maxLength']} bytes", "FieldValueTooLong"))
    pattern = schema.get("pattern")
    if pattern and not re.search(pattern, value):
        causes.append(invalid_value(path, value, f"{path} in body should match '{pattern}'"))
    return causes


def _check_number(value: float, schema: Schema, path: str) -> list[Cause]:
    causes = []
    if "minimum" in schema and value < schema["minimum"]:
        detail = f"{path} in body should be greater than or equal to {schema['minimum']}"
        causes.append(invalid_value(path, value, detail))
    if "maximum" in schema and value > schema["maximum"]:
        causes.append(invalid_value(path, value, f"{path} in body should be less than or equal to {schema['maximum']}"))
    return causes


def _check_list(value: list[Any], schema: Schema, path: str) -> list[Cause]:
    causes = []
    if len(value) < schema.get("minItems", 0):
        causes.append(invalid_value(path, value, f"{path} in body should have at least {schema['minItems']} items"))
    if "maxItems" in schema and len(value) > schema["maxItems"]:
        detail = f"Too many: {len(value)}: must have at most {schema['maxItems']} items"
        causes.append(Cause(path, detail, "FieldValueTooMany"))
    for index, item in enumerate(value):
        causes += check(item, schema.get("items") or {}, f"{path}[{index}]")
    return causes


def _check_object(value: dict[str, Any], schema: Schema, path: str) -> list[Cause]:
    causes = []
    for key in schema.get("required") or ():
        if key not in value:
            causes.append(required(f"{path}.{key}" if path else key))
    properties = schema.get("properties") or {}
    extra = schema.get("additionalProperties")
    for key, item in value.items():
        place = f"{path}.{key}" if path else key
        if key in properties and not (path == "" and key == "metadata"):
            causes += check(item, properties[key], place)
        elif key not in properties and isinstance(extra, Mapping):
            causes += check(item, extra, place)
    return causes


# The validation rules (CEL) the lab can evaluate: those that say a field can't change once it is there.
_IMMUTABLE_RULES = ("self == oldSelf", "!oldSelf.hasValue() || self == oldSelf.value()")


def check_change(value: Any, old: Any, schema: Schema, path: str = "") -> list[Cause]:
    """The immutable fields that a change touches; lists are not looked into, as in the real server."""
    causes: list[Cause] = []
    if value is None or old is None:
        return causes
    for rule in schema.get("x-kubernetes-validations") or ():
        if rule["rule"] in _IMMUTABLE_RULES and value != old:
            causes.append(invalid_value(path, value, rule.get("message") or f"failed rule: {rule['rule']}"))
    if isinstance(value, dict) and isinstance(old, dict):
        for key, child in (schema.get("properties") or {}).items():
            causes += check_change(value.get(key), old.get(key), child, f"{path}.{key}" if path else key)
    return causes


def unknown_rules(schema: Any) -> list[str]:
    """The validation rules under a schema that the lab can't evaluate."""
    if isinstance(schema, list):
        return [rule for item in schema for rule in unknown_rules(item)]
    if not isinstance(schema, dict):
        return []
    rules = schema.get("x-kubernetes-validations")
    own = [rule["rule"] for rule in rules if rule["rule"] not in _IMMUTABLE_RULES] if isinstance(rules, list) else []
    return own + [rule for key, child in schema.items() if key != "default" for rule in unknown_rules(child)]
