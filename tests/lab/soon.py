"""Waiting in tests: until a condition holds, never longer than its deadline."""

from __future__ import annotations

from typing import Any

from hybridlab.wait import SystemClock, wait_until


def soon(look: Any, done: Any, what: str, deadline_s: float = 15) -> Any:
    return wait_until(look, done, what=what, deadline_s=deadline_s, clock=SystemClock(), interval_s=0.05)
