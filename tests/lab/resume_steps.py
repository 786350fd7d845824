"""Run stages without notebooks and be killed on the way: ``resume_steps.py ROWS DELAY_S STAGE…``, in a clone.

After the ROWS-th row that this process writes into the ledger, and DELAY_S seconds more, it kills itself with SIGKILL;
ROWS 0 lets it come to its end.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Mapping
from typing import Any

from hybridlab.cluster import open_cluster
from hybridlab.ledger import Event, Ledger, Row


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Counting(Ledger):
    """A ledger that ends its process after so many rows."""

    left = 0
    delay_s = 0.0
    _lock = threading.Lock()

    def add(
        self,
        stage: str,
        step: str,
        event: Event,
        *,
        effect: str = "none",
        target: str = "",
        detail: Mapping[str, Any] | None = None,
    ) -> Row:
        row = super().add(stage, step, event, effect=effect, target=target, detail=detail)
        with self._lock:
            self.left -= 1
            if self.left == 0 and self.delay_s:
                threading.Timer(self.delay_s, die).start()
            elif self.left == 0:
                die()
        return row


def main(rows: int, delay_s: float, *stages: str) -> None:
    cluster = open_cluster("params/lab.yaml", approve="all")
    cluster.say = lambda line: None
    ledger = Counting(cluster.ledger.path, run=cluster.run)
    ledger.left, ledger.delay_s = rows, delay_s
    cluster.ledger = ledger
    for name in stages:
        stage = cluster.stage(name)
        stage.gate()
        stage.apply()
        stage.verify()
        stage.hand_over()


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), *sys.argv[3:])
