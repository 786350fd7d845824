"""The lab's folder: where it is, who holds it, and what lies in it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridlab.errors import BadInput, Locked, SchemaTooNew
from hybridlab.wait import SystemClock, wait_until

SCHEMA = 1
MARKER_TEXT = "This folder belongs to a hybridlab lab; `hybridlab lab reset` empties it.\n"
LOCK_PATIENCE_S = 0.3


def lab_directory() -> Path:
    """HYBRIDLAB_LAB_DIR, else ``.lab`` beside params/ (HYBRIDLAB_HOME, or here or in a parent folder)."""
    given = os.environ.get("HYBRIDLAB_LAB_DIR")
    if given:
        return Path(given).resolve()
    home = os.environ.get("HYBRIDLAB_HOME")
    if home:
        return Path(home).resolve() / ".lab"
    here = Path.cwd().resolve()
    for folder in (here, *here.parents):
        if (folder / "params").is_dir():
            return folder / ".lab"
    raise BadInput(
        "no params/ folder here or above",
        where=str(here),
        next_move="go to your clone, or set HYBRIDLAB_HOME or HYBRIDLAB_LAB_DIR",
    )


def services_file() -> Path | None:
    """params/services/compose.yaml of the clone we are in: what the lab's Docker host runs, so that it can be moved."""
    home = os.environ.get("HYBRIDLAB_HOME")
    here = Path(home).resolve() if home else Path.cwd().resolve()
    for folder in (here, *here.parents):
        found = folder / "params" / "services" / "compose.yaml"
        if found.is_file():
            return found
    return None


@dataclass(frozen=True)
class LabDirectory:
    """Paths in a lab's folder, and its lock, which is held for as long as the lab's process lives, however it ends."""

    path: Path

    @property
    def marker(self) -> Path:
        return self.path / "hybridlab-lab"

    @property
    def status_file(self) -> Path:
        return self.path / "lab.json"

    @property
    def log_file(self) -> Path:
        return self.path / "lab.log"

    @property
    def requests_file(self) -> Path:
        return self.path / "requests.jsonl"

    @property
    def _lock_file(self) -> Path:
        return self.path / "lock"

    # -- making and emptying ---------------------------------------------------------------------------------------
    def prepare(self) -> None:
        """Make the folder and mark it. Raises BadInput where it can't be, or holds something that isn't a lab's."""
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            # one listing, not two questions: another starter may mark the folder in between, and does so first of all
            found = {entry.name for entry in self.path.iterdir()}
            if self.marker.name not in found:
                if found:
                    raise BadInput(
                        "this folder isn't empty and isn't a lab's",
                        where=str(self.path),
                        next_move="give an empty or new folder as --dir or HYBRIDLAB_LAB_DIR",
                    )
                self.marker.write_text(MARKER_TEXT, encoding="utf-8")
        except OSError as error:
            raise BadInput(
                "the lab's folder can't be written",
                where=str(self.path),
                why=error.strerror or str(error),
                next_move="give another folder as --dir or HYBRIDLAB_LAB_DIR",
            ) from error

    def empty(self) -> bool:
        """Delete everything in the folder, and the folder. False when there is none; BadInput unless it is a lab's."""
        if not self.path.exists():
            return False
        if not self.marker.is_file():
            raise BadInput(
                "not a lab's folder, so nothing was deleted",
                where=str(self.path),
                why=f"{self.marker.name} is missing",
            )
        with self.held():
            # as bytes, since files on the lab's hosts may have names that are not UTF-8; the marker goes last, so that
            # an interrupted reset can be repeated
            for entry in os.scandir(os.fsencode(self.path)):
                if entry.name in (os.fsencode(self.marker.name), os.fsencode(self._lock_file.name)):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path)
                else:
                    os.unlink(entry.path)  # noqa: PTH108 - bytes
            self._lock_file.unlink(missing_ok=True)
            self.marker.unlink()
        with contextlib.suppress(OSError):
            self.path.rmdir()
        return True

    # -- the lock --------------------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder's lock for a while. Raises Locked when another process does."""
        descriptor = self.hold()
        try:
            yield
        finally:
            os.close(descriptor)

    def hold(self) -> int:
        """Hold the folder's lock until this process ends, or the descriptor is closed. Raises Locked."""
        descriptor = os.open(self._lock_file, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            # patience, because someone who only asks whether it is held takes it for a moment
            end = time.monotonic() + LOCK_PATIENCE_S
            while not _try_lock(descriptor):
                if time.monotonic() > end:
                    raise Locked("another lab uses this folder", where=str(self.path), why=f"process {self.holder()}")
                time.sleep(0.02)
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    @contextlib.contextmanager
    def starting(self, deadline_s: float) -> Iterator[None]:
        """Be the only one who starts this folder's lab. Raises DeadlineExceeded while others take too long."""
        descriptor = os.open(self.path / "start.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            wait_until(
                lambda: _try_lock(descriptor),
                bool,
                what="somebody else who starts the lab",
                deadline_s=deadline_s,
                clock=SystemClock(),
                interval_s=0.03,
                interval_max_s=0.15,
            )
            yield
        finally:
            os.close(descriptor)

    def holder(self) -> int | None:
        """The process that holds the lock (0 when it has not said yet which it is); None when nobody does."""
        try:
            descriptor = os.open(self._lock_file, os.O_RDWR)
        except FileNotFoundError:
            return None
        try:
            if _try_lock(descriptor):
                return None
            text = os.read(descriptor, 32).decode().strip()
            return int(text) if text.isdigit() else 0
        finally:
            os.close(descriptor)

    # -- lab.json --------------------------------------------------------------------------------------------------
    def write_status(self, status: Mapping[str, Any]) -> None:
        """Write lab.json whole or not at all, readable by its owner only."""
        write_private(self.status_file, json.dumps({"schema": SCHEMA, **status}, indent=1) + "\n")

    def read_status(self) -> dict[str, Any] | None:
        """lab.json, or None where there is none (or none that can be read). Raises SchemaTooNew."""
        try:
            status = json.loads(self.status_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if not isinstance(status, dict) or "control" not in status:
            return None
        if status.get("schema", 0) > SCHEMA:
            raise SchemaTooNew(
                "the lab was started by a newer hybridlab",
                where=str(self.status_file),
                why=f"schema {status['schema']}, this hybridlab knows {SCHEMA}",
                next_move="upgrade hybridlab, or stop that lab with the version that started it",
            )
        return status

    def log_tail(self, lines: int = 15) -> str:
        """The last lines of lab.log."""
        try:
            return "\n".join(self.log_file.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
        except OSError:
            return ""


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def write_private(path: Path, text: str) -> None:
    """Replace a file at once; mode 0600."""
    scratch = path.with_name(path.name + ".new")
    scratch.unlink(missing_ok=True)
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    scratch.replace(path)


def read_requests(path: Path, keep: Callable[[Mapping[str, Any]], bool]) -> Iterator[dict[str, Any]]:
    """The rows of a request log that ``keep`` wants, oldest first. A row half written is left out."""
    try:
        file = path.open(encoding="utf-8")
    except FileNotFoundError:
        return
    with file:
        for line in file:
            if not line.endswith("\n"):
                return
            row: dict[str, Any] = json.loads(line)
            if keep(row):
                yield row


def request_filter(
    *, since: float | None = None, part: str | None = None, mutating: bool = False
) -> Callable[[Mapping[str, Any]], bool]:
    """Which rows of the request log are wanted. ``since`` is Unix time; ``mutating`` True leaves out the others."""

    def keep(row: Mapping[str, Any]) -> bool:
        return (
            (since is None or row["time"] >= since)
            and (part is None or row["part"] == part)
            and (not mutating or bool(row["mutating"]))
        )

    return keep
