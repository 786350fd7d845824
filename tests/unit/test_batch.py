"""A run of toy runbooks: order, environment, exit statuses, and a record that is true however it ends."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console
from toy_runbooks import LEDGER, notebook, runbook, states, texts, toy_root

from hybridlab.errors import BadInput, Locked, ParamsError
from hybridlab.ledger import Ledger, locked
from hybridlab.runner.batch import RunResult, run_batch
from hybridlab.runner.outcome import load_record
from hybridlab.runner.preflight import find_runbooks, read_runbook


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("HYBRIDLAB_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    return toy_root(tmp_path)


def run(root: Path, **kwargs: object) -> tuple[RunResult, str]:
    """Run all runbooks of the root; the result and what stood on stderr."""
    said = io.StringIO()
    quiet = Console(file=io.StringIO())
    books = sorted((root / "runbooks").glob("*.ipynb"))
    result = run_batch(
        books, "params/toy.yaml", root=root, console=quiet, errors=Console(file=said, width=200), **kwargs  # type: ignore[arg-type]
    )  # fmt: skip
    return result, said.getvalue()


def test_a_whole_run(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(root / "summary.md"))
    show = "import os\nprint(params_file, *(os.environ[k] for k in sorted(os.environ) if k.startswith('HYBRIDLAB_')))"
    runbook(root, "020-provision-vms", show)
    planned = (
        "ledger.add('bootstrap', '', 'planned', detail={'hash': 'abc', 'create': 2, 'change': 0, 'delete': 1})\n"
        "checks = [{'name': 'nodes', 'ok': True, 'evidence': '3 Ready'}]\n"
        "_ = ledger.add('bootstrap', '', 'verified', detail={'steps': 3, 'checks': checks})"
    )
    runbook(root, "030-bootstrap-k3s", LEDGER, planned)
    result, said = run(root, approvals=["all"], sets=["storage.replicas=1", "migrate.namespace=x"])
    assert (result.exit_code, said) == (0, "")
    folder = result.folder
    assert states(folder / "020-provision-vms.ipynb") == ["done"] * 3
    printed = texts(folder / "020-provision-vms.ipynb")[-1]
    run_id = folder.name
    # approve, headless, home, lab dir, locked, run, set: in the order of their names
    expected = f"params/toy.yaml all 1 {root} {root}/.lab {run_id} {run_id} storage.replicas=1\nmigrate.namespace=x\n"
    assert printed == expected
    record = load_record(folder)
    assert [(b.name, b.state) for b in record.runbooks] == [
        ("020-provision-vms", "done"),
        ("030-bootstrap-k3s", "done"),
    ]
    assert (record.state, record.exit_code, record.approvals) == ("done", 0, ("all",))
    suites = ElementTree.parse(folder / "junit.xml").getroot()
    assert [(s.get("name"), s.get("tests"), s.get("failures")) for s in suites] == [
        ("020-provision-vms", "1", "0"),
        ("030-bootstrap-k3s", "2", "0"),
    ]
    assert "| 030-bootstrap-k3s | done |" in (root / "summary.md").read_text()
    assert "| 2 | 0 | 1 | 1 of 1 |" in (root / "summary.md").read_text()
    assert (folder / "report" / "index.html").exists()
    assert not list(folder.glob(".*")), "the room for last words was given back"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ("GateClosed('shut')", 3),
        ("StepFailed('broke')", 4),
        ("DeadlineExceeded('late')", 5),
        ("Interrupted('stopped')", 6),
        ("BadInput('no compose file', where='x.yaml', next_move='name one')", 2),
    ],
)
def test_the_error_decides_the_exit_status(root: Path, error: str, status: int) -> None:
    runbook(root, "010-plan-cluster", f"from hybridlab.errors import *\nraise {error}")
    runbook(root, "020-provision-vms")
    result, said = run(root)
    assert result.exit_code == status
    assert [b.state for b in result.record.runbooks][1] == "not run"
    assert error.split("'")[1] in said
    assert "Traceback" not in said
    assert str(result.folder / "010-plan-cluster.ipynb") in said
    assert said.count(error.split("'")[1]) == 1
    junit = ElementTree.parse(result.folder / "junit.xml").getroot()
    assert junit[1].get("skipped") == "1"


def test_strict_findings_fail_only_when_asked(root: Path) -> None:
    finding = "{'level': 'warning', 'subject': 'web', 'text': 'nobody has this image', 'strict': True}"
    runbook(
        root,
        "070-migrate-services",
        LEDGER,
        f"_ = ledger.add('migrate', '', 'planned', detail={{'hash': 'a', 'findings': [{finding}]}})",
    )
    assert run(root)[0].exit_code == 0
    result, said = run(root, strict=True)
    assert result.exit_code == 1
    assert "nobody has this image" in said


def test_the_deadline_stops_the_run(root: Path) -> None:
    runbook(root, "010-plan-cluster", "import time\ntime.sleep(60)")
    runbook(root, "020-provision-vms")
    began = time.monotonic()
    result, _ = run(root, deadline_s=3)
    assert result.exit_code == 5
    assert time.monotonic() - began < 30
    assert [b.state for b in result.record.runbooks] == ["timed out", "not run"]


def test_a_lost_kernel_leaves_its_step_unknown(root: Path) -> None:
    dying = "ledger.add('bootstrap', 'install:arm-1', 'started', effect='create', target='arm-1')\nos._exit(1)"
    runbook(root, "030-bootstrap-k3s", LEDGER, dying)
    result, _ = run(root)
    assert result.exit_code == 6
    rows = Ledger(root / "state/toybox/ledger.jsonl", run="x").rows(stage="bootstrap")
    assert [(r.step, r.event, r.target) for r in rows] == [
        ("install:arm-1", "started", "arm-1"),
        ("install:arm-1", "unknown", "arm-1"),
        ("", "failed", ""),
    ]
    assert rows[-1].detail["cells"] == {"done": 3, "kernel lost": 1}


def test_a_secret_left_in_the_run_folder_fails_the_run(root: Path) -> None:
    leak = (
        "SecretStore(state / 'secrets').put('token', 'hunter2hunter2')\n"
        "folder = Path(os.environ['HYBRIDLAB_HOME']) / 'runs' / os.environ['HYBRIDLAB_RUN']\n"
        "_ = (folder / 'dump.txt').write_text('hunter2hunter2')\nprint('hunter2hunter2')"
    )
    runbook(root, "010-plan-cluster", LEDGER, leak)
    result, said = run(root)
    assert result.exit_code == 4
    assert "dump.txt" in said
    assert "hunter2" not in said
    assert "hunter2" not in (result.folder / "010-plan-cluster.ipynb").read_text()


def test_ctrl_c_interrupts_the_kernel_and_says_so_everywhere(root: Path) -> None:
    working = (
        "from hybridlab.plan import Step\n"
        "_ = ledger.add('bootstrap', 'install:arm-1', 'started', effect='create', target='arm-1')\n"
        "(state.parent / 'busy').touch()\nimport time\ntime.sleep(60)"
    )
    runbook(root, "030-bootstrap-k3s", LEDGER, working)
    runbook(root, "040-benchmark-nodes")
    words = [sys.executable, "-m", "hybridlab.cli", "run", "030", "040", "--params", "params/toy.yaml"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=root, text=True) as process:
        ends = time.monotonic() + 60
        while not (root / "state/busy").exists() and process.poll() is None and time.monotonic() < ends:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 6
    assert "Traceback" not in said
    (folder,) = (root / "runs").iterdir()
    assert [b.state for b in load_record(folder).runbooks] == ["interrupted", "not run"]
    events = [(r.step, r.event) for r in Ledger(root / "state/toybox/ledger.jsonl", run="x").rows()]
    assert events[-2:] == [("install:arm-1", "interrupted"), ("", "interrupted")]
    assert states(folder / "030-bootstrap-k3s.ipynb") == ["done", "done", "done", "interrupted"]
    assert (folder / "report" / "index.html").exists()


def test_kernels_end_with_the_run(root: Path) -> None:
    forever = "import threading, time, os\nthreading.Thread(target=lambda: time.sleep(999)).start()\nprint(os.getpid())"
    runbook(root, "010-plan-cluster", forever)
    began = time.monotonic()
    result, _ = run(root)
    assert result.exit_code == 0
    assert time.monotonic() - began < 30
    pid = int(texts(result.folder / "010-plan-cluster.ipynb")[-1])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files as Linux shows them")
def test_runs_leave_no_open_files_behind(root: Path) -> None:
    runbook(root, "010-plan-cluster", "1")
    run(root)  # what is opened once for good
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(2):
        run(root)
    assert len(list(Path("/proc/self/fd").iterdir())) - before < 6


# -- bad input: found before anything starts ---------------------------------------------------------------------------
def nothing_changed(root: Path) -> bool:
    return not (root / "runs").exists() and not list((root / "state").glob("*/*"))


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda path: path.write_text("not json"), "not a notebook"),
        (lambda path: path.write_text("{}"), "not a notebook"),
        (lambda path: notebook(path, "1"), "no cell tagged `parameters`"),
        (lambda path: notebook(path, ("parameters", "params_fil = 1")), "does not set params_file"),
        (lambda path: notebook(path, ("parameters", "params_file = (")), "not Python"),
        (lambda path: notebook(path, ("parameters", "params_file = 1"), kernel="cobol"), "the kernel 'cobol'"),
    ],
)
def test_a_bad_runbook_is_refused(root: Path, make: object, what: str) -> None:
    runbook(root, "010-plan-cluster")
    path = root / "runbooks" / "020-provision-vms.ipynb"
    make(path)  # type: ignore[operator]
    with pytest.raises(BadInput, match=what):
        run(root)
    assert nothing_changed(root)


def test_bad_params_are_refused(root: Path) -> None:
    runbook(root, "010-plan-cluster")
    with pytest.raises(ParamsError, match=r"did you mean storage\.replicas"):
        run(root, sets=["storage.replicass=1"])
    runbook(root, "080-back-up")
    with pytest.raises(BadInput, match=r"compose\.yaml"):
        run(root, sets=["migrate.compose=compose.yaml"])
    assert nothing_changed(root)


def test_a_missing_compose_file_stops_only_who_reads_it(root: Path) -> None:
    runbook(root, "010-plan-cluster")
    runbook(root, "900-tear-down")
    assert run(root, sets=["migrate.compose=compose.yaml"])[0].exit_code == 0


def test_a_locked_cluster_is_refused(root: Path) -> None:
    runbook(root, "010-plan-cluster")
    with locked(root / "state/toybox/lock", run="other"), pytest.raises(Locked, match=f"process {os.getpid()}"):
        run(root)
    assert not list(root.glob("runs/*"))


def test_a_folder_that_is_a_file_is_refused(root: Path) -> None:
    runbook(root, "010-plan-cluster")
    (root / "runs").write_text("in the way")
    with pytest.raises(BadInput, match="can't be written"):
        run(root)
    assert not (root / "state").exists()


def test_a_garbled_kubeconfig_is_refused(root: Path) -> None:
    runbook(root, "010-plan-cluster")
    (root / "state/toybox").mkdir(parents=True)
    (root / "state/toybox/kubeconfig").write_text("garbage: [")
    with pytest.raises(BadInput, match="not a kubeconfig"):
        run(root)


def test_names_of_runbooks(root: Path) -> None:
    for name in ("010-plan-cluster", "020-provision-vms", "900-tear-down"):
        runbook(root, name)

    def names(*given: str) -> list[str]:
        return [path.stem for path in find_runbooks(root, given)]

    assert names() == ["010-plan-cluster", "020-provision-vms"]
    assert names("020", "layout", "900-tear-down") == ["020-provision-vms", "010-plan-cluster", "900-tear-down"]
    with pytest.raises(BadInput, match="did you mean 020-provision-vms"):
        names("020-provison-vms")
    assert read_runbook(find_runbooks(root, ["teardown"])[0]).stage == "teardown"


def test_a_run_off_the_main_thread_works(root: Path) -> None:
    runbook(root, "010-plan-cluster", "print(1)")
    results: list[RunResult] = []
    thread = threading.Thread(target=lambda: results.append(run(root)[0]))
    thread.start()
    thread.join(60)
    assert [r.exit_code for r in results] == [0]


def test_the_record_can_be_read_by_programs(root: Path) -> None:
    runbook(root, "010-plan-cluster")
    result, _ = run(root)
    data = json.loads((result.folder / "run.json").read_text())
    assert data["schema"] == 1
    assert data["params"]["nodes"][0]["name"] == "arm-1"
