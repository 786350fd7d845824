"""A cell that prints 200 MB: the run ends truthfully, in bounded memory of our own process, with a bounded notebook."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "unit"))
from toy_runbooks import read, runbook, states, texts, toy_root

from hybridlab.runner.outcome import load_record
from hybridlab.runner.record import DISPLAY_LIMIT, OUTPUT_LIMIT

SIZE = 200_000_000
MEMORY_MB = 450
"""At most, of which an idle run takes 110. Measured: 290; when a flood came as one message it was 680, and 1,060 when
figures and tables were kept however many there were."""
FLOODS = {
    "many prints": "for _ in range(200):\n    print('x' * 999_999)",
    "one print": "print('x' * 200_000_000)",
    "progress on stderr": "import sys\nfor _ in range(200):\n    print('x' * 999_999, file=sys.stderr, flush=True)",
    "tables": "from IPython.display import HTML, display\nfor _ in range(200):\n    display(HTML('x' * 1_000_000))",
}
DEADLINE_S = 300


def peak_mb(pid: int) -> float:
    """The most memory a process has had so far; 0 when it is no more."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_of_200_mb(tmp_path: Path, flood: str) -> None:
    root = toy_root(tmp_path)
    book = runbook(root, "010-plan-cluster", "print('before')", FLOODS[flood], "print('after')")
    words = [sys.executable, "-m", "hybridlab.cli", "run", "010", "-p", "params/toy.yaml"]
    env = {k: v for k, v in os.environ.items() if not k.startswith("HYBRIDLAB_")}
    most, ends = 0.0, time.monotonic() + DEADLINE_S
    with subprocess.Popen(words, cwd=root, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            assert time.monotonic() < ends, "it does not come to its end"
            most = max(most, peak_mb(process.pid))
            time.sleep(0.05)
    (folder,) = (root / "runs").iterdir()
    notebook = folder / book.name
    size = notebook.stat().st_size
    print(f"{flood}: {most:.0f} MB of memory, a notebook of {size / 1e6:.1f} MB")
    assert process.returncode == 0
    assert load_record(folder).state == "done"
    assert states(notebook) == ["done"] * 5
    assert (texts(notebook)[2], texts(notebook)[4]) == ("before\n", "after\n")
    assert most < MEMORY_MB
    assert size < OUTPUT_LIMIT + DISPLAY_LIMIT + 1_000_000
    said = texts(notebook)[3]
    dropped = int(said.rpartition("[")[2].split()[0].replace(",", ""))
    flooded = read(notebook).cells[[c.cell_type for c in read(notebook).cells].index("code") + 3]
    kept = sum(len(str(o.get("text", "") or o.data)) for o in flooded.outputs)
    assert SIZE * 0.99 < kept + dropped < SIZE * 1.01, "what is not there is counted"
