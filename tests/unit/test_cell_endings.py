"""How every cell ended, told three times: in the notebook's metadata, in the ledger and in the report, always the same.

And a run that is killed, which can't tell: its report says what is known, and nothing of it stays behind.
"""

from __future__ import annotations

import fcntl
import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from toy_runbooks import LEDGER, runbook, states, toy_root

from hybridlab.ledger import Ledger, write_atomic
from hybridlab.runner.batch import run_batch
from hybridlab.runner.cell_rows import ended_cells, true_states
from hybridlab.runner.leftovers import OwnFolder
from hybridlab.runner.report import write_report
from hybridlab.runner.status import lock_holder
from hybridlab.wait import SystemClock, wait_until

BOOK = "030-bootstrap-k3s"
BUSY = "(state.parent / 'busy').touch()\nimport time\ntime.sleep(60)"
FORM = ("skip-execution", "form()")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYBRIDLAB_HOME", raising=False)
    return toy_root(tmp_path)


def soon(look: Callable[[], Any], what: str) -> Any:
    return wait_until(look, bool, what=what, deadline_s=60, clock=SystemClock(), interval_s=0.05, interval_max_s=0.2)


def in_ledger(root: Path, run: str) -> list[str]:
    ended = ended_cells(Ledger(root / "state/toybox/ledger.jsonl", run="").cells(run=run), BOOK)
    assert list(ended) == sorted(ended), "told in their order, each once"
    return list(ended.values())


def on_page(folder: Path) -> list[str]:
    text = (folder / "report" / f"{BOOK}.html").read_text(encoding="utf-8")
    return [word.replace("-", " ") for word in re.findall(r'<div class="cell ([a-z-]+)">', text)]


def told(root: Path) -> list[str]:
    """The states of the one run's cells, after all three that tell of them were found to agree."""
    (folder,) = (root / "runs").iterdir()
    saved = states(folder / f"{BOOK}.ipynb")
    assert in_ledger(root, folder.name) == saved
    assert on_page(folder) == saved
    return saved


@contextmanager
def running(root: Path, **env: str) -> Iterator[subprocess.Popen[str]]:
    """``hybridlab run 030`` in a process of its own, from when its last cell is busy."""
    words = [sys.executable, "-m", "hybridlab.cli", "run", "030", "040", "--params", "params/toy.yaml"]
    with subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=root, text=True, env={**os.environ, **env}
    ) as process:
        try:
            soon(lambda: (root / "state/busy").exists() or process.poll() is not None, "the cell to be busy")
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("code", "limits", "last"),
    [
        ("print('well')", {}, "done"),
        ("1/0", {}, "failed"),
        ("def broken(:", {}, "failed"),
        ("import sys\nsys.exit(0)", {}, "failed"),
        ("from hybridlab.errors import DeadlineExceeded\nraise DeadlineExceeded('late')", {}, "failed"),
        ("import time\ntime.sleep(60)", {"cell_timeout_s": 1.0}, "timed out"),
        ("import time\ntime.sleep(60)", {"deadline_s": 6.0}, "timed out"),
        ("os._exit(9)", {}, "kernel lost"),
    ],
)
def test_notebook_ledger_and_report_agree(root: Path, code: str, limits: dict[str, float], last: str) -> None:
    runbook(root, BOOK, LEDGER, FORM, "## 5. Apply", code, "print('after')")
    quiet = Console(file=io.StringIO())
    run_batch([root / f"runbooks/{BOOK}.ipynb"], "params/toy.yaml", root=root, console=quiet, errors=quiet, **limits)  # type: ignore[arg-type]
    after = "done" if last == "done" else "not run"
    assert told(root) == ["done", "done", "done", "skipped", last, after]
    rows = Ledger(root / "state/toybox/ledger.jsonl", run="").cells(run=next((root / "runs").iterdir()).name)
    row = rows[4]
    assert (row.stage, row.step, row.detail["runbook"], row.detail["heading"]) == ("bootstrap", "", BOOK, "5. Apply")
    assert (row.detail["cell"], row.detail["of"]) == (5, 6)
    assert ("error" in row.detail) == (last != "done")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_they_agree_after_a_signal(root: Path, signum: signal.Signals) -> None:
    runbook(root, BOOK, LEDGER, BUSY, "print('after')")
    runbook(root, "040-benchmark-nodes")
    with running(root) as process:
        process.send_signal(signum)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 6, said
    assert told(root) == ["done", "done", "done", "interrupted", "not run"]


def kin(root: Path) -> list[int]:
    """The processes that a run under this root started, as their environment tells."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            names = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if f"HYBRIDLAB_HOME={root}".encode() in names:
            found.append(int(path.parent.name))
    return found


def test_a_killed_run_is_told_as_far_as_it_is_known_and_leaves_nothing(root: Path, tmp_path: Path) -> None:
    temporary = tmp_path / "t"
    temporary.mkdir()
    runbook(root, BOOK, LEDGER, FORM, "print('before')", BUSY, "print('after')")
    runbook(root, "040-benchmark-nodes")
    with running(root, TMPDIR=str(temporary)) as process:
        if sys.platform == "linux":
            assert len(kin(root)) == 2, "this runbook's kernel, and the next one's that boots already"
        process.kill()
        process.wait(10)
        (folder,) = (root / "runs").iterdir()
        # the ledger has what ended, and no word about what it can't know
        assert in_ledger(root, folder.name) == ["done", "done", "done", "skipped", "done"]
        write_report(folder, root=root)
        assert on_page(folder) == ["done", "done", "done", "skipped", "done", "interrupted", "not run"]
        page = (folder / f"report/{BOOK}.html").read_text(encoding="utf-8")
        assert "the run was killed in this cell" in page
        assert "4 done, 1 interrupted, 1 skipped, 1 not run" in page
        assert 'class="state running"' not in page + (folder / "report/index.html").read_text(encoding="utf-8")
    # processes end by themselves, the lock is free, and no room is held for a run that is no more
    soon(lambda: not kin(root), "the kernels to end with their run")
    assert lock_holder(root / "state/toybox/lock") == ""
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]
    half = root / "state/toybox/secrets/.token.0a1b2c3d"  # as if it had been killed while it wrote
    write_atomic(half, b"half of a secret")
    os.utime(half, (0, 0))
    fresh = half.with_name(".token.00000000")
    write_atomic(fresh, b"another process is writing this now")
    # the folder of the sockets is what the next run takes away
    assert len(list(temporary.iterdir())) == 1
    runbook(root, BOOK, "print('again')")
    words = [sys.executable, "-m", "hybridlab.cli", "run", "030", "--params", "params/toy.yaml"]
    done = subprocess.run(words, cwd=root, env={**os.environ, "TMPDIR": str(temporary)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list(temporary.iterdir()) == []
    assert not half.exists()
    assert fresh.exists()
    assert not [p for p in (root / "runs").rglob(".*") if p.is_file()]


def test_a_live_runs_folder_is_never_swept(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    own = OwnFolder()
    foreign = tmp_path / "hl-somebody-elses"  # no lock in it: not made by a run
    foreign.mkdir()
    runbook(root, BOOK)
    quiet = Console(file=io.StringIO())
    run_batch([root / f"runbooks/{BOOK}.ipynb"], "params/toy.yaml", root=root, console=quiet, errors=quiet)
    assert own.path.exists()
    assert foreign.exists()
    with (own.path / "lock").open() as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    own.remove()
    assert not own.path.exists()


class Cell(dict[str, Any]):
    """As much of a notebook's cell as its state needs."""

    source = "x"

    def __init__(self, state: str, tag: str = "") -> None:
        self.metadata = {"hybridlab": {"state": state}, "tags": [tag]}


@pytest.mark.parametrize(
    ("saved", "ended", "concluded", "true"),
    [
        # the notebook on disk is a moment older than the ledger
        ("done,running,not run", {1: "done", 2: "done"}, False, "done,done,interrupted"),
        ("done,not run,not run", {1: "done"}, False, "done,interrupted,not run"),
        ("done,done", {1: "done", 2: "done"}, False, "done,done"),
        # a form is never run: it was not there that the run was cut off
        ("done,form,not run", {1: "done"}, False, "done,not run,interrupted"),
        # recorded before there were rows of cells: the notebook is all there is
        ("done,running,not run", {}, False, "done,interrupted,not run"),
        ("done,failed,not run", {}, True, "done,failed,not run"),
        # the disk was full at the last save
        ("done,running,not run", {1: "done", 2: "failed", 3: "not run"}, True, "done,failed,not run"),
    ],
)
def test_what_the_ledger_says_counts(saved: str, ended: dict[int, Any], concluded: bool, true: str) -> None:
    cells = [Cell("not run", "skip-execution") if s == "form" else Cell(s) for s in saved.split(",")]
    assert true_states(cells, ended, alive=False, concluded=concluded) == true.split(",")


def test_a_run_that_goes_on_is_shown_as_it_is() -> None:
    cells = [Cell("running"), Cell("not run"), Cell("not run")]
    assert true_states(cells, {1: "done"}, alive=True, concluded=False) == ["done", "not run", "not run"]
