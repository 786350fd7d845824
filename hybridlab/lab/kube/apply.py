"""Who owns which field: managedFields, server-side apply, its conflicts, and tracking of ordinary writes.

After sigs.k8s.io/structured-merge-diff: a field set is a set of paths, whose elements are written as in fieldsV1:
``f:name``, ``k:{"name":"c1"}`` (item of a keyed list), ``v:"x"`` (item of a set).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from hybridlab.lab.kube.errors import ApiError
from hybridlab.lab.kube.schema import Shape
from hybridlab.lab.kube.store import Obj, clone, now

Path = tuple[str, ...]
Leaves = dict[Path, Any]

_PRESENT = object()  # the value of a path that only says "this item or map exists"
_KEY_DEFAULTS = {"protocol": "TCP"}
_UNTRACKED_META = (
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "managedFields",
    "selfLink",
)


@dataclass
class Entry:
    """One manager's row in managedFields."""

    manager: str
    operation: str  # Apply, Update
    api_version: str
    subresource: str
    time: str
    paths: set[Path]

    @property
    def identity(self) -> tuple[str, str, str]:
        return self.manager, self.operation, self.subresource


# -- values to paths ---------------------------------------------------------------------------------------------------
def _item_key(item: Any, shape: Shape) -> str:
    keys = {k: item.get(k, _KEY_DEFAULTS.get(k)) for k in shape.keys if item.get(k, _KEY_DEFAULTS.get(k)) is not None}
    return "k:" + json.dumps(keys, separators=(",", ":"), sort_keys=True)


def _is_keyed(value: list[Any], shape: Shape) -> bool:
    return bool(shape.keys) and all(isinstance(item, dict) for item in value)


def _walk(value: Any, shape: Shape, path: Path, leaves: Leaves, *, maps: bool) -> None:
    if isinstance(value, dict) and not shape.atomic and value:
        if maps and not shape.is_struct and path:
            leaves[path] = _PRESENT
        for key, child in value.items():
            _walk(child, shape.child(key), (*path, "f:" + key), leaves, maps=maps)
    elif isinstance(value, list) and _is_keyed(value, shape):
        for item in value:
            place = (*path, _item_key(item, shape))
            leaves[place] = _PRESENT
            for key, child in item.items():
                _walk(child, shape.item().child(key), (*place, "f:" + key), leaves, maps=maps)
    elif isinstance(value, list) and shape.is_set:
        for item in value:
            leaves[(*path, "v:" + json.dumps(item))] = item
    else:
        leaves[path] = value


def leaves_of(obj: Obj, shape: Shape, subresource: str, *, maps: bool, has_status: bool) -> Leaves:
    """All tracked paths of an object with their values; ``maps`` also lists non-empty maps themselves."""
    tracked = {k: v for k, v in obj.items() if k not in ("apiVersion", "kind")}
    meta = {k: v for k, v in (obj.get("metadata") or {}).items() if k not in _UNTRACKED_META}
    tracked["metadata"] = meta
    if subresource == "status":
        tracked = {k: v for k, v in tracked.items() if k == "status"}
    elif has_status:
        tracked.pop("status", None)
    if not tracked.get("metadata"):
        tracked.pop("metadata", None)
    leaves: Leaves = {}
    if tracked:
        _walk(tracked, shape, (), leaves, maps=maps)
    return leaves


# -- fieldsV1 ----------------------------------------------------------------------------------------------------------
def _encode(paths: set[Path]) -> Obj:
    root: Obj = {}
    for path in sorted(paths):
        node = root
        for element in path:
            node = node.setdefault(element, {})
        node["."] = {}
    return _tidy(root)


def _tidy(node: Obj) -> Obj:
    if set(node) == {"."}:
        return {}
    return {key: ({} if key == "." else _tidy(child)) for key, child in node.items()}


def _decode(fields: Obj, prefix: Path = ()) -> set[Path]:
    paths: set[Path] = set()
    for key, child in fields.items():
        if key == ".":
            paths.add(prefix)
        elif child:
            paths |= _decode(child, (*prefix, key))
        else:
            paths.add((*prefix, key))
    return paths


def _entries(obj: Obj | None) -> list[Entry]:
    rows = ((obj or {}).get("metadata") or {}).get("managedFields") or []
    return [
        Entry(
            row.get("manager", ""),
            row.get("operation", "Update"),
            row.get("apiVersion", ""),
            row.get("subresource", ""),
            row.get("time", ""),
            _decode(row.get("fieldsV1") or {}),
        )
        for row in rows
    ]


def _rows(entries: list[Entry]) -> list[Obj]:
    rows = []
    for entry in sorted(entries, key=lambda e: (e.operation != "Apply", e.time)):
        if not entry.paths:
            continue
        row = {
            "manager": entry.manager,
            "operation": entry.operation,
            "apiVersion": entry.api_version,
            "time": entry.time,
            "fieldsType": "FieldsV1",
            "fieldsV1": _encode(entry.paths),
        }
        if entry.subresource:
            row["subresource"] = entry.subresource
        rows.append(row)
    return rows


# -- ordinary writes ---------------------------------------------------------------------------------------------------
def track(old: Obj | None, new: Obj, manager: str, shape: Shape, subresource: str, *, has_status: bool) -> None:
    """Give ``manager`` what this create, update or patch changed, and take it from everybody else; in place.

    A client that sends ``managedFields: []`` resets them, as in the real server.
    """
    before = leaves_of(old, shape, subresource, maps=True, has_status=has_status) if old else {}
    after = leaves_of(new, shape, subresource, maps=True, has_status=has_status)
    changed = {path for path, value in after.items() if path not in before or before[path] != value}
    removed = {path for path in before if path not in after}
    sent = new["metadata"].get("managedFields")
    entries = _entries(new if sent is not None and sent != [{}] else None)
    mine = next((e for e in entries if e.identity == (manager, "Update", subresource)), None)
    for entry in entries:
        entry.paths -= removed
        if entry is not mine:
            entry.paths -= {p for p in changed if after[p] is not _PRESENT}
    if changed:
        if mine is None:
            mine = Entry(manager, "Update", new["apiVersion"], subresource, "", set())
            entries.append(mine)
        mine.paths |= changed
        mine.time = now()
    rows = _rows(entries)
    if rows:
        new["metadata"]["managedFields"] = rows
    else:
        new["metadata"].pop("managedFields", None)


# -- server-side apply -------------------------------------------------------------------------------------------------
def server_side(
    live: Obj | None, config: Obj, manager: str, shape: Shape, *, force: bool, subresource: str, has_status: bool
) -> Obj:
    """What applying ``config`` as ``manager`` makes of ``live``; ApiError 409 with one cause per conflicting field."""
    wanted = leaves_of(config, shape, subresource, maps=False, has_status=has_status)
    entries = _entries(live)
    mine = next((e for e in entries if e.identity == (manager, "Apply", subresource)), None)
    if live is None:
        result: Obj = clone(config)
    else:
        _resolve(live, wanted, entries, mine, shape, force=force, subresource=subresource, has_status=has_status)
        part = config if subresource != "status" else {k: v for k, v in config.items() if k == "status"}
        result = _merge(clone(live), part, shape)
        owned_elsewhere = {p for e in entries if e is not mine for p in e.paths}
        gone = (mine.paths if mine else set()) - set(wanted) - owned_elsewhere
        kept = owned_elsewhere | set(wanted)
        for path in sorted(gone, key=len):  # an item goes before its fields: without its keys it can't be found
            if not _is_key(path) and not any(p[: len(path)] == path for p in kept):
                _cut(result, shape, path)
    if mine is None:
        mine = Entry(manager, "Apply", config["apiVersion"], subresource, now(), set())
        entries.append(mine)
    if mine.paths != set(wanted) or mine.api_version != config["apiVersion"]:
        mine.paths, mine.time, mine.api_version = set(wanted), now(), config["apiVersion"]
    result["metadata"]["managedFields"] = _rows(entries)
    return result


def _resolve(
    live: Obj,
    wanted: Leaves,
    entries: list[Entry],
    mine: Entry | None,
    shape: Shape,
    *,
    force: bool,
    subresource: str,
    has_status: bool,
) -> None:
    have = leaves_of(live, shape, subresource, maps=False, has_status=has_status)
    differs = {path for path, value in wanted.items() if value is not _PRESENT and have.get(path, _PRESENT) != value}
    conflicts = [(entry, path) for entry in entries if entry is not mine for path in sorted(entry.paths & differs)]
    if not conflicts:
        return
    if force:
        for entry, path in conflicts:
            entry.paths.discard(path)
        return
    raise _conflict(conflicts)


def _conflict(conflicts: list[tuple[Entry, Path]]) -> ApiError:
    causes, lines = [], []
    for entry, path in conflicts:
        using = f" using {entry.api_version}" if entry.operation == "Update" else ""
        who = f'conflict with "{entry.manager}"'
        if entry.subresource:
            who += f' with subresource "{entry.subresource}"'
        causes.append({"reason": "FieldManagerConflict", "message": who + using, "field": _dotted(path)})
        lines.append(f"{who}{using}: {_dotted(path)}")
    count = len(conflicts)
    if count == 1:
        message = f"Apply failed with 1 conflict: {lines[0]}"
    else:
        message = f"Apply failed with {count} conflicts: conflicts:\n" + "\n".join(f"- {line}" for line in lines)
    return ApiError(409, "Conflict", message, {"causes": causes})


def _dotted(path: Path) -> str:
    """``.spec.containers[name="c1"].image``"""
    text = ""
    for element in path:
        sign, body = element[:2], element[2:]
        if sign == "f:":
            text += f".{body}"
        elif sign == "k:":
            text += "[" + ",".join(f"{k}={json.dumps(v)}" for k, v in json.loads(body).items()) + "]"
        else:
            text += f"[={body}]"
    return text


def _merge(live: Any, config: Any, shape: Shape) -> Any:
    if isinstance(config, dict) and isinstance(live, dict) and not shape.atomic:
        for key, value in config.items():
            live[key] = _merge(live[key], value, shape.child(key)) if key in live else clone(value)
        return live
    if isinstance(config, list) and isinstance(live, list):
        if _is_keyed(config, shape) and _is_keyed(live, shape):
            return _merge_keyed(live, config, shape)
        if shape.is_set:
            return live + [item for item in config if item not in live]
    return clone(config)


def _merge_keyed(live: list[Any], config: list[Any], shape: Shape) -> list[Any]:
    have = {_item_key(item, shape): item for item in live}
    result = []
    for item in config:
        key = _item_key(item, shape)
        result.append(_merge(have.pop(key), item, shape.item()) if key in have else clone(item))
    return result + list(have.values())


def _is_key(path: Path) -> bool:
    """Whether this is a field by which an item of a list is told apart: it goes with its item only."""
    return len(path) > 1 and path[-2].startswith("k:") and path[-1][2:] in json.loads(path[-2][2:])


def _cut(value: Any, shape: Shape, path: Path) -> None:
    """Remove what ``path`` names, where it is there."""
    for index, element in enumerate(path):
        last = index == len(path) - 1
        sign, body = element[:2], element[2:]
        if sign == "f:":
            if not isinstance(value, dict) or body not in value:
                return
            if last:
                del value[body]
                return
            value, shape = value[body], shape.child(body)
            continue
        if not isinstance(value, list):
            return
        if sign == "v:":
            value[:] = [item for item in value if item != json.loads(body)]
            return
        found = next((item for item in value if isinstance(item, dict) and _item_key(item, shape) == element), None)
        if found is None:
            return
        if last:
            value.remove(found)
            return
        value, shape = found, shape.item()
