"""papermill's own tests pass with this engine as its default exactly as they do with papermill's."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

OWN = "papermill.tests.test_execute"


def start(folder: Path, name: str, *plugin: str) -> subprocess.Popen[str]:
    """Run papermill's tests in a process of their own, away from this project's settings."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HYBRIDLAB_", "PYTEST_"))}
    env["PYTHONPATH"] = str(Path(__file__).parent)
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *plugin]
    words += ["--pyargs", OWN, f"--junit-xml={folder / name}.xml"]
    (folder / name).mkdir()
    return subprocess.Popen(
        words, cwd=folder / name, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def outcomes(path: Path) -> dict[str, str]:
    """Each test's outcome."""
    found = {}
    for case in ElementTree.parse(path).iter("testcase"):
        bad = [kind for kind in ("failure", "error", "skipped") if case.find(kind) is not None]
        found[f"{case.get('classname')}::{case.get('name')}"] = bad[0] if bad else "passed"
    return found


@pytest.mark.slow
def test_papermills_own_tests_pass_as_with_its_own_engine(tmp_path: Path) -> None:
    try:
        if importlib.util.find_spec(OWN) is None:
            pytest.skip("this papermill came without its tests")
    except ModuleNotFoundError:
        pytest.skip("this papermill came without its tests")
    theirs = start(tmp_path, "theirs")
    ours = start(tmp_path, "ours", "-p", "hybridlab_as_default")
    said_theirs, said_ours = theirs.communicate(timeout=300)[0], ours.communicate(timeout=300)[0]
    expected, found = outcomes(tmp_path / "theirs.xml"), outcomes(tmp_path / "ours.xml")
    assert sum(outcome == "passed" for outcome in expected.values()) > 20, said_theirs
    assert found == expected, said_ours
    ran = re.search(r"executed by the hybridlab engine: (\d+)", said_ours)
    assert ran, said_ours
    assert int(ran[1]) > 20, "they ran with another engine"
    assert "hybridlab engine" not in said_theirs
