"""Every way a notebook can end, and that its record says so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import papermill
import pytest
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from toy_runbooks import notebook, read, states, texts

from hybridlab.runner.in_kernel import send_in_pieces
from hybridlab.runner.record import DISPLAY_LIMIT, OUTPUT_LIMIT, Record
from hybridlab.runner.redact import Redactor


def execute(source: Path, **kwargs: Any) -> Path:
    out = source.with_name("out.ipynb")
    papermill.execute_notebook(str(source), str(out), engine_name="hybridlab", progress_bar=False, **kwargs)
    return out


def test_a_good_notebook_is_done_and_its_form_skipped(tmp_path: Path) -> None:
    source = notebook(tmp_path / "n.ipynb", "# Title", "print('a')", ("skip-execution", "1/0"), "print('b')")
    out = execute(source)
    assert states(out) == ["done", "skipped", "done"]
    assert texts(out) == ["a\n", "", "b\n"]
    assert read(out).metadata.hybridlab["state"] == "done"
    assert [c.metadata.papermill["status"] for c in read(out).cells] == [
        "completed",
        "completed",
        "skipped",
        "completed",
    ]


def test_an_error_fails_its_cell_and_tells_its_parts(tmp_path: Path) -> None:
    raising = (
        "from hybridlab.errors import StepFailed\n"
        "error = StepFailed('it broke', where='arm-1', why='no route', next_move='plug it in')\n"
        "error.exit_code = 5\nraise error"
    )
    source = notebook(tmp_path / "n.ipynb", "print('a')", "## 5. Apply", raising, "print('never')")
    records: list[Record] = []
    with pytest.raises(papermill.exceptions.PapermillExecutionError):
        execute(source, records=records)
    assert states(source.with_name("out.ipynb")) == ["done", "failed", "not run"]
    problem = records[0].problem
    assert problem is not None
    assert (problem.error, problem.what, problem.where) == ("StepFailed", "it broke", "arm-1")
    assert (problem.why, problem.next_move, problem.exit_code) == ("no route", "plug it in", 5)
    assert records[0].stopped_at == "5. Apply"


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("import sys\nsys.exit(3)", "the notebook called sys.exit(3)"),
        ("input('sure? ')", "the notebook asked for input"),
        ("def broken(:", "SyntaxError"),
        ("{}['x']", "KeyError: 'x'"),
    ],
)
def test_other_ways_to_fail(tmp_path: Path, code: str, what: str) -> None:
    source = notebook(tmp_path / "n.ipynb", code, "print('never')")
    records: list[Record] = []
    with pytest.raises(papermill.exceptions.PapermillExecutionError):
        execute(source, records=records)
    assert states(source.with_name("out.ipynb")) == ["failed", "not run"]
    assert records[0].problem is not None
    assert what in records[0].problem.what


@pytest.mark.parametrize("limit", [{"execution_timeout": 1}, {"deadline_s": 2.0}])
def test_a_time_out_keeps_the_output_so_far(tmp_path: Path, limit: dict[str, float]) -> None:
    source = notebook(
        tmp_path / "n.ipynb", "1", "import time\nprint('so far', flush=True)\ntime.sleep(60)", "print('never')"
    )
    with pytest.raises(CellTimeoutError):
        execute(source, **limit)
    out = source.with_name("out.ipynb")
    assert states(out) == ["done", "timed out", "not run"]
    assert "so far" in texts(out)[1]
    assert read(out).metadata.hybridlab["problem"]["exit_code"] == 5


def test_a_dead_kernel_is_told_from_a_failure(tmp_path: Path) -> None:
    source = notebook(tmp_path / "n.ipynb", "print('a')", "import os\nos._exit(9)", "print('never')")
    with pytest.raises(DeadKernelError):
        execute(source)
    assert states(source.with_name("out.ipynb")) == ["done", "kernel lost", "not run"]


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 1), (signal.SIGTERM, 128 + signal.SIGTERM)])
def test_a_signal_interrupts_and_saves(tmp_path: Path, signum: signal.Signals, status: int) -> None:
    started = tmp_path / "started"
    sleeping = f"open({str(started)!r}, 'w').close()\nprint('so far', flush=True)\nimport time\ntime.sleep(60)"
    source = notebook(tmp_path / "n.ipynb", "print('a')", sleeping, "print('never')")
    out = tmp_path / "out.ipynb"
    words = [sys.executable, "-m", "papermill", "--engine", "hybridlab", "--no-progress-bar", str(source), str(out)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path)
    ends = time.monotonic() + 30
    while not started.exists() and process.poll() is None and time.monotonic() < ends:
        time.sleep(0.05)
    process.send_signal(signum)
    assert process.wait(30) == status
    assert states(out) == ["done", "interrupted", "not run"]
    assert "so far" in texts(out)[1]


def test_a_flood_of_output_is_cut_and_the_notebook_says_so(tmp_path: Path) -> None:
    source = notebook(tmp_path / "n.ipynb", "for _ in range(20):\n    print('x' * 1_000_000)", "print('after')")
    out = execute(source)
    assert states(out) == ["done", "done"]
    flood = texts(out)[0]
    assert OUTPUT_LIMIT <= len(flood) < OUTPUT_LIMIT + 200
    assert "characters of output were dropped" in flood
    assert texts(out)[1] == "after\n"


def test_figures_tables_and_tracebacks_are_limited_too(tmp_path: Path) -> None:
    tables = "from IPython.display import HTML, display\nfor _ in range(9):\n    display(HTML('x' * 2_000_000))"
    source = notebook(tmp_path / "n.ipynb", tables, "raise ValueError('y' * 20_000_000)")
    with pytest.raises(papermill.exceptions.PapermillExecutionError):
        execute(source)
    out = source.with_name("out.ipynb")
    assert states(out) == ["done", "failed"]
    shown, failed = (c.outputs for c in read(out).cells if c.cell_type == "code")
    kept = [o for o in shown if o.output_type == "display_data"]
    assert 0 < len(kept) < 9
    assert all(o.data["text/html"] == "x" * 2_000_000 for o in kept), "whole or not at all"
    assert "characters of output were dropped" in shown[-1].text
    error = next(o for o in failed if o.output_type == "error")
    assert error.ename == "ValueError"
    assert error.evalue.startswith("yyy")
    assert out.stat().st_size < DISPLAY_LIMIT + 1_000_000, "nor is it in the metadata"


def test_a_kernel_sends_a_flood_in_pieces() -> None:
    class Stream:
        def _flush_buffers(self) -> Iterator[tuple[str, str]]:
            yield from [("first", "abcdefg"), ("second", "hij"), ("third", "")]

    stream = Stream()
    send_in_pieces(stream, piece=3)
    assert list(stream._flush_buffers()) == [
        ("first", "abc"),
        ("first", "def"),
        ("first", "g"),
        ("second", "hij"),
    ]


def test_a_secret_born_in_the_cell_never_reaches_the_file(tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    born = (
        f"from hybridlab.ledger import SecretStore\nfrom pathlib import Path\nimport sys, base64\n"
        f"SecretStore(Path({str(secrets)!r})).put('token', 'K10tr0ub4dor')\n"
        "sys.stdout.write('K10tr0'); sys.stdout.flush(); print('ub4dor')\n"
        "print(base64.b64encode(b'user:K10tr0ub4dor').decode())\n"
        "raise ValueError('K10tr0ub4dor')"
    )
    source = notebook(tmp_path / "n.ipynb", "print('K10tr0ub4dor')", born)
    with pytest.raises(papermill.exceptions.PapermillExecutionError):
        execute(source, redactor=Redactor([secrets]))
    saved = (tmp_path / "out.ipynb").read_text(encoding="utf-8")
    # the source of a cell is the author's own and is masked too
    assert "K10tr0ub4dor" not in saved
    assert "***" in saved


def test_a_save_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = notebook(tmp_path / "n.ipynb", "print('a')", "print('b')")
    out = execute(source)
    before = out.read_bytes()
    seen: list[bytes] = []
    real = os.replace

    def watched(src: Any, dst: Any, **kwargs: Any) -> None:
        seen.append(Path(dst).read_bytes())
        real(src, dst, **kwargs)

    monkeypatch.setattr(Path, "replace", lambda self, target: watched(self, target))
    execute(source)
    assert seen, "the notebook was not saved by replacing it"
    assert seen[0] == before


def test_a_full_disk_fails_the_run_and_keeps_what_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = notebook(tmp_path / "n.ipynb", "print('a')", "print('b')", "print('c')")
    records: list[Record] = []
    saves = 0
    real = papermill.engines.NotebookExecutionManager.save

    def full(self: Any, **kwargs: Any) -> None:
        nonlocal saves
        saves += 1
        if saves > 1:
            raise OSError(28, "No space left on device")
        real(self, **kwargs)

    monkeypatch.setattr(papermill.engines.NotebookExecutionManager, "save", full)
    with pytest.raises(OSError, match="No space left"):
        execute(source, records=records)
    assert records[0].state == "failed"
    assert "not run" in states(source.with_name("out.ipynb"))
