"""From request bytes to an object: content types, Go's strictness about types, unknown fields.

The real server refuses a wrong type while decoding (400), before it validates (422); unknown fields are dropped with a
warning, or refused when the request says fieldValidation=Strict.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from hybridlab.lab.kube import protobuf
from hybridlab.lab.kube.errors import ApiError, bad_request
from hybridlab.lab.kube.schema import type_named

QUANTITY = re.compile(r"^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$")
_QUANTITY = re.compile(r"^[+-]?(\d+\.?\d*|\.\d+)(|n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|[eE][+-]?\d+)$")
_TIME = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$")
_GO_NAMES = {"string": "string", "integer": "int32", "boolean": "bool", "number": "float64", "byte": "[]uint8"}


def parse_body(raw: bytes, content_type: str) -> tuple[Any, list[str]]:
    """The JSON or YAML value of a request body, and the duplicate fields it had; 400 or 415."""
    kind = content_type.split(";")[0].strip().lower()
    if kind == protobuf.MEDIA_TYPE:
        try:
            return protobuf.decode(raw), []
        except protobuf.UnknownKind as error:
            raise unsupported_media() from error
        except ValueError as error:
            raise bad_request(str(error)) from error
    if kind in ("application/yaml", "application/apply-patch+yaml") and not raw.lstrip().startswith(b"{"):
        try:
            return YAML(typ="safe").load(raw), []
        except YAMLError as error:
            raise bad_request(f"error decoding YAML: {error}") from error
    duplicates: list[str] = []

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in items:
            if key in found:
                duplicates.append(key)
            found[key] = value
        return found

    try:
        return json.loads(raw, object_pairs_hook=pairs), duplicates
    except (ValueError, UnicodeDecodeError) as error:
        raise bad_request(f"couldn't get version/kind; json parse error: {error}") from error


def unsupported_media() -> ApiError:
    accepted = "application/json, application/yaml"
    message = f"the body of the request was in an unknown format - accepted media types include: {accepted}"
    return ApiError(415, "UnsupportedMediaType", message)


def is_quantity(value: str) -> bool:
    return bool(_QUANTITY.match(value))


class Decoder:
    """Checks one object against a built-in type; collects the unknown fields it drops."""

    def __init__(self, api_version: str, kind: str) -> None:
        self.unknown: list[str] = []
        self._version = api_version.rpartition("/")[2]
        self._kind = kind

    def decode(self, value: Any, type_name: str) -> Any:
        """The object without nulls and unknown fields; ApiError 400 where a type is wrong."""
        return self._value(value, type_name, "", type_name)

    def _refuse(self, message: str) -> ApiError:
        return bad_request(f'{self._kind} in version "{self._version}" cannot be handled as a {self._kind}: {message}')

    def _wrong(self, value: Any, path: str, owner: str, wanted: str) -> ApiError:
        have = {bool: "bool", str: "string", int: "number", float: "number", dict: "object", list: "array"}
        struct = re.sub(r"^(Core|Authentication|Storage)?V\d+", "", owner)
        field = f"Go struct field {struct}.{path}" if path else "Go value"
        return self._refuse(f"json: cannot unmarshal {have.get(type(value), 'null')} into {field} of type {wanted}")

    def _value(self, value: Any, type_name: str, path: str, owner: str) -> Any:
        if type_name == "object":
            return value
        if type_name.startswith("[]"):
            if not isinstance(value, list):
                raise self._wrong(value, path, owner, "[]" + _go_type(type_name[2:]))
            return [self._value(v, type_name[2:], f"{path}[{i}]", owner) for i, v in enumerate(value)]
        if type_name.startswith("{}"):
            if not isinstance(value, dict):
                raise self._wrong(value, path, owner, "map[string]" + _go_type(type_name[2:]))
            return {
                k: ("" if v is None else self._value(v, type_name[2:], f"{path}.{k}", owner)) for k, v in value.items()
            }
        described = type_named(type_name)
        if described is None:
            return self._scalar(value, type_name, path, owner)
        if not isinstance(value, dict):
            raise self._wrong(value, path, owner, _go_type(type_name))
        result = {}
        for key, item in value.items():
            field = described.fields.get(key)
            place = f"{path}.{key}" if path else key
            if field is None:
                self.unknown.append(place)
            elif item is not None:
                result[key] = self._value(item, field.type, place, type_name)
        return result

    def _scalar(self, value: Any, kind: str, path: str, owner: str) -> Any:
        if kind == "quantity":
            text = str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value
            if not isinstance(text, str) or not is_quantity(text):
                raise self._refuse(f"quantities must match the regular expression '{QUANTITY.pattern}'")
            return text
        fits = {
            "string": isinstance(value, str),
            "integer": isinstance(value, int) and not isinstance(value, bool),
            "number": isinstance(value, (int, float)) and not isinstance(value, bool),
            "boolean": isinstance(value, bool),
            "int-or-string": isinstance(value, (int, str)) and not isinstance(value, bool),
            "date-time": isinstance(value, str),
            "byte": isinstance(value, str),
        }.get(kind, True)
        if not fits:
            raise self._wrong(value, path, owner, _GO_NAMES.get(kind, kind))
        if kind == "byte":
            try:
                base64.b64decode(value, validate=True)
            except (binascii.Error, ValueError) as error:
                raise self._refuse("illegal base64 data at input byte 0") from error
        if kind == "date-time" and value and not _TIME.match(value):
            layout = "2006-01-02T15:04:05Z07:00"
            raise self._refuse(f'parsing time "{value}" as "{layout}": cannot parse "{value}" as "2006"')
        return value


def _go_type(type_name: str) -> str:
    return _GO_NAMES.get(type_name) or "v1." + re.sub(r"^(Core|Authentication|Storage)?V\d+", "", type_name)
