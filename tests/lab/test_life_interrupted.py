"""Ctrl-C while steps run on several hosts at once: the run ends soon, the ledger is true, the next run goes on."""

from __future__ import annotations

import signal
import time
from datetime import datetime

from life import NODES, Life, ready

AGENTS = ("arm-2", "amd-1")
GRACE_S = 10.0  # what a cell is given before its kernel is killed


def test_ctrl_c_while_agents_are_installed(fresh: Life) -> None:
    fresh.make("provision")
    fresh.stop()
    fresh.start(speed=0.2)  # so that there is something to interrupt: an agent takes its time to join
    with fresh.running("030") as process:
        for name in AGENTS:
            fresh.await_row("started", f"install:{name}")
        asked = time.time()
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
    assert process.returncode == 6
    rows = [row for row in fresh.ledger() if row.step in {f"install:{name}" for name in AGENTS}]
    last = {row.step: row.event for row in rows}
    assert set(last.values()) <= {"interrupted", "done"}, last
    assert "interrupted" in last.values()
    assert sum(row.event == "interrupted" for row in rows) == list(last.values()).count("interrupted"), "one row each"
    ended = [datetime.fromisoformat(row.time).timestamp() for row in rows if row.event == "interrupted"]
    assert max(ended) - asked < GRACE_S / 2, "the steps ended by themselves, and nobody had to kill the kernel"
    fresh.stop()
    fresh.start()
    done = fresh.run("030")
    assert done.status == 0, done.said
    assert {name: ready(node) for name, node in fresh.nodes().items()} == dict.fromkeys(NODES, True)
