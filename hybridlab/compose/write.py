"""Manifests → a folder: plain ordered YAML, one file per service, a report for people and one for programs."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from hybridlab.compose.model import Manifests, Obj
from hybridlab.compose.names import label
from hybridlab.compose.report import report
from hybridlab.errors import BadInput

MARKER = ".hybridlab-convert"

# Booleans and nulls, and what looks like a number, a time or a sexagesimal in YAML 1.1 (https://yaml.org/type/).
_NOT_TEXT = re.compile(
    r"(?i:y|yes|n|no|on|off|true|false|null|~|=|<<)|[-+]?[0-9][0-9_.:+-]*(?:[eE][-+]?[0-9_]+)?"
    r"|[-+]?0[xX][0-9a-fA-F_]+|[-+]?0[bBoO][0-9_]+|[-+]?\.(?:[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|(?i:inf|nan))"
    r"|[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:[Tt]|[ \t]+)[0-9:.]+.*"
)


def write(manifests: Manifests, folder: str | Path) -> tuple[Path, ...]:
    """Write everything into ``folder`` and return the files, in apply order first.

    Files of an earlier conversion there are replaced, a folder with other things in it is refused (BadInput).
    Files with Secrets are readable by the owner only.
    """
    folder = Path(folder)
    files = _files(manifests)
    try:
        _prepare(folder)
        for name, text in files.items():
            path = folder / name
            private = "\nkind: Secret\n" in text
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600 if private else 0o644)
            with os.fdopen(descriptor, "w", encoding="utf-8") as out:
                out.write(text)
        (folder / MARKER).write_text("\n".join(files) + "\n", encoding="utf-8")
    except OSError as error:
        raise BadInput("the folder cannot be written", where=str(folder), why=error.strerror or str(error)) from error
    return tuple(folder / name for name in files)


def _prepare(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / MARKER
    if marker.is_file():
        for name in marker.read_text(encoding="utf-8").splitlines():
            if name and "/" not in name:
                (folder / name).unlink(missing_ok=True)
    elif any(folder.iterdir()):
        raise BadInput(
            "the folder is not empty, and not from an earlier conversion",
            where=str(folder),
            next_move="name a new folder",
        )


def _files(manifests: Manifests) -> dict[str, str]:
    grouped: dict[str, list[Obj]] = {}
    for owner, obj in zip(manifests.owners, manifests.objects, strict=True):
        if obj["kind"] == "Namespace":
            name = "00-namespace.yaml"
        else:
            name = f"{label(owner)}.yaml" if owner else "01-shared.yaml"
        grouped.setdefault(name, []).append(obj)
    ordered = sorted(grouped, key=lambda name: (not name.startswith("0"), name if name.startswith("0") else ""))
    files = {name: to_yaml(*grouped[name]) for name in ordered}
    # nothing else may end in .yaml or .json: `kubectl apply -f FOLDER` takes all of those for objects
    files["REPORT.md"] = report(manifests)
    files["fidelity.jsonl"] = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in _fidelity(manifests))
    return files


def _fidelity(manifests: Manifests) -> Iterator[dict[str, Any]]:
    """One row for the project, then one for each placement, claim and key; ``row`` says which."""
    yield {"row": "project", "schema": 1, "project": manifests.project, "namespace": manifests.namespace}
    for name, p in manifests.placements.items():
        yield {
            "row": "placement",
            "service": name,
            "kind": p.kind,
            "reason": p.reason,
            "architectures": list(p.architectures),
            "warnings": list(p.warnings),
            "image": manifests.images[name],
            "commands": list(manifests.commands.get(name, ())),
        }
    yield from ({"row": "claim", **asdict(claim)} for claim in manifests.claims)
    yield from ({"row": "key", **asdict(finding)} for finding in manifests.fidelity)


def to_yaml(*objects: Obj) -> str:
    """YAML documents with keys in the given order, long texts as blocks, never an alias.

    Texts that YAML 1.1 reads as something else are quoted: kubectl reads ``yes`` as true and ``0755`` as 493.
    """
    written: str = yaml.dump_all(
        objects,
        Dumper=_Dumper,
        sort_keys=False,
        default_flow_style=False,
        allow_unicode=True,
        explicit_start=True,
        width=4096,
    )
    return written


# libyaml's emitter takes a tenth of the time of one in Python; wheels have it, a build from source may not.
class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: Any, value: str) -> Any:
    style = "|" if "\n" in value and _block_safe(value) else "'" if _NOT_TEXT.fullmatch(value) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def _block_safe(text: str) -> bool:
    """Block style keeps text exactly unless it has odd spaces or characters that YAML must escape."""
    lines = text.split("\n")
    return (
        all(line == line.rstrip() for line in lines)
        and not text.startswith((" ", "\n"))
        and all(character == "\n" or character.isprintable() for character in text)
    )
