"""``hybridlab params`` and ``hybridlab params-schema``: every parameter that can be set, from the one schema."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hybridlab.errors import BadInput
from hybridlab.ledger import write_atomic
from hybridlab.models import Json
from hybridlab.params import FieldInfo, Params, fields_of
from hybridlab.sections import Node

MODELINE = "# yaml-language-server: $schema="


@click.command("params")
@click.argument("sections", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def params(sections: tuple[str, ...], as_json: bool) -> None:
    """List every parameter of the SECTIONS (all without): what --set takes, its type, its default, what it is for.

    A node's own are set by its name: --set nodes.arm-1.memory_gb=12.
    """
    found = settable(sections)
    if as_json:
        click.echo(json.dumps([item.model_dump() for item in found], indent=1, ensure_ascii=False))
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for title in ("parameter", "type", "default", "what it is for"):
        table.add_column(title, overflow="fold")
    for item in found:
        kind = " | ".join(item.choices) or item.type
        default = "required" if item.required else _shown(item.default)
        table.add_row(Text(item.path, style="bold"), Text(kind), Text(default), Text(item.description, style="dim"))
    Console().print(table)


def settable(sections: Sequence[str] = ()) -> list[FieldInfo]:
    """Parameters by dotted path, nodes as ``nodes.NAME.…``. Raises BadInput for a section that there is not."""
    fields = [f for f in fields_of(Params) if f.path != "nodes"]
    fields += list(fields_of(Node, "nodes.NAME."))
    known = sorted({f.path.split(".")[0] for f in fields})
    wrong = next((name for name in sections if name not in known), None)
    if wrong is not None:
        raise BadInput(f"params have no section {wrong!r}", next_move=f"one of: {', '.join(known)}")
    return [f for f in fields if not sections or f.path.split(".")[0] in sections]


def _shown(value: Json) -> str:
    if value in (None, {}, []):
        return ""
    return value if isinstance(value, str) else json.dumps(value)


@click.command("params-schema")
@click.option("--output", "-o", type=click.Path(path_type=Path), help="Write it there, and say how an editor finds it.")
def params_schema(output: Path | None) -> None:
    """Print the JSON Schema of a params file, for editors."""
    if output is None:
        click.echo(schema_text(), nl=False)
        return
    write_atomic(output, schema_text().encode())
    click.echo(f"first line of a params file beside it: {MODELINE}{output.name}")


def schema_text() -> str:
    """The schema as it is written into a file."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


def schema() -> dict[str, Json]:
    """JSON Schema (2020-12) of a params file: types, ranges, choices; no unknown key."""
    made = Params.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "hybridlab params", **made}
