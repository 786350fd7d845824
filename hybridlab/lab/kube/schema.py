"""The shape of objects: fields, types, and how lists and maps merge; for built-in kinds and for custom resources.

Strategic merge, server-side apply, decoding and OpenAPI all walk the same shapes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

Schema = Mapping[str, Any]


@dataclass(frozen=True)
class Field:
    """One field of a built-in type.

    ``type`` is a type name, a scalar (string, integer, boolean, number, date-time, byte, quantity, int-or-string),
    "object" (anything), or one of these behind "[]" or "{}". ``keys`` tell list items apart.
    """

    type: str
    required: bool = False
    description: str = ""
    keys: tuple[str, ...] = ()
    is_set: bool = False
    retain_keys: bool = False
    atomic: bool = False


@dataclass(frozen=True)
class Type:
    description: str
    fields: Mapping[str, Field]
    atomic: bool = False


def _field(row: list[Any]) -> Field:
    extras = row[3] if len(row) > 3 else {}
    return Field(
        row[0],
        bool(row[1]),
        row[2],
        tuple(extras.get("keys", ())),
        extras.get("set", False),
        extras.get("retain", False),
        extras.get("atomic", False),
    )


@cache
def _data() -> Any:
    return json.loads(files("hybridlab.data").joinpath("kube-schema.json").read_text(encoding="utf-8"))


@cache
def type_named(name: str) -> Type | None:
    """A built-in type, or None for scalars."""
    body = _data()["types"].get(name)
    if body is None:
        return None
    return Type(body["d"], {key: _field(row) for key, row in body["f"].items()}, body.get("atomic", False))


def kinds() -> Mapping[str, str]:
    """``apps/v1/Deployment`` → type name, for all built-in kinds."""
    known: Mapping[str, str] = _data()["kinds"]
    return known


def type_of(api_version: str, kind: str) -> str | None:
    """The type name of a built-in kind."""
    return kinds().get(f"{api_version}/{kind}")


class Shape:
    """How one value is built and merges. ``Shape()`` is anything: maps merge by key, lists are replaced."""

    keys: tuple[str, ...] = ()  # a list whose items are told apart by these
    is_set = False  # a list of scalars without duplicates
    atomic = False  # replaced as a whole
    retain_keys = False
    is_struct = False  # fixed fields, as opposed to a map

    def child(self, name: str) -> Shape:
        """The shape of a field or map entry."""
        return ANY

    def item(self) -> Shape:
        """The shape of a list item."""
        return ANY


ANY = Shape()


class BuiltInShape(Shape):
    """The shape of a value of a built-in type, as its Field describes it."""

    def __init__(self, field: Field) -> None:
        self._field = field
        self._type = type_named(field.type)
        self.keys, self.is_set, self.retain_keys = field.keys, field.is_set, field.retain_keys
        self.is_struct = self._type is not None
        self.atomic = field.atomic or bool(self._type and self._type.atomic)

    def child(self, name: str) -> Shape:
        if self._type:
            field = self._type.fields.get(name)
            return _built_in(field) if field else ANY
        if self._field.type.startswith("{}"):
            return _built_in(Field(self._field.type[2:]))
        return ANY

    def item(self) -> Shape:
        return _built_in(Field(self._field.type[2:])) if self._field.type.startswith("[]") else ANY


@cache
def _built_in(field: Field) -> Shape:
    return BuiltInShape(field)


class CustomShape(Shape):
    """The shape of a value under a structural schema of a CustomResourceDefinition."""

    def __init__(self, schema: Schema, *, root: bool = False) -> None:
        self._schema = schema
        self._root = root
        self.keys = tuple(schema.get("x-kubernetes-list-map-keys") or ())
        self.is_set = schema.get("x-kubernetes-list-type") == "set"
        self.atomic = schema.get("x-kubernetes-map-type") == "atomic"
        self.is_struct = "properties" in schema

    def child(self, name: str) -> Shape:
        if self._root and name == "metadata":
            return built_in_shape("V1ObjectMeta")
        properties = self._schema.get("properties") or {}
        if name in properties:
            return CustomShape(properties[name])
        extra = self._schema.get("additionalProperties")
        return CustomShape(extra) if isinstance(extra, Mapping) else ANY

    def item(self) -> Shape:
        return CustomShape(self._schema.get("items") or {})


class _CustomWithoutSchema(Shape):
    is_struct = True

    def child(self, name: str) -> Shape:
        return built_in_shape("V1ObjectMeta") if name == "metadata" else ANY


def built_in_shape(type_name: str) -> Shape:
    """The shape of a built-in type."""
    return _built_in(Field(type_name))


def custom_shape(schema: Schema | None) -> Shape:
    """The shape of a custom resource; ``schema`` is its openAPIV3Schema."""
    return CustomShape(schema, root=True) if schema else _CustomWithoutSchema()
