"""What the papermill engine does: every cell ends as what really became of it.

An exception, a cell time-out, the run's deadline, a dead kernel, Ctrl-C and SIGTERM all end in a saved notebook whose
cells say done, failed, timed out, interrupted, kernel lost, skipped or not run.
"""

from __future__ import annotations

import ast
import asyncio
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from jupyter_core.utils import ensure_async, run_sync
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from papermill import engines
from papermill.log import logger as papermill_logger

from hybridlab.errors import BadInput, StepFailed
from hybridlab.home import find_root
from hybridlab.runner import autopsy
from hybridlab.runner.outcome import CellState, Problem, RunbookState, exit_code_of
from hybridlab.runner.record import SKIP_TAG, Record, Told, Watch
from hybridlab.runner.redact import Redactor

log = logging.getLogger(__name__)

GRACE_S = 10.0
"""How long an interrupted cell may take to end by itself before its kernel is killed."""
TICK_S = 0.25
EXPLAINED = ("SystemExit", "StdinNotImplementedError")
"""Errors that are told better from here than from inside the kernel."""


def execute_notebook(
    nb: Any,
    kernel_name: str,
    output_path: str | None = None,
    progress_bar: Any = True,
    log_output: bool = False,
    autosave_cell_every: int = 30,
    *,
    redactor: Redactor | None = None,
    watch: Watch | None = None,
    told: Told | None = None,
    make_room: Callable[[], bool] | None = None,
    records: list[Record] | None = None,
    **kwargs: Any,
) -> Any:
    """Execute a notebook and keep its record; what HybridlabEngine does, with the same arguments."""
    record = Record(
        nb,
        redactor=redactor or _default_redactor(),
        watch=watch,
        told=told,
        make_room=make_room,
        output_path=output_path,
        log_output=log_output,
        progress_bar=progress_bar,
        autosave_cell_every=autosave_cell_every,
    )
    if records is not None:
        records.append(record)
    record.notebook_start()
    try:
        _execute(record, kernel_name, log_output=log_output, **kwargs)
    except (KeyboardInterrupt, SystemExit):
        record.conclude("interrupted", _interrupted(""))
        raise
    except BaseException as error:
        # whatever stopped the engine itself: the kernel never came up, or the disk is full
        state: RunbookState = "kernel lost" if isinstance(error, RuntimeError) else "failed"
        record.conclude(state, Problem(type(error).__name__, str(error), exit_code=6 if state != "failed" else 4))
        raise
    finally:
        record.notebook_complete()
    return record.nb


def _execute(
    record: Record,
    kernel_name: str,
    *,
    log_output: bool,
    stdout_file: Any = None,
    stderr_file: Any = None,
    start_timeout: int = 60,
    execution_timeout: float | None = None,
    deadline_s: float | None = None,
    km: Any = None,
    **kwargs: Any,
) -> None:
    ends = time.monotonic() + deadline_s if deadline_s is not None else None
    cell_timeout_s = execution_timeout or kwargs.get("timeout")
    kwargs = {k: v for k, v in kwargs.items() if k not in ("input_path", "timeout", "startup_timeout")}
    with _signals() as stop:
        client = engines.PapermillNotebookClient(
            record,
            km=km,
            timeout=None,  # time-outs are ours: nbclient's leave cells without a true state
            startup_timeout=start_timeout,
            iopub_timeout=60,
            kernel_name=kernel_name,
            log=papermill_logger,
            log_output=log_output,
            stdout_file=stdout_file,
            stderr_file=stderr_file,
            **kwargs,
        )
        client.papermill_execute_cells = _Cells(client, record, stop, cell_timeout_s, ends).run
        try:
            client.execute(**({} if km is not None else {"env": {**os.environ, "HYBRIDLAB_HEADLESS": "1"}}))
        except (KeyboardInterrupt, SystemExit):
            if km is None:
                _kill(client)
            raise
        finally:
            if km is not None and client.kc is not None:  # nbclient leaves open what it made for a kernel of others
                client.kc.stop_channels()


class _Stop:
    """Ctrl-C and SIGTERM: an event while a cell runs, KeyboardInterrupt or SystemExit at any other time."""

    def __init__(self) -> None:
        self.signum = 0
        self.times = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._event: asyncio.Event | None = None

    @contextmanager
    def heard(self) -> Iterator[asyncio.Event]:
        """While this lasts, a signal sets the event and raises nothing."""
        self._loop, self._event = asyncio.get_running_loop(), asyncio.Event()
        if self.signum:
            self._event.set()
        try:
            yield self._event
        finally:
            self._loop = self._event = None

    def on_signal(self, signum: int, frame: FrameType | None) -> None:
        self.signum, self.times = signum, self.times + 1
        if self._loop is not None and self._event is not None:
            self._loop.call_soon_threadsafe(self._event.set)
        else:
            self.leave()

    def leave(self) -> None:
        """Raise what a program raises that was told to stop by this signal."""
        if self.signum == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + self.signum)


@contextmanager
def _signals() -> Iterator[_Stop]:
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may set handlers, and only it is interrupted
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, stop.on_signal) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Cells:
    """Runs a notebook's cells one after the other through nbclient, and says how each ended."""

    def __init__(
        self, client: Any, record: Record, stop: _Stop, cell_timeout_s: float | None, ends: float | None
    ) -> None:
        self._client = client
        self._record = record
        self._stop = stop
        self._cell_timeout_s = cell_timeout_s
        self._ends = ends

    def run(self) -> None:
        run_sync(self._run)()
        if self._record.state == "interrupted" and self._stop.signum:
            self._stop.leave()

    async def _run(self) -> None:
        for index, cell in enumerate(self._record.nb.cells):
            tags = cell.metadata.get("tags", [])
            if cell.cell_type != "code":
                self._record.end(index, "done")
            elif SKIP_TAG in tags or not cell.source.strip():
                self._record.end(index, "skipped")
            else:
                await self._cell(index, cell)
            if self._record.state != "running":
                return
            if self._record.save_error:
                self._raise_unsaved()

    def _raise_unsaved(self) -> None:
        error = self._record.save_error
        raise StepFailed(
            "the executed notebook can't be saved",
            where=str(self._record.output_path),
            why=(error.strerror or str(error)) if error else "",
            next_move="make room, then run it again: it looks at what is there and goes on",
        )

    async def _cell(self, index: int, cell: Any) -> None:
        self._record.begin(index)
        task = asyncio.ensure_future(self._client.async_execute_cell(cell, index))
        with self._stop.heard() as stopped:
            why = await self._until_ended(task, stopped)
            if why:
                await self._break_off(task)
        error = task.exception() if not task.cancelled() else asyncio.CancelledError()
        state, problem = self._judge(cell, why, error)
        if state == "failed" and problem is not None and problem.error not in EXPLAINED:
            problem = await self._ask_kernel(problem)
            if problem.exit_code == 6:
                state = "interrupted"
        self._record.end(index, state, problem)
        if state == "done" and why:  # it came to its end all the same, but the notebook stops here
            ended: RunbookState = "interrupted" if why == "interrupted" else "timed out"
            self._record.conclude(ended, self._problem(why))
        if state == "kernel lost":
            raise DeadKernelError("Kernel died")
        if state == "timed out":
            raise CellTimeoutError.error_from_timeout_and_cell(
                "Cell execution timed out", int(self._cell_timeout_s or 0), cell
            )

    async def _until_ended(self, task: asyncio.Future[Any], stopped: asyncio.Event) -> str:
        """Wait for the cell; returns why it must be broken off, or nothing when it ended by itself."""
        began = time.monotonic()
        hearing = asyncio.ensure_future(stopped.wait())
        try:
            while True:
                await asyncio.wait({task, hearing}, timeout=TICK_S, return_when=asyncio.FIRST_COMPLETED)
                now = time.monotonic()
                if task.done():
                    return ""
                if stopped.is_set():
                    return "interrupted"
                if self._cell_timeout_s and now - began >= self._cell_timeout_s:
                    return "cell time-out"
                if self._ends is not None and now >= self._ends:
                    return "deadline"
                self._record.save_if_due()
        finally:
            hearing.cancel()

    async def _break_off(self, task: asyncio.Future[Any]) -> None:
        """Interrupt the kernel so that the cell ends and its output is kept; kill it when it doesn't listen."""
        times = self._stop.times
        with suppress(RuntimeError):
            await ensure_async(self._client.km.interrupt_kernel())
        ends = time.monotonic() + GRACE_S
        while not task.done() and time.monotonic() < ends and self._stop.times == times:
            await asyncio.wait({task}, timeout=TICK_S)
        if not task.done():
            log.warning("the kernel ignored the interrupt and is killed")
            await ensure_async(self._client.km.shutdown_kernel(now=True))
            task.cancel()
            await asyncio.wait({task})

    def _judge(self, cell: Any, why: str, error: BaseException | None) -> tuple[CellState, Problem | None]:
        if why and error is None and why == "interrupted":
            return "done", None
        if why:
            return ("interrupted" if why == "interrupted" else "timed out"), self._problem(why)
        if error is None:
            return "done", None
        if isinstance(error, DeadKernelError):
            text = "run it again: it looks at what is there and goes on"
            return "kernel lost", Problem("DeadKernelError", "the kernel died", next_move=text, exit_code=6)
        if isinstance(error, CellExecutionError):
            return "failed", _problem_of_output(error)
        return "failed", Problem(type(error).__name__, str(error))

    def _problem(self, why: str) -> Problem:
        if why == "interrupted":
            return _interrupted(signal.Signals(self._stop.signum).name)
        limit = f"cell time-out of {self._cell_timeout_s:g} s" if why == "cell time-out" else "the run's deadline"
        return Problem("DeadlineExceeded", f"stopped by {limit}", next_move="run it again: it goes on", exit_code=5)

    async def _ask_kernel(self, problem: Problem) -> Problem:
        """What the kernel knows of the error beyond its printed form: its parts and its exit status."""
        for _ in range(3):  # the kernel may abort requests for a moment after an error
            try:
                asked = self._client.kc.execute(
                    "", silent=True, store_history=False, user_expressions={"e": autopsy.EXPRESSION}
                )
                reply = await asyncio.wait_for(self._client.async_wait_for_reply(asked), timeout=5)
                answer = reply["content"]["user_expressions"]["e"]
                if answer["status"] != "ok":
                    return problem
                found = json.loads(ast.literal_eval(answer["data"]["text/plain"]))
            except KeyError:
                continue
            except (TimeoutError, DeadKernelError, ValueError):
                return problem
            # IPython's own errors (a syntax error, an unknown magic) are not remembered by the interpreter
            return Problem(**found) if found and found["error"] == problem.error else problem
        return problem


def _problem_of_output(error: CellExecutionError) -> Problem:
    text, _, next_move = str(error.evalue).partition("\n  next: ")
    name = error.ename
    if name == "SystemExit":
        return Problem(
            name,
            f"the notebook called sys.exit({text})",
            why="a cell can't end a run; the cells after it were not run",
            next_move="raise an error instead",
        )
    if name == "StdinNotImplementedError":
        return Problem(name, "the notebook asked for input", next_move="give it as a parameter: nobody can answer here")
    ours = exit_code_of(name)
    what = text if ours != 4 or next_move else f"{name}: {text}"
    return Problem(name, what, next_move=next_move, exit_code=ours)


def _interrupted(by: str) -> Problem:
    what = f"interrupted by {by}" if by else "interrupted"
    return Problem("Interrupted", what, next_move="run it again: it goes on", exit_code=6)


def _kill(client: Any) -> None:
    """Leave no kernel behind that this client started."""
    if client.km is not None and client.km.has_kernel:

        async def stop() -> None:
            await ensure_async(client.km.shutdown_kernel(now=True))

        run_sync(stop)()


def _default_redactor() -> Redactor:
    try:
        return Redactor(root=find_root())
    except BadInput:
        return Redactor()
