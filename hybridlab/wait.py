"""The only wait loop: a deadline, an injected clock, and the last state seen in the error.

Ctrl-C reaches the main thread alone: work in other threads ends because what it waits for raises Interrupted there.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from typing import Protocol, TypeVar

from hybridlab.errors import DeadlineExceeded, Interrupted

T = TypeVar("T")


class Clock(Protocol):
    """Time as an argument, so that tests need not live through it."""

    def now(self) -> float:
        """Unix time in seconds."""

    def sleep(self, seconds: float) -> None: ...


class StoppedThreads:
    """The threads that were told to end what they do. Threads that begin later are not among them."""

    def __init__(self) -> None:
        self._threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()

    def stop_others(self) -> None:
        """All that live now but the one that says so."""
        self._threads.update(t for t in threading.enumerate() if t is not threading.current_thread())

    def has_me(self) -> bool:
        return threading.current_thread() in self._threads


class SystemClock:
    """The computer's. ``interrupt`` ends the sleep of all other threads that live now, and every later one of theirs,
    with Interrupted."""

    def __init__(self) -> None:
        self._stopped = StoppedThreads()
        self._change = threading.Condition()

    def now(self) -> float:
        return time.time()

    def sleep(self, seconds: float) -> None:
        with self._change:
            if self._change.wait_for(self._stopped.has_me, seconds):
                raise Interrupted("interrupted while waiting", next_move="run it again: it goes on")

    def interrupt(self) -> None:
        with self._change:
            self._stopped.stop_others()
            self._change.notify_all()


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
