"""The params files as an editor sees them: each names the schema beside it, and the schema is the one that counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from params_page import SCHEMA
from ruamel.yaml import YAML

from hybridlab.params import read_params
from hybridlab.runner.params_command import MODELINE, schema_text

FILES = sorted(SCHEMA.parent.glob("*.yaml"))


def schema_of(path: Path) -> Path:
    """The schema that an editor loads for a file: the first comment that names one, relative to the file."""
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith(MODELINE), f"{path.name} begins with {first!r}"
    return path.parent / first.removeprefix(MODELINE)


def complaints(schema: Path, data: Any) -> list[str]:
    validator = Draft202012Validator(json.loads(schema.read_text(encoding="utf-8")))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(data)]


def test_the_schema_in_the_repository_is_of_now() -> None:
    assert SCHEMA.read_text(encoding="utf-8") == schema_text(), "python tests/unit/params_page.py writes it anew"
    Draft202012Validator.check_schema(json.loads(schema_text()))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_an_editor_has_nothing_to_say_about_a_file_that_comes_with_hybridlab(path: Path) -> None:
    assert complaints(schema_of(path), YAML(typ="safe").load(path.read_text(encoding="utf-8"))) == []
    assert read_params(path).cluster


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("storage", {"replica": 3}, "'replica' was unexpected"),
        ("storage", {"replicas": 9}, "greater than the maximum"),
        ("storage", {"replicas": "three"}, "is not of type 'integer'"),
        ("site", "moon", "is not one of"),
        ("cluster", "Not a name", "does not match"),
    ],
)
def test_an_editor_underlines_what_a_run_would_refuse(key: str, value: Any, said: str) -> None:
    (lab,) = (path for path in FILES if path.name == "lab.yaml")
    data = YAML(typ="safe").load(lab.read_text(encoding="utf-8"))
    found = complaints(schema_of(lab), data | {key: value})
    assert len(found) == 1
    assert said in found[0]


def test_a_copy_in_a_folder_of_its_own_keeps_its_schema(tmp_path: Path) -> None:
    """As a user makes a home: params/ is copied as a whole."""
    for path in SCHEMA.parent.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    assert schema_of(tmp_path / "byo.yaml").is_file()
