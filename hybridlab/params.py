"""The one schema of a params file: types, ranges, cross-checks, reading, overriding, writing back with comments.

It also draws the form, the command line's help, the report's table and a JSON Schema: see ``fields_of``.
"""

from __future__ import annotations

import difflib
import io
import ipaddress
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import YAMLError

from hybridlab.errors import ParamsError, SchemaTooNew
from hybridlab.models import Json, NodeWish
from hybridlab.sections import (
    DNS_LABEL,
    Backup,
    Benchmark,
    Bootstrap,
    CutOver,
    Drill,
    Expose,
    Layout,
    Maintain,
    Migrate,
    Node,
    OracleAccount,
    Provision,
    Section,
    Storage,
)

SCHEMA = 1


class Params(Section):
    """A whole params file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)

    schema_: Literal[1] = Field(1, alias="schema", description="Version of this format")
    cluster: str = Field(pattern=DNS_LABEL, description="Name of the cluster; its tag on everything it owns")
    site: Literal["lab", "oracle", "byo"] = Field(description="Where: lab, oracle or byo")
    nodes: list[Node] = Field(min_length=1, max_length=20, description="The wanted nodes")
    layout: Layout = Field(default_factory=Layout)
    oracle: OracleAccount = Field(default_factory=OracleAccount)
    provision: Provision = Field(default_factory=Provision)
    bootstrap: Bootstrap = Field(default_factory=Bootstrap)
    benchmark: Benchmark = Field(default_factory=Benchmark)
    storage: Storage = Field(default_factory=Storage)
    expose: Expose = Field(default_factory=Expose)
    migrate: Migrate = Field(default_factory=Migrate)
    cut_over: CutOver = Field(default_factory=CutOver)
    backup: Backup = Field(default_factory=Backup)
    drill: Drill = Field(default_factory=Drill)
    maintain: Maintain = Field(default_factory=Maintain)

    @model_validator(mode="after")
    def _cross_checks(self) -> Self:
        names = [n.name for n in self.nodes]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"nodes: the name {twice[0]} is used twice")
        servers = [n.name for n in self.nodes if n.role == "server"]
        if len(servers) != 1:
            raise ValueError(f"nodes: exactly one node must have role: server, found {len(servers)}")
        if self.site == "byo":
            missing = [n.name for n in self.nodes if not n.address]
            if missing:
                raise ValueError(f"nodes: site byo needs an address for {', '.join(missing)}")
        elif unsaid := [n.name for n in self.nodes if n.arch is None]:
            raise ValueError(f"nodes: site {self.site} needs an arch for {', '.join(unsaid)}")
        vcn = ipaddress.ip_network(self.provision.vcn_cidr)
        subnet = ipaddress.ip_network(self.provision.subnet_cidr)
        if subnet.version != vcn.version or not subnet.subnet_of(vcn):  # type: ignore[arg-type]
            raise ValueError(f"provision.subnet_cidr: {subnet} is not inside vcn_cidr {vcn}")
        for pods in ("10.42.0.0/16", "10.43.0.0/16"):
            if vcn.overlaps(ipaddress.ip_network(pods)):
                raise ValueError(f"provision.vcn_cidr: {vcn} overlaps {pods}, which K3s uses for pods or services")
        return self

    @property
    def wishes(self) -> tuple[NodeWish, ...]:
        return tuple(NodeWish(**n.model_dump()) for n in self.nodes)

    @property
    def backs_up(self) -> bool:
        """Whether there is anywhere to back up to: the lab has a target of its own."""
        return self.site == "lab" or self.backup.endpoint is not None

    @property
    def server(self) -> NodeWish:
        return next(w for w in self.wishes if w.role == "server")

    def plain(self, *sections: str) -> dict[str, Json]:
        """The params as plain JSON, all of them or only ``cluster``, ``site``, ``nodes`` and the named sections."""
        data: dict[str, Json] = self.model_dump(mode="json", by_alias=True)
        return {k: v for k, v in data.items() if not sections or k in ("cluster", "site", "nodes", *sections)}


# -- reading -----------------------------------------------------------------------------------------------------------
def _yaml(text: str) -> YAML:
    """A writer that keeps comments, quotes and, as ``text`` has it, the indentation of lists."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    if re.search(r"^ +- ", text, re.MULTILINE):
        yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml


def read_params(path: Path, overrides: Mapping[str, Json] | None = None) -> Params:
    """Read a params file and apply overrides by dotted path (``storage.replicas``); None leaves the file's value.

    Raises ParamsError naming the file, the key and the nearest valid name; SchemaTooNew for a newer format.
    """
    data = _load(path)
    for key, value in (overrides or {}).items():
        if value is not None:
            set_path(data, key, value)
    return check_params(data, where=str(path))


def _load(path: Path) -> dict[str, Json]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        folder = path.parent if path.parent.exists() else Path()
        near = difflib.get_close_matches(path.name, [p.name for p in folder.glob("*.y*ml")], n=1, cutoff=0.4)
        hint = f"did you mean {folder / near[0]}?" if near else "see params/ for examples"
        raise ParamsError("there is no such params file", where=str(path), next_move=hint) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ParamsError("the params file can't be read", where=str(path), why=str(error)) from error
    try:
        data = YAML(typ="safe").load(io.StringIO(text))
    except DuplicateKeyError as error:
        key = re.search(r'duplicate key "([^"]*)"', str(error))
        mark = error.problem_mark
        line = f"line {mark.line + 1}" if mark else ""
        name = key.group(1) if key else "a key"
        raise ParamsError(f"{name} is given twice", where=f"{path}, {line}", next_move="keep one of the two") from error
    except YAMLError as error:
        raise ParamsError(
            "the params file is not YAML",
            where=str(path),
            why=" ".join(str(error).replace('in "<file>", ', "in ").split()),
            next_move="correct it there; quote what has a colon, a bracket or a brace in it",
        ) from error
    if not isinstance(data, dict):
        what = "the params file is empty" if data is None else "the params file is not a mapping of keys to values"
        raise ParamsError(what, where=str(path), next_move="start from params/lab.yaml")
    schema = data.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise SchemaTooNew(
            "the params file was written for a newer hybridlab",
            where=str(path),
            why=f"schema {schema}, this one reads up to {SCHEMA}",
            next_move="upgrade hybridlab",
        )
    return data


def set_path(data: dict[str, Json], key: str, value: Json) -> None:
    """Set ``a.b`` in nested mappings; lists by index or, for nodes, by name (``nodes.arm-1.memory_gb``)."""
    target: Json = data
    *parents, last = key.split(".")
    for part in parents:
        if isinstance(target, list):
            target = next((item for item in target if item.get("name") == part), None)
        else:
            target = target.setdefault(part, {}) if isinstance(target, dict) else None
        if target is None or not isinstance(target, dict | list):
            raise ParamsError(f"unknown parameter {key}", next_move=_hint(key))
    if not isinstance(target, dict):
        raise ParamsError(f"unknown parameter {key}", next_move=_hint(key))
    target[last] = value


def _hint(key: str) -> str:
    known = [f.path for f in fields_of(Params)]
    tails = {k.rsplit(".", 1)[-1]: k for k in known}
    sections = {path.rsplit(".", 1)[0] for path in known if "." in path}
    near = difflib.get_close_matches(key, [*known, *sorted(sections)], n=1, cutoff=0.6)
    near = near or [tails[m] for m in difflib.get_close_matches(key.rsplit(".", 1)[-1], list(tails), n=1, cutoff=0.7)]
    return f"did you mean {near[0]}?" if near else "see docs/params.md for all parameters"


def check_params(data: Mapping[str, Json], *, where: str = "") -> Params:
    """Validate plain data against the schema. Raises ParamsError listing every problem, each with its key."""
    try:
        return Params.model_validate(data)
    except ValidationError as error:
        problems, hints = [], []
        for item in error.errors():
            key = ".".join(str(part) for part in item["loc"])
            if item["type"] == "extra_forbidden":
                problems.append(f"unknown parameter {key}")
                hints.append(_hint(key))
            elif item["type"] == "missing":
                problems.append(f"{key} is missing")
            else:
                text = item["msg"].removeprefix("Value error, ")
                got = "" if item["type"] == "value_error" else f", not {item['input']!r}"
                problems.append(f"{key}: {text[0].lower()}{text[1:]}{got}" if key else text)
        raise ParamsError(
            "; ".join(problems), where=where, next_move=hints[0] if hints else "correct the params, then run again"
        ) from None


class FieldInfo(BaseModel):
    """One scalar parameter, for forms, help and tables. ``choices`` is empty where any value of the type will do."""

    path: str
    type: str
    default: Json
    choices: tuple[str, ...] = ()
    description: str = ""
    required: bool = False


def fields_of(model: type[BaseModel], prefix: str = "") -> Iterator[FieldInfo]:
    """Every parameter of a section (or of the whole schema) by dotted path; lists and mappings as one entry."""
    for name, info in model.model_fields.items():
        shown = info.alias or name
        path = f"{prefix}{shown}"
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from fields_of(kind, path + ".")
            continue
        optional = type(None) in get_args(kind)
        inner = next((a for a in get_args(kind) if a is not type(None)), kind) if optional else kind
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from fields_of(inner, path + ".")
            continue
        choices = tuple(str(a) for a in get_args(inner)) if str(inner).startswith("typing.Literal") else ()
        text = getattr(inner, "__name__", str(inner)) if not choices else "choice"
        default = None if info.is_required() else info.get_default(call_default_factory=True)
        yield FieldInfo(
            path=path,
            type=f"{text} or empty" if optional else text,
            default=default,
            choices=choices,
            description=info.description or "",
            required=info.is_required(),
        )


def parse_override(text: str) -> tuple[str, Json]:
    """``key=value`` from the command line; the value is read as YAML: ``3`` is a number, ``true`` a truth value."""
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise ParamsError(f"not a setting: {text!r}", next_move="write --set section.name=value")
    try:
        return key.strip(), YAML(typ="safe").load(value) if value else None
    except YAMLError as error:
        raise ParamsError(f"the value of {key} is not YAML", why=str(error)) from error


def save_params(path: Path, changes: Mapping[str, Json]) -> str:
    """Write changes back into a params file, keeping its comments and order; returns a unified diff.

    The result is checked first: a change that would make the file invalid raises ParamsError and writes nothing.
    """
    before = path.read_text(encoding="utf-8")
    yaml = _yaml(before)
    data = yaml.load(before)
    for key, value in changes.items():
        set_path(data, key, value)
    out = io.StringIO()
    yaml.dump(data, out)
    after = out.getvalue()
    check_params(YAML(typ="safe").load(after), where=str(path))
    path.write_text(after, encoding="utf-8")
    return "".join(
        difflib.unified_diff(before.splitlines(True), after.splitlines(True), str(path), f"{path} (saved)", n=1)
    )
