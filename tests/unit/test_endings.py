"""Endings that need a real machine to show: a disk that is really full, and secrets in every corner of a notebook."""

from __future__ import annotations

import io
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from toy_runbooks import LEDGER, read, runbook, states, texts, toy_root

from hybridlab.cluster import Cluster
from hybridlab.ledger import Ledger
from hybridlab.params import read_params
from hybridlab.runner.batch import RunResult, run_batch
from hybridlab.runner.cell_rows import ended_cells
from hybridlab.runner.outcome import load_record

SECRET = "tr0ub4dor-and-3"


def run(root: Path, *names: str) -> tuple[RunResult, str]:
    said = io.StringIO()
    books = [root / "runbooks" / f"{name}.ipynb" for name in names]
    screen = Console(file=said, width=200)
    return run_batch(books, "params/toy.yaml", root=root, console=screen, errors=screen), said.getvalue()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MB, where one may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    words = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=False)


def test_a_disk_that_is_really_full(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = toy_root(small_disk / "root")
    monkeypatch.chdir(root)
    fill = (
        "import os\nwith open(os.path.join(os.environ['HYBRIDLAB_HOME'], 'filler'), 'wb') as file:\n"
        "    try:\n        while True:\n            _ = file.write(bytes(100_000))\n            file.flush()\n"
        "    except OSError:\n        pass\nprint('full' * 100_000)"
    )
    runbook(root, "010-plan-cluster", "print('before')", fill, "print('after')")
    runbook(root, "020-provision-vms")
    result, said = run(root, "010-plan-cluster", "020-provision-vms")
    assert result.exit_code == 4
    assert "No space left" in said
    assert "Traceback" not in said
    record = load_record(result.folder)  # the spare bytes were for this
    assert (record.state, record.exit_code) == ("failed", 4)
    assert [book.state for book in record.runbooks] == ["failed", "not run"]
    notebook = result.folder / "010-plan-cluster.ipynb"
    found = states(notebook)  # saving is spaced out in time: the full disk may be met after the last cell only
    assert found[:4] == ["done"] * 4
    assert found[4] in ("not run", "done")
    assert texts(notebook)[2] == "before\n", "the outputs so far are saved"
    ended = ended_cells(Ledger(root / "state/toybox/ledger.jsonl", run="").cells(run=record.run), "010-plan-cluster")
    assert list(ended.values()) == found, "the ledger says the same of each cell"
    (root / "filler").unlink()
    runbook(root, "010-plan-cluster", "print('again')")
    assert run(root, "010-plan-cluster")[0].exit_code == 0


def test_a_secret_is_in_no_corner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = toy_root(tmp_path)
    monkeypatch.chdir(root)
    born = (
        f"SecretStore(state / 'secrets').put('token', '{SECRET}')\n"
        "import base64, logging, ipywidgets\nfrom IPython.display import HTML, display\n"
        f"secret = '{SECRET}'\nencoded = base64.b64encode(secret.encode()).decode()\n"
        "display(ipywidgets.Text(value=secret), ipywidgets.HTML(f'<b>{encoded}</b>'))\n"
        "display(HTML(f'<p>{secret}</p>'), metadata={'note': secret})\n"
        "display({'application/json': {secret: [encoded]}}, raw=True)\n"
        "import sys\nprint(secret, file=sys.stderr)\n"
        "from hybridlab.cluster import open_cluster\ncluster = open_cluster(params_file)\n"
        "_ = cluster.ledger.add('layout', 'a', 'done', detail={'plain': secret, 'encoded': encoded})\n"
        "raise ValueError(f'refused: {secret} {encoded}')"
    )
    runbook(root, "010-plan-cluster", LEDGER, born)
    result, said = run(root, "010-plan-cluster")
    assert result.exit_code == 4
    notebook = read(result.folder / "010-plan-cluster.ipynb")
    assert "widgets" in notebook.metadata, "the state of the widgets was kept"
    encoded = "dHIwdWI0ZG9yLWFuZC0z"
    for path in [*result.folder.rglob("*"), root / "state/toybox/ledger.jsonl"]:
        if path.is_file() and path.name != "plotly.min.js":
            text = path.read_text(encoding="utf-8", errors="replace")
            assert SECRET not in text, path
            assert encoded not in text, path
    assert SECRET not in said
    assert "***" in said


def test_the_ledger_masks_what_a_stage_tells_it(tmp_path: Path) -> None:
    root = toy_root(tmp_path)
    path = root / "params/toy.yaml"
    cluster = Cluster(read_params(path), root=root, params_file=path)
    cluster.secrets.put("token", SECRET)
    error = f"https://x/?t={SECRET} dHIwdWI0ZG9yLWFuZC0z"
    cluster.ledger.add("bootstrap", "install", "failed", detail={"error": error})
    row = Ledger(cluster.ledger.path, run="").rows()[0]
    assert row.detail["error"] == "https://x/?t=*** ***"
