"""Every runbook keeps the conventions that make notebooks readable, runnable by papermill and reviewable."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import papermill
import pytest

from hybridlab.cluster import STAGES, load_stage
from hybridlab.params import FieldInfo, Params, fields_of

ROOT = Path(__file__).resolve().parents[2]
RUNBOOKS = sorted((ROOT / "runbooks").glob("*.ipynb"))
STAGE_OF = {book: stage for stage, book in STAGES.items()}
NAMES = [path.stem for path in RUNBOOKS]
SCHEMA_TYPES = {"str": "str", "choice": "str", "int": "int", "float": "float", "bool": "bool"}
HOME_FOLDERS = re.compile(r"/(home|Users|root|mnt|tmp|var/folders)/|[A-Z]:\\Users")

each = pytest.mark.parametrize("path", RUNBOOKS, ids=NAMES)


def cells(path: Path, kind: str = "") -> list[Any]:
    return [c for c in nbformat.read(path, as_version=4).cells if not kind or c.cell_type == kind]


def tagged(path: Path, tag: str) -> list[Any]:
    return [c for c in cells(path) if tag in c.metadata.get("tags", [])]


def text_of(source: str) -> list[str]:
    return re.findall(r"\w+", source)


def overrides(path: Path) -> dict[str, FieldInfo]:
    """What a runbook may override: the flat parameters of its stage's section, by name."""
    section = STAGE_OF[path.stem] + "."
    return {f.path.removeprefix(section): f for f in fields_of(Params) if f.path.startswith(section)}


def test_every_stage_has_its_runbook_and_no_other_is_there() -> None:
    assert sorted(STAGES.values()) == NAMES


@each
def test_shape(path: Path) -> None:
    notebook, code, prose = nbformat.read(path, as_version=4), cells(path, "code"), cells(path, "markdown")
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor >= 5) == (4, True)
    assert notebook.metadata.kernelspec.name == "python3"
    assert 15 <= len(notebook.cells) <= 40
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    lengths = [len(cell.source.splitlines()) for cell in code]
    assert max(lengths) <= 15
    assert sum(length <= 5 for length in lengths) > len(lengths) / 2, "most code cells have one to five lines"
    assert all(cell.source.strip() for cell in notebook.cells), "no empty cells"
    words = [sum(len(text_of(cell.source)) for cell in some) for some in (prose, code)]
    assert words[0] >= words[1], f"{words[0]} words of prose, {words[1]} of code"


@each
def test_prose_leads(path: Path) -> None:
    prose = cells(path, "markdown")
    lines = [line for cell in prose for line in cell.source.splitlines()]
    assert len([line for line in lines if re.match(r"#\s", line)]) == 1
    assert prose[0].source.startswith("# "), "the title comes first"
    assert cells(path)[0].cell_type == "markdown"
    head = "\n".join(cell.source for cell in prose[:3]).lower()
    for word in ("before", "cost", "undo"):
        assert word in head, f"the head says nothing about {word!r}"
    steps = [m for m in (re.match(r"##\s+(\d+)\.", line) for line in lines) if m]
    assert [int(m.group(1)) for m in steps] == list(range(1, len(steps) + 1)), "numbered H2s, without a gap"
    titles = [re.sub(r"##\s+\d+\.\s+", "", line).lower() for line in lines if re.match(r"##\s+\d+\.", line)]
    applies = bool(load_stage(STAGE_OF[path.stem]).ACTIONS)  # 010 changes nothing
    moves = ["choose"] * bool(overrides(path)) + ["look", "plan", "gate"] + ["apply"] * applies
    moves += ["verify", "hand over"]
    assert [title for title in titles if title in moves] == moves


@each
def test_no_logic_and_no_outputs(path: Path) -> None:
    for cell in cells(path, "code"):
        assert cell.outputs == []
        assert cell.execution_count is None
        tree = ast.parse(cell.source)
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, ast.While, ast.Try)
        assert not any(isinstance(node, kinds) for node in ast.walk(tree)), f"logic in a notebook: {cell.source}"
        imported = [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
        imported += [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
        assert set(imported) <= {"hybridlab"}, "a notebook needs nothing but hybridlab's own names"
    for cell in cells(path):
        assert not HOME_FOLDERS.search(cell.source), f"a path of somebody's machine: {cell.source}"
        assert str(ROOT) not in cell.source


@each
def test_parameters_are_literals_that_papermill_and_the_schema_know(path: Path) -> None:
    found = tagged(path, "parameters")
    assert len(found) == 1
    values: dict[str, Any] = {}
    for node in ast.parse(found[0].source).body:
        assert isinstance(node, ast.AnnAssign), "name: type = value  # help"
        assert isinstance(node.target, ast.Name)
        assert node.value is not None
        values[node.target.id] = ast.literal_eval(node.value)
    assert values.pop("params_file") == "params/lab.yaml"
    assert len(values) <= 8
    assert set(values.values()) == {None}, "None: as in the file"
    seen = papermill.inspect_notebook(str(path))
    assert set(seen) == {"params_file", *values}, "papermill's inspection sees them all"
    known = overrides(path)
    for name, info in seen.items():
        assert info["help"], f"{name} has no help"
        if name == "params_file":
            continue
        if name == "approve":  # not a choice of the schema: it opens the gate
            assert info["inferred_type_name"] == "str"
            continue
        assert name in known, f"{name} is no parameter of {STAGE_OF[path.stem]}"
        wanted = known[name].type.removesuffix(" or empty")
        # a checked string (a CIDR) is an Annotated[str, …] in the schema
        assert SCHEMA_TYPES.get(wanted, "str") == info["inferred_type_name"], name


@each
def test_parameters_reach_the_cluster(path: Path) -> None:
    """What the parameters cell declares is passed on: a name forgotten in the call would be ignored silently."""
    declared = set(papermill.inspect_notebook(str(path))) - {"params_file"}
    calls = [
        node
        for cell in cells(path, "code")
        for node in ast.walk(ast.parse(cell.source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open_cluster"
    ]
    assert len(calls) == 1
    keywords = {k.arg: k.value for k in calls[0].keywords}
    passed = {name for name, value in keywords.items() if isinstance(value, ast.Name) and value.id == name}
    assert passed == declared
    stage = keywords.get("stage")
    assert stage is None or (isinstance(stage, ast.Constant) and stage.value == STAGE_OF[path.stem])


@each
def test_forms_are_skipped_in_batch(path: Path) -> None:
    skipped = tagged(path, "skip-execution")
    forms = [cell for cell in cells(path, "code") if re.search(r"^\s*form\(", cell.source, re.M)]
    assert forms == skipped
    if overrides(path):
        assert forms, "choices have a form in JupyterLab"


def test_stripped_of_what_a_run_leaves() -> None:
    words = [sys.executable, "-m", "nbstripout", "--verify", "--keep-id", *map(str, RUNBOOKS)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
