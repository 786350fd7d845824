"""Bad input: one message that names the thing and the next move, exit status 2, no traceback, nothing changed."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from life import PARAMS, Life, told_in_one_message


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    """A clone whose lab has never been started."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HOME", "LAB_DIR", "APPROVE", "SET", "RUN", "LOCKED"):
            patch.delenv(f"HYBRIDLAB_{name}", raising=False)
        idle = Life(tmp_path_factory.mktemp("idle"))
        yield idle
        idle.stop()  # where a test failed, it may have been started


def everything(life: Life) -> dict[str, bytes]:
    """All files of the clone but the lab's own."""
    files = (p for p in life.home.rglob("*") if p.is_file() and life.lab_dir not in p.parents)
    return {str(p.relative_to(life.home)): p.read_bytes() for p in files}


def edited(*changes: tuple[str, str]) -> Callable[[str], str]:
    def edit(text: str) -> str:
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        return text

    return edit


FILES: dict[str, tuple[Callable[[str], str], tuple[str, ...]]] = {
    "unknown parameter": (lambda t: t + "storage: {replica: 3}\n", ("storage.replica", "storage.replicas?")),
    "unknown section": (lambda t: t + "storrage: {replicas: 3}\n", ("storrage", "storage?")),
    "wrong type": (lambda t: t + "storage: {replicas: three}\n", ("storage.replicas", "'three'")),
    "out of range": (edited(("boot_volume_gb: 50}", "boot_volume_gb: 10}")), ("boot_volume_gb", "50")),
    "no server": (edited(("role: server", "role: agent")), ("role: server", "found 0")),
    "same name twice": (edited(("name: arm-2", "name: arm-1")), ("arm-1 is used twice",)),
    "unknown allowance": (edited(("until-2026-06", "until-2026-07")), ("until-2026-07", "until-2026-06")),
    "not YAML": (lambda t: t + "storage: [3\n", ("not YAML", "bad.yaml")),
    "key given twice": (lambda t: t + "cluster: other\n", ("cluster is given twice", "keep one")),
    "newer schema": (edited(("schema: 1", "schema: 2")), ("newer", "schema 2", "upgrade")),
    "nothing in it": (lambda _: "", ("empty", "params/lab.yaml")),
    "compose file missing": (
        edited(("services/compose.yaml", "services/compos.yaml")),
        ("migrate.compose", "compos.yaml", "did you mean compose.yaml?"),
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_a_bad_params_file(idle: Life, case: str) -> None:
    change, words = FILES[case]
    bad = idle.home / "params" / "bad.yaml"
    bad.write_text(change((idle.home / PARAMS).read_text(encoding="utf-8")), encoding="utf-8")
    before = everything(idle)
    told_in_one_message(idle.hybridlab("run", "--params", "params/bad.yaml", "--approve", "all"), *words)
    assert everything(idle) == before
    assert not idle.lab_dir.exists(), "the lab isn't started for it"


WORDS: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "mistyped --set": (["--set", "storage.replcas=3"], ("storage.replcas", "storage.replicas?")),
    "--set without its section": (["--set", "replicas=3"], ("replicas", "did you mean")),
    "--set of a wrong type": (["--set", "storage.replicas=many"], ("storage.replicas", "'many'")),
    "no such params file": (["--params", "params/labb.yaml"], ("params/labb.yaml", "params/lab.yaml?")),
    "no such runbook": (["021"], ("'021'", "did you mean")),
    "a mistyped runbook": (["030-bootstrap-k8s"], ("030-bootstrap-k8s", "did you mean 030-bootstrap-k3s?")),
    "not an approval": (["--approve", "yes"], ("'yes'", "hybridlab plan STAGE")),
}


@pytest.mark.parametrize("case", WORDS)
def test_a_bad_command_line(idle: Life, case: str) -> None:
    words, said = WORDS[case]
    before = everything(idle)
    told_in_one_message(idle.hybridlab("run", *words), *said)
    assert everything(idle) == before
    assert not idle.lab_dir.exists()


@pytest.mark.parametrize(
    "words", [["plan", "all"], ["plan", "provision"], ["status"], ["lab", "status"], ["lab", "log"]]
)
def test_no_lab(idle: Life, words: list[str]) -> None:
    before = everything(idle)
    done = idle.hybridlab(*words)
    if words == ["lab", "log"]:
        assert done.status in (0, 2), "what a stopped lab answered can still be read; here there was none"
        assert "Traceback" not in done.said
    elif words == ["status"]:
        assert done.status in (0, 2)
        assert "lab is not running" in " ".join(done.said.split())
    else:
        told_in_one_message(done, "the lab is not running", "hybridlab lab start")
    assert everything(idle) == before


def test_no_lab_for_a_bare_notebook(idle: Life) -> None:
    done = idle.command("papermill", "runbooks/010-plan-cluster.ipynb", "out.ipynb", "-p", "params_file", PARAMS)
    assert done.status != 0
    assert "LabNotRunning" in done.said
    assert "hybridlab lab start" in done.said
    assert not idle.lab_dir.exists()


def test_an_impossible_layout(life: Life) -> None:
    """Five 2-OCPU machines are more than any allowance: said before anything is made."""
    since = time.time()
    shutil.copy(life.home / PARAMS, life.home / "params" / "big.yaml")
    life.edit("params/big.yaml", ("ocpus: 2, memory_gb: 12", "ocpus: 8, memory_gb: 48"))
    done = life.hybridlab("run", "--params", "params/big.yaml", "--approve", "all")
    assert done.status == 2, done.said
    assert "A1" in done.err
    assert "next:" in done.err
    assert "Traceback" not in done.said
    assert life.mutating(since) == []
    assert life.launched() == []


def test_a_wrong_kubeconfig(life: Life) -> None:
    since = time.time()
    life.state.mkdir(parents=True, exist_ok=True)
    life.kubeconfig.write_text("this is: no kubeconfig\n", encoding="utf-8")
    try:
        told_in_one_message(life.run("010"), "this is not a kubeconfig", str(life.kubeconfig), "delete it")
        assert life.mutating(since) == []
    finally:
        life.kubeconfig.unlink()


def test_a_folder_that_cannot_be_written(life: Life) -> None:
    since, runs = time.time(), life.home / "runs"
    shutil.rmtree(runs, ignore_errors=True)
    if os.geteuid():
        runs.mkdir(mode=0o500)
    else:  # nothing is unwritable for root but what isn't a folder
        runs.write_text("", encoding="utf-8")
    try:
        told_in_one_message(life.run("010"), "can't be written", str(runs), "HYBRIDLAB_HOME")
        assert life.mutating(since) == []
    finally:
        _remove(runs)


def _remove(path: Path) -> None:
    if path.is_dir():
        path.chmod(0o700)
        path.rmdir()
    else:
        path.unlink()
