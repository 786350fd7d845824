"""Small notebooks and a small root for the tests of the runner: site byo, so that no lab is needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

PARAMS = """\
schema: 1
cluster: toybox
site: byo
nodes:
  - {name: arm-1, role: server, arch: arm64, ocpus: 2, memory_gb: 12, address: 10.0.0.1}
  - {name: amd-1, role: agent, arch: amd64, ocpus: 1, memory_gb: 1, address: 10.0.0.2}
"""
PARAMETERS = "params_file: str = 'params/lab.yaml'  # the cluster to work on"
LEDGER = (
    "import os\nfrom pathlib import Path\nfrom hybridlab.ledger import Ledger, SecretStore\n"
    "state = Path(os.environ['HYBRIDLAB_HOME']) / 'state/toybox'\n"
    "ledger = Ledger(state / 'ledger.jsonl', run=os.environ['HYBRIDLAB_RUN'])"
)


def notebook(path: Path, *cells: str | tuple[str, str], kernel: str = "python3") -> Path:
    """Write a notebook: a string is code, Markdown when it starts with ``#``; a pair is a tag and code."""
    made = []
    for cell in cells:
        tag, source = cell if isinstance(cell, tuple) else ("", cell)
        if source.startswith("# ") or source.startswith("## "):
            made.append(new_markdown_cell(source))
        else:
            made.append(new_code_cell(source, metadata={"tags": [tag]} if tag else {}))
    spec = {"name": kernel, "display_name": kernel, "language": "python"}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=made, metadata={"kernelspec": spec}), path)
    return path


def runbook(root: Path, name: str, *cells: str | tuple[str, str]) -> Path:
    return notebook(root / "runbooks" / f"{name}.ipynb", f"# The {name}", ("parameters", PARAMETERS), *cells)


def toy_root(folder: Path) -> Path:
    (folder / "params").mkdir(parents=True)
    (folder / "params" / "toy.yaml").write_text(PARAMS, encoding="utf-8")
    return folder


def states(path: Path) -> list[str]:
    """The state of every code cell in a saved notebook."""
    return [c.metadata["hybridlab"]["state"] for c in read(path).cells if c.cell_type == "code"]


def texts(path: Path) -> list[str]:
    """What every code cell printed."""
    cells: Sequence[Any] = read(path).cells
    return ["".join(o.get("text", "") for o in c.outputs) for c in cells if c.cell_type == "code"]


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)
