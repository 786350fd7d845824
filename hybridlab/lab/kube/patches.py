"""JSON patch (RFC 6902), merge patch (RFC 7386) and Kubernetes' strategic merge patch."""

from __future__ import annotations

from typing import Any

from hybridlab.lab.kube.errors import ApiError, bad_request
from hybridlab.lab.kube.schema import Shape
from hybridlab.lab.kube.store import clone

Json = Any


# -- merge patch -------------------------------------------------------------------------------------------------------
def merge(target: Json, patch: Json) -> Json:
    """RFC 7386: null deletes, maps merge, everything else replaces."""
    if not isinstance(patch, dict):
        return clone(patch)
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge(result.get(key), value)
    return result


# -- JSON patch --------------------------------------------------------------------------------------------------------
def _failed(message: str) -> ApiError:
    return ApiError(422, "Invalid", f"the server rejected our request due to an error in our request: {message}")


def _segments(pointer: str) -> list[str]:
    if pointer == "":
        return []
    if not pointer.startswith("/"):
        raise bad_request(f"json patch: invalid pointer {pointer!r}")
    return [part.replace("~1", "/").replace("~0", "~") for part in pointer[1:].split("/")]


def _index(container: list[Json], segment: str, *, end: bool = False) -> int:
    if segment == "-" and end:
        return len(container)
    if not segment.lstrip("-").isdigit():
        raise _failed(f"invalid array index {segment!r}")
    index = int(segment)
    if not 0 <= index < len(container) + (1 if end else 0):
        raise _failed(f"array index {index} out of bounds")
    return index


def _step(node: Json, segment: str) -> Json:
    if isinstance(node, list):
        return node[_index(node, segment)]
    if isinstance(node, dict) and segment in node:
        return node[segment]
    raise _failed(f"doc is missing path: {segment!r}")


def _read(document: Json, segments: list[str]) -> Json:
    for segment in segments:
        document = _step(document, segment)
    return document


def _add(document: Json, segments: list[str], value: Json) -> Json:
    if not segments:
        return value
    parent = _read(document, segments[:-1])
    if isinstance(parent, list):
        parent.insert(_index(parent, segments[-1], end=True), value)
    elif isinstance(parent, dict):
        parent[segments[-1]] = value
    else:
        raise _failed("doc is missing path: " + "/".join(segments))
    return document


def _remove(document: Json, segments: list[str]) -> Json:
    if not segments:
        return None
    parent = _read(document, segments[:-1])
    _step(parent, segments[-1])
    if isinstance(parent, list):
        parent.pop(_index(parent, segments[-1]))
    else:
        del parent[segments[-1]]
    return document


def json_patch(document: Json, operations: Json) -> Json:
    """Apply RFC 6902 operations; ApiError 422 where one fails, as the real server answers."""
    if not isinstance(operations, list) or not all(isinstance(op, dict) for op in operations):
        raise bad_request("error decoding patch: json: cannot unmarshal object into Go value of type jsonpatch.Patch")
    document = clone(document)
    for operation in operations:
        document = _operate(document, operation)
    return document


def _operate(document: Json, operation: dict[str, Any]) -> Json:
    name, path = operation.get("op"), _segments(str(operation.get("path", "")))
    if name == "add":
        return _add(document, path, clone(operation.get("value")))
    if name == "remove":
        return _remove(document, path)
    if name == "replace":
        _read(document, path)
        return _add(_remove(document, path), path, clone(operation.get("value")))
    if name == "test":
        if _read(document, path) != operation.get("value"):
            raise _failed(f"testing value {operation.get('path')} failed")
        return document
    if name in ("move", "copy"):
        source = _segments(str(operation.get("from", "")))
        value = clone(_read(document, source))
        if name == "move":
            document = _remove(document, source)
        return _add(document, path, value)
    raise bad_request(f"Unexpected kind: {name}")


# -- strategic merge patch ---------------------------------------------------------------------------------------------
_DELETE_PREFIX = "$deleteFromPrimitiveList/"
_ORDER_PREFIX = "$setElementOrder/"


def strategic(target: Json, patch: Json, shape: Shape) -> Json:
    """Kubernetes' own patch: lists with a merge key merge item by item, ``$patch`` and friends are directives."""
    if not isinstance(patch, dict):
        return clone(patch)
    directive = patch.get("$patch")
    if directive == "replace":
        return {key: clone(value) for key, value in patch.items() if key != "$patch"}
    if directive == "delete":
        return {}
    if directive not in (None, "merge"):
        raise bad_request(f"Unknown patch type found: {directive}")
    result = dict(target) if isinstance(target, dict) else {}
    retain = patch.get("$retainKeys")
    if retain is not None:
        result = {key: value for key, value in result.items() if key in retain}
    for key, value in patch.items():
        if key.startswith(_DELETE_PREFIX):
            field = key[len(_DELETE_PREFIX) :]
            result[field] = [item for item in result.get(field) or [] if item not in value]
        elif not key.startswith("$"):
            _merge_field(result, key, value, shape.child(key))
    for key, order in patch.items():
        if key.startswith(_ORDER_PREFIX):
            field = key[len(_ORDER_PREFIX) :]
            if field in result:
                result[field] = _ordered(result[field], order, shape.child(field))
    return result


def _merge_field(result: dict[str, Json], key: str, value: Json, shape: Shape) -> None:
    if value is None:
        result.pop(key, None)
    elif isinstance(value, list):
        merged = _merge_list(result.get(key) or [], value, shape)
        result[key] = merged
    elif isinstance(value, dict):
        if value.get("$patch") == "delete":
            result.pop(key, None)
        else:
            result[key] = strategic(result.get(key), value, shape)
    else:
        result[key] = value


def _merge_list(target: list[Json], patch: list[Json], shape: Shape) -> list[Json]:
    if shape.is_set:
        return target + [item for item in patch if item not in target]
    if not shape.keys:
        return [_without_directives(item) for item in patch if not (isinstance(item, dict) and item.get("$patch"))]
    key = shape.keys[0]
    if any(isinstance(item, dict) and item.get("$patch") == "replace" and key not in item for item in patch):
        return [clone(item) for item in patch if "$patch" not in item]
    result = list(target)
    for item in patch:
        if not isinstance(item, dict) or key not in item:
            raise bad_request(f"map: {item} does not contain declared merge key: {key}")
        place = next((i for i, have in enumerate(result) if have.get(key) == item[key]), None)
        if item.get("$patch") == "delete":
            result = [have for have in result if have.get(key) != item[key]]
        elif place is None:
            result.append(strategic({}, item, shape.item()))
        else:
            result[place] = strategic(result[place], item, shape.item())
    return result


def _without_directives(value: Json) -> Json:
    if isinstance(value, dict):
        return {k: _without_directives(v) for k, v in value.items() if not k.startswith("$") and v is not None}
    return [_without_directives(item) for item in value] if isinstance(value, list) else value


def _ordered(items: list[Json], order: list[Json], shape: Shape) -> list[Json]:
    """Put the items named in ``order`` into that order; others keep their place after what they followed."""
    key = shape.keys[0] if shape.keys else None
    names = [entry.get(key) if key and isinstance(entry, dict) else entry for entry in order]

    def name(item: Json) -> Json:
        return item.get(key) if key and isinstance(item, dict) else item

    listed = sorted((item for item in items if name(item) in names), key=lambda item: names.index(name(item)))
    return listed + [item for item in items if name(item) not in names]
