"""Run runbooks unattended, in order, each in a kernel of its own, and keep a record that can be trusted."""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from hybridlab.cluster import new_run_id
from hybridlab.errors import BadInput, HybridlabError
from hybridlab.home import lab_directory
from hybridlab.ledger import Ledger, locked, now_iso, user_name
from hybridlab.params import Params
from hybridlab.runner.cell_rows import CellRows
from hybridlab.runner.leftovers import sweep
from hybridlab.runner.outcome import Problem, RunbookResult, RunRecord, save_record
from hybridlab.runner.preflight import PARAMETER, Runbook, check_request, read_runbook
from hybridlab.runner.progress import Board, Tail
from hybridlab.runner.redact import Redactor
from hybridlab.runner.spare import NOTEBOOK, Spare
from hybridlab.runner.summary import write_junit, write_step_summary
from hybridlab.runner.verdict import concluded, judged, tell_ledger
from hybridlab.sites import open_site

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """How a run ended: its exit status, its folder, its record and the report's path (None when there is none)."""

    exit_code: int
    folder: Path
    record: RunRecord
    report: Path | None


def run_batch(
    runbooks: Sequence[Path],
    params_file: str | Path,
    *,
    root: Path,
    sets: Sequence[str] = (),
    approvals: Sequence[str] = (),
    strict: bool = False,
    deadline_s: float | None = None,
    cell_timeout_s: float | None = None,
    console: Console | None = None,
    errors: Console | None = None,
) -> RunResult:
    """Execute runbooks in order with one params file; stops at the first that isn't done.

    ``sets`` are ``key=value`` overrides, ``approvals`` is ``all`` or plan hashes. The cluster's lock is held from
    before the first change to the end. Everything that is wrong with the request itself raises BadInput (ParamsError,
    LabNotRunning, Locked) before anything was started or changed; later failures are told on ``errors`` and in the
    result, never raised. Ctrl-C and SIGTERM end the run in order, exit status 6.
    """
    books = [read_runbook(Path(path)) for path in runbooks]
    if not books:
        raise BadInput("no runbook was named")
    path, params = check_request(root, params_file, sets, [book.stage for book in books])
    open_site(params, path.parent, lab_directory(root))
    if deadline_s is not None and deadline_s <= 0:
        raise BadInput("the deadline is not in the future", why=f"{deadline_s:g} s")
    run = _free_run_id(root, params.cluster)
    with ExitStack() as stack:
        stack.enter_context(locked(root / "state" / params.cluster / "lock", run=run))
        record = RunRecord(
            run=run,
            cluster=params.cluster,
            site=params.site,
            params_file=str(params_file),
            params=params.plain(),
            sets=tuple(sets),
            approvals=tuple(approvals),
            strict=strict,
            started=now_iso(),
            pid=os.getpid(),
            host=socket.gethostname(),
            user=user_name(),
            version=metadata.version("hybridlab"),
            runbooks=tuple(book.waiting() for book in books),
        )
        ends = time.monotonic() + deadline_s if deadline_s is not None else None
        screen = console or Console(stderr=True)
        batch = _Batch(books, record, root, path, params, screen, ends, cell_timeout_s)
        return batch.run(errors or Console(stderr=True), stack)


class _Batch:
    """One run under way."""

    def __init__(
        self,
        books: Sequence[Runbook],
        record: RunRecord,
        root: Path,
        params_file: Path,
        params: Params,
        console: Console,
        ends: float | None,
        cell_timeout_s: float | None,
    ) -> None:
        self._books = books
        self._record = record
        self._folder = root / "runs" / record.run
        self._spare = Spare()
        self._root = root
        self._params_file = params_file
        self._params = params
        self._console = console
        self._ends = ends
        self._cell_timeout_s = cell_timeout_s
        state = root / "state" / record.cluster
        self._redactor = Redactor([state / "secrets"])
        self._ledger = Ledger(state / "ledger.jsonl", run=record.run, redact=self._redact)
        self._board = Board(record.runbooks, console, Tail(state / "ledger.jsonl", record.run))

    def run(self, errors: Console, stack: ExitStack) -> RunResult:
        began = time.monotonic()
        problem: Problem | None = None
        try:
            with _term_is_interrupt():  # from before there is a folder: it never lies there without its record
                self._begin(stack)
                self._execute()
        except KeyboardInterrupt:
            self._folder.mkdir(parents=True, exist_ok=True)
            problem = Problem("Interrupted", "interrupted", next_move="run it again: it goes on", exit_code=6)
        except OSError as error:
            if not self._folder.is_dir():
                raise
            problem = Problem("OSError", f"the run's record can't be written: {error.strerror}", str(self._folder))
        record = concluded(self._record, problem, self._ledger)
        record = replace(record, seconds=round(time.monotonic() - began, 3))
        record = replace(record, picture=self._picture(), bill=self._bill(ask=record.state != "interrupted"))
        report = self._views(record)
        leaks = self._redactor.leaks(self._folder)
        if leaks:
            names = ", ".join(str(leak.relative_to(self._folder)) for leak in leaks)
            leaked = Problem("Leak", "a secret is left in the run's folder", names, next_move="delete those files")
            record = replace(record, problem=record.problem or leaked, exit_code=record.exit_code or 4, state="failed")
        self._record = record
        self._save()
        if record.problem and record.exit_code:
            self._tell(record, errors)
        return RunResult(record.exit_code or 0, self._folder, record, report)

    def _begin(self, stack: ExitStack) -> None:
        self._folder.mkdir(parents=True)
        stack.callback(self._spare.free)
        self._save()
        sweep(self._root, self._record.cluster)
        self._spare.hold(self._folder)
        stack.enter_context(_logged(self._folder / "log", self._redactor))

    # -- executing -------------------------------------------------------------------------------------------------
    def _execute(self) -> None:
        from hybridlab.runner.kernels import Kernels

        with Kernels(env=self._environment(), cwd=self._root) as kernels, self._board:
            for index, book in enumerate(self._books):
                if self._ends is not None and time.monotonic() >= self._ends:
                    self._put(index, replace(book.waiting(), state="timed out", problem=_out_of_time()))
                    return
                manager = kernels.take(book.kernel)
                if index + 1 < len(self._books):
                    kernels.prepare(self._books[index + 1].kernel)
                try:
                    result = self._one(index, book, manager)
                finally:
                    kernels.give_back(manager)
                if result.state != "done":
                    tell_ledger(self._ledger, result)
                    return

    def _one(self, index: int, book: Runbook, manager: Any) -> RunbookResult:
        from hybridlab.runner.record import Record

        started, began = now_iso(), time.monotonic()
        self._put(index, replace(book.waiting(), state="running", started=started))
        self._board.started(index)
        log.info("%s starts", book.name)
        records: list[Record] = []
        stopped: BaseException | None = None
        try:
            self._papermill(book, manager, records)
        except KeyboardInterrupt as error:
            stopped = error
        except SystemExit as error:  # SIGTERM, as the engine passes it on
            stopped = KeyboardInterrupt()
            stopped.__cause__ = error
        except Exception as error:  # noqa: BLE001 - papermill raises what the cell raised; the record knows the truth
            stopped = error
        result = judged(book, records, stopped)
        if result.problem:
            result = replace(result, problem=result.problem.masked(self._redact))
        result = replace(result, started=started, seconds=round(time.monotonic() - began, 3))
        log.info("%s %s after %.1f s", book.name, result.state, result.seconds)
        self._put(index, result)
        self._board.ended(index, result)
        return result

    def _papermill(self, book: Runbook, manager: Any, records: list[Any]) -> None:
        import papermill

        papermill.execute_notebook(
            str(book.path),
            str(self._folder / f"{book.name}.ipynb"),
            parameters={PARAMETER: self._record.params_file if self._as_given() else str(self._params_file)},
            engine_name="hybridlab",
            kernel_name=book.kernel,
            progress_bar=False,
            km=manager,
            redactor=self._redactor,
            watch=self._board,
            told=CellRows(self._ledger, stage=book.stage, runbook=book.name),
            make_room=partial(self._spare.free, NOTEBOOK),
            records=records,
            execution_timeout=self._cell_timeout_s,
            deadline_s=None if self._ends is None else max(0.0, self._ends - time.monotonic()),
        )

    def _as_given(self) -> bool:
        """Whether a kernel, which works in the root, finds the params file under the name it was given by."""
        return (self._root / self._record.params_file).resolve() == self._params_file.resolve()

    def _environment(self) -> dict[str, str]:
        record = self._record
        env = {k: v for k, v in os.environ.items() if k not in ("JPY_SESSION_NAME", "HYBRIDLAB_SET")}
        env |= {
            "HYBRIDLAB_RUN": record.run,
            "HYBRIDLAB_LOCKED": record.run,
            "HYBRIDLAB_APPROVE": ",".join(record.approvals),
            "HYBRIDLAB_HEADLESS": "1",
            "HYBRIDLAB_HOME": str(self._root),
            "HYBRIDLAB_LAB_DIR": str(lab_directory(self._root)),
            "PLOTLY_RENDERER": "plotly_mimetype",
        }
        if record.sets:
            env["HYBRIDLAB_SET"] = "\n".join(record.sets)
        return env

    # -- recording -------------------------------------------------------------------------------------------------
    def _redact(self, text: str) -> str:
        self._redactor.refresh()
        return self._redactor.text(text)

    def _put(self, index: int, result: RunbookResult) -> None:
        self._record = self._record.with_runbook(index, result)
        self._save()

    def _save(self) -> None:
        """Write run.json; a full disk is given the spare bytes once."""
        if self._record.state != "running":
            self._spare.free()
        try:
            save_record(self._folder, self._record)
        except OSError:
            if not self._spare.free():
                raise
            save_record(self._folder, self._record)

    def _picture(self) -> Mapping[str, Any]:
        from hybridlab.runner.picture import take_picture

        return take_picture(self._root, self._record.cluster)

    def _bill(self, *, ask: bool) -> Mapping[str, Any]:
        from hybridlab.runner.bill import take_bill

        return take_bill(self._root, self._params, self._params_file, ask=ask)

    def _views(self, record: RunRecord) -> Path | None:
        """junit.xml, the step summary and the report: made from the record, so a failure here can't change it."""
        from hybridlab.runner.report import write_report

        self._record = record
        self._spare.free()
        try:
            self._save()
            rows = [row for row in self._ledger.rows() if row.run == record.run]
            write_junit(self._folder / "junit.xml", record, rows)
            write_step_summary(os.environ.get("GITHUB_STEP_SUMMARY"), record, rows, self._redact)
            return write_report(self._folder, root=self._root)
        except (OSError, HybridlabError) as error:
            log.warning("the report could not be made: %s", error)
            self._console.print(f"the report could not be made: {error}", style="yellow", markup=False)
            return None

    def _tell(self, record: RunRecord, errors: Console) -> None:
        problem = record.problem
        bad = next((r for r in record.runbooks if r.state not in ("done", "not run")), None)
        lines = [self._redact(problem.message())] if problem else []
        if bad:
            where = f", at {bad.cell!r}" if bad.cell else ""
            lines.insert(0, f"{bad.name} {bad.state}{where}")
            lines.append(f"  notebook: {self._folder / bad.notebook}")
        errors.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def _out_of_time() -> Problem:
    return Problem("DeadlineExceeded", "the run's deadline passed", next_move="run it again: it goes on", exit_code=5)


def _free_run_id(root: Path, cluster: str) -> str:
    run = new_run_id(cluster)
    for number in range(2, 100):
        if not (root / "runs" / run).exists():
            return run
        run = f"{new_run_id(cluster)}-{number}"
    return run


@contextmanager
def _term_is_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP between two notebooks end the run as Ctrl-C does (inside of one, the engine hears them)."""

    def raise_interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        before = {n: signal.signal(n, raise_interrupt) for n in (signal.SIGTERM, signal.SIGHUP)}
    except ValueError:  # not in the main thread: nobody can be interrupted here
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _logged(path: Path, redactor: Redactor) -> Iterator[None]:
    """What the library logs, into the run's folder too, without secrets."""

    class Masked(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            redactor.refresh()
            return redactor.text(super().format(record))

    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(Masked("%(asctime)s %(levelname)s %(name)s %(message)s"))
    root = logging.getLogger("hybridlab")
    level = root.level
    root.addHandler(handler)
    root.setLevel(min(level or logging.INFO, logging.INFO))
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        handler.close()
