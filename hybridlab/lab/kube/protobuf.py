"""Kubernetes' protobuf request bodies as JSON objects: what kubectl 1.37 and Helm 4 send when they create things.

The envelope is ``k8s\\0`` and a runtime.Unknown (k8s.io/apimachinery/pkg/runtime/generated.proto). What Go's JSON would
leave out (zeros of fields that are no pointers and say omitempty) is left out here too. Answers are always JSON, which
such a client accepts as well.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from typing import Any

MEDIA_TYPE = "application/vnd.kubernetes.protobuf"
_MAGIC = b"k8s\x00"
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class UnknownKind(Exception):
    """A kind that only comes as JSON: custom resources, and what is not in the table."""


@cache
def _data() -> Any:
    return json.loads(files("hybridlab.data").joinpath("kube-protobuf.json").read_text(encoding="utf-8"))


def decode(raw: bytes) -> dict[str, Any]:
    """The object in a request body. Raises ValueError for bytes that are no such message, UnknownKind."""
    if not raw.startswith(_MAGIC):
        raise ValueError("provided data does not appear to be a protobuf message, expected prefix 6b 38 73 00")
    envelope = {number: value for number, _, value in _fields(raw[len(_MAGIC) :])}
    type_meta = {number: _text(value) for number, _, value in _fields(_bytes(envelope.get(1, b"")))}
    api_version, kind = type_meta.get(1, ""), type_meta.get(2, "")
    # clients send the options with the group of what they delete
    message = _data()["kinds"].get("v1/DeleteOptions" if kind == "DeleteOptions" else f"{api_version}/{kind}")
    if message is None:
        raise UnknownKind(f"{api_version}/{kind}")
    return {"apiVersion": api_version, "kind": kind, **_message(_bytes(envelope.get(2, b"")), message)}


# -- the wire ----------------------------------------------------------------------------------------------------------
def _fields(data: bytes) -> Iterator[tuple[int, int, int | bytes]]:
    """Field number, wire type and value (a number, or bytes) of one message."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire = key & 7
        value: int | bytes
        if wire == _VARINT:
            value, at = _varint(data, at)
        else:
            size = {_FIXED64: 8, _FIXED32: 4}.get(wire, 0)
            if wire == _BYTES:
                size, at = _varint(data, at)
            elif not size:
                raise ValueError(f"illegal wireType {wire}")
            value = data[at : at + size]
            if len(value) != size:
                raise ValueError("unexpected EOF")
            at += size
        yield key >> 3, wire, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at
    raise ValueError("unexpected EOF" if at >= len(data) else "integer overflow")


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("wrong wireType = 0")
    return value


def _text(value: int | bytes) -> str:
    return _bytes(value).decode()


def _integer(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise ValueError("wrong wireType = 2")
    return value - (1 << 64) if value >= 1 << 63 else value


# -- meaning -----------------------------------------------------------------------------------------------------------
def _message(data: bytes, name: str) -> dict[str, Any]:
    table = _data()["messages"][name]
    found: dict[str, Any] = {}
    for number, _, raw in _fields(data):
        if str(number) not in table:
            continue  # a field newer than the table
        field, kind = table[str(number)]
        key = field.removesuffix("?")
        if not key:
            found.update(_value(raw, kind))  # inlined
        elif kind.startswith("[]"):
            found.setdefault(key, []).append(_value(raw, kind[2:]))
        elif kind.startswith("{}"):
            entry = {n: v for n, _, v in _fields(_bytes(raw))}
            found.setdefault(key, {})[_text(entry.get(1, b""))] = _value(entry.get(2, b""), kind[2:])
        else:
            value = _value(raw, kind)
            if not (field.endswith("?") and value in ("", 0, False, None)):
                found[key] = value
    return found


def _value(raw: int | bytes, kind: str) -> Any:
    if kind in _data()["messages"]:
        return _message(_bytes(raw), kind)
    if kind.startswith("items"):
        return [_value(value, kind.removeprefix("items[]")) for _, _, value in _fields(_bytes(raw))]
    return _SCALARS[kind](raw)


def _quantity(raw: int | bytes) -> str:
    return next((_text(value) for number, _, value in _fields(_bytes(raw)) if number == 1), "0")


def _int_or_string(raw: int | bytes) -> int | str:
    parts = {number: value for number, _, value in _fields(_bytes(raw))}
    return _text(parts.get(3, b"")) if parts.get(1) else _integer(parts.get(2, 0))


def _time(raw: int | bytes) -> str | None:
    parts = {number: _integer(value) for number, _, value in _fields(_bytes(raw))}
    if not parts:
        return None
    moment = datetime.fromtimestamp(parts.get(1, 0), UTC).replace(microsecond=parts.get(2, 0) // 1000)
    return moment.isoformat(timespec="microseconds" if moment.microsecond else "seconds").replace("+00:00", "Z")


def _raw_json(raw: int | bytes) -> Any:
    text = next((_bytes(value) for number, _, value in _fields(_bytes(raw)) if number == 1), b"")
    return json.loads(text) if text else None


_SCALARS = {
    "string": _text,
    "bool": lambda raw: bool(_integer(raw)),
    "int": _integer,
    "double": lambda raw: struct.unpack("<d", _bytes(raw))[0],
    "bytes": lambda raw: base64.b64encode(_bytes(raw)).decode(),
    "Quantity": _quantity,
    "IntOrString": _int_or_string,
    "Time": _time,
    "Raw": _raw_json,
}
