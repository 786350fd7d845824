"""Make data/kube-protobuf.json: field numbers of the built-in kinds, from the struct tags of Kubernetes' Go sources.

Run as ``python -m hybridlab.lab.kube.protobuf_build API APIMACHINERY`` with checkouts of k8s.io/api and
k8s.io/apimachinery; numbers never change, so this is only needed for a kind or field that is new. The tags are read
rather than the .proto files because they also say what is inlined in JSON, and the Go type what is a pointer.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from hybridlab.lab.kube.schema import kinds

_SPECIAL = {
    "resource.Quantity": "Quantity",
    "intstr.IntOrString": "IntOrString",
    "runtime.RawExtension": "Raw",
    "meta.FieldsV1": "Raw",
    "meta.Time": "Time",
    "meta.MicroTime": "Time",
}
_SCALARS = {
    "string": "string",
    "types.UID": "string",
    "types.NodeName": "string",
    "bool": "bool",
    "int32": "int",
    "int64": "int",
    "float64": "double",
    "[]byte": "bytes",
}
_STRUCT = re.compile(r"^type (\w+) struct \{(.*?)^\}", re.MULTILINE | re.DOTALL)
_NAMED = re.compile(r"^type (\w+) (map\[\w+\][\w.]+|\[\][\w.]+|string|bool|u?int\d+)$", re.MULTILINE)
_FIELD = re.compile(r'^\s+(?:(\w+)\s+)?([\w\[\].*]+)\s+`[^`]*json:"([^"]*)"[^`]*protobuf:"[^,]*,(\d+),', re.MULTILINE)
_IMPORT = re.compile(r'^\s+(\w+)?\s*"k8s\.io/(?:api|apimachinery/pkg/apis)/(\w+)/(\w+)"', re.MULTILINE)


class Sources:
    """The Go packages of the kinds we have: ``structs`` and ``named`` by "group/version.Name"."""

    def __init__(self, api: Path, apimachinery: Path) -> None:
        self.structs: dict[str, str] = {}
        self.named: dict[str, str] = {}
        self._imports: dict[str, dict[str, str]] = {}
        self._read("meta/v1", apimachinery / "pkg/apis/meta/v1")
        for folder in sorted(api.glob("*/v*/")):
            self._read(f"{folder.parent.name}/{folder.name}", folder)

    def _read(self, package: str, folder: Path) -> None:
        aliases: dict[str, str] = {}
        for path in (folder / "types.go", folder / "microtime.go", folder / "time.go"):
            if not path.exists():
                continue
            text = re.sub(r"//.*", "", path.read_text(encoding="utf-8"))
            for alias, group, version in _IMPORT.findall(text):
                aliases[alias or version] = f"{group}/{version}"
            self.structs |= {f"{package}.{name}": body for name, body in _STRUCT.findall(text)}
            self.named |= {f"{package}.{name}": kind for name, kind in _NAMED.findall(text)}
        self._imports[package] = aliases

    def type_of(self, go: str, package: str) -> str:
        """The table's word for a Go type as a package writes it."""
        if go in _SCALARS:
            return _SCALARS[go]
        if go.startswith("*"):
            return "*" + self.type_of(go[1:], package)
        if go.startswith("[]"):
            return "[]" + self.type_of(go[2:], package)
        if found := re.match(r"map\[\w+\](.+)", go):
            return "{}" + self.type_of(found[1], package)
        alias, _, name = go.rpartition(".")
        home = self._imports[package].get(alias, alias) if alias else package
        special = _SPECIAL.get(f"{home.replace('meta/v1', 'meta')}.{name}")
        if special:
            return special
        full = f"{home}.{name}"
        if full in self.structs:
            return full
        kind = self.named[full]
        if kind.startswith("[]"):
            return "items" + self.type_of(kind, home)  # a named slice is a message that wraps its items
        return self.type_of(kind, home)

    def fields(self, full: str) -> Iterator[tuple[str, list[str]]]:
        """Number, and JSON name (empty where inlined) with type; a name ends with ``?`` where a zero is left out."""
        package = full.rpartition(".")[0]
        for _, go, tag, number in _FIELD.findall(self.structs[full]):
            name, _, options = tag.partition(",")
            kind = self.type_of(go, package)
            optional = "omitempty" in options and not kind.startswith("*")
            yield number, [name + ("?" if optional and name else ""), kind.lstrip("*")]


def build(api: Path, apimachinery: Path) -> tuple[dict[str, str], dict[str, dict[str, list[str]]]]:
    """Kinds ("apps/v1/Deployment" to message), and messages (field number to name and type)."""
    sources = Sources(api, apimachinery)
    known = {}
    for key in kinds():
        group_version, _, kind = key.rpartition("/")
        group, _, version = group_version.rpartition("/")
        package = f"{group.partition('.')[0] or 'core'}/{version}"
        full = "meta/v1.DeleteOptions" if kind == "DeleteOptions" else f"{package}.{kind}"
        if full in sources.structs:  # those of other repositories (CustomResourceDefinition) only come as JSON
            known[key] = full
    messages: dict[str, dict[str, list[str]]] = {}
    todo = sorted(set(known.values()))
    while todo:
        full = todo.pop()
        if full not in messages:
            messages[full] = dict(sources.fields(full))
            kinds_used = [kind.removeprefix("items").lstrip("[]{}") for _, kind in messages[full].values()]
            todo += [kind for kind in kinds_used if kind in sources.structs]
    return known, dict(sorted(messages.items()))


def main() -> None:
    known, messages = build(Path(sys.argv[1]), Path(sys.argv[2]))
    rows = [f"{json.dumps(name)}:{json.dumps(row, separators=(',', ':'))}" for name, row in messages.items()]
    text = '{"kinds":' + json.dumps(known) + ',"messages":{\n' + ",\n".join(rows) + "\n}}\n"
    Path(str(files("hybridlab.data"))).joinpath("kube-protobuf.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
