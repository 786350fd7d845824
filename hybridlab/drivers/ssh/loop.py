"""One asyncio loop in one thread, behind plain calls."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

from hybridlab.errors import Interrupted
from hybridlab.wait import StoppedThreads

T = TypeVar("T")


class LoopThread:
    """An asyncio loop in a daemon thread, started on first use."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._running: dict[Future[Any], threading.Thread] = {}
        self._stopped = StoppedThreads()
        self._told: set[threading.Thread] = set()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run it in the loop, and wait for its result. Raises Interrupted where ``interrupt`` was called meanwhile.

        A thread is told so once: what it then does to clean up is done.
        """
        me = threading.current_thread()
        with self._lock:
            if self._stopped.has_me() and me not in self._told:
                self._told.add(me)
                work.close()
                raise _interrupted("nothing was done")
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="hybridlab-ssh", daemon=True)
                self._thread.start()
            future: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
            self._running[future] = me
        try:
            return future.result()
        except CancelledError as error:
            raise _interrupted("whether it took effect is unknown") from error
        except BaseException:
            future.cancel()  # Ctrl-C in the caller ends the work in the loop as well
            raise
        finally:
            with self._lock:
                self._running.pop(future, None)

    def interrupt(self) -> None:
        """End what other threads are waiting for, and what those that live now ask for next."""
        with self._lock:
            self._stopped.stop_others()
            self._told = {thread for thread in self._told if thread.is_alive()}
            for future, thread in list(self._running.items()):
                if thread is not threading.current_thread():
                    self._told.add(thread)
                    future.cancel()

    @property
    def started(self) -> bool:
        return self._loop is not None

    def stop(self) -> None:
        with self._lock:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is None or thread is None:
            return
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=5)
        if not thread.is_alive():
            loop.close()


def _interrupted(why: str) -> Interrupted:
    return Interrupted("work on a host was interrupted", why=why, next_move="run it again: it looks first, and goes on")
