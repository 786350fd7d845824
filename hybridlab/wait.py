"""The only wait loop: a deadline, an injected clock, and the last state seen in the error."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from hybridlab.errors import DeadlineExceeded

T = TypeVar("T")


class Clock(Protocol):
    """Time as an argument, so that tests need not live through it."""

    def now(self) -> float:
        """Unix time in seconds."""

    def sleep(self, seconds: float) -> None: ...


class SystemClock:
    def now(self) -> float:
        return time.time()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


def wait_until(
    look: Callable[[], T],
    done: Callable[[T], bool],
    *,
    what: str,
    deadline_s: float,
    clock: Clock,
    interval_s: float = 0.25,
    interval_max_s: float = 5.0,
    describe: Callable[[T], str] = str,
    progress: Callable[[str], None] | None = None,
    next_move: str = "",
) -> T:
    """Look until ``done`` holds, and return what was seen.

    The pause grows by half each time up to ``interval_max_s``. Looks at least once, also with a deadline of zero.
    Raises DeadlineExceeded, which names ``what``, the deadline and the last state seen. Exceptions of ``look`` pass.
    """
    end = clock.now() + deadline_s
    pause, told = interval_s, ""
    while True:
        seen = look()
        if done(seen):
            return seen
        state = describe(seen)
        if progress and state != told:
            progress(f"{what}: {state}")
            told = state
        left = end - clock.now()
        if left <= 0:
            raise DeadlineExceeded(
                f"gave up waiting for {what} after {deadline_s:g} s", why=f"last seen: {state}", next_move=next_move
            )
        clock.sleep(min(pause, left))
        pause = min(pause * 1.5, interval_max_s)
