"""Starting, asking and stopping a lab from outside its process. Imports nothing of the lab's inside."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from hybridlab.errors import BadInput, DeadlineExceeded, LabNotRunning
from hybridlab.lab.directory import LabDirectory
from hybridlab.lab.leftover import end_leftover
from hybridlab.wait import SystemClock, wait_until

ALL_PARTS = ("registry", "s3", "kube", "hosts", "oracle")
"""The lab's parts in the order they start."""

START_DEADLINE_S = 30.0
STOP_DEADLINE_S = 20.0
ANSWER_DEADLINE_S = 5.0
HUNG_AFTER_S = 15.0
_QUICKLY: Any = {"clock": SystemClock(), "interval_s": 0.03, "interval_max_s": 0.15}


@dataclass(frozen=True)
class Lab:
    """A lab that answers: what its lab.json says. ``fresh`` is whether this call started it."""

    directory: Path
    pid: int
    started: float
    speed: float
    control: str
    operator_ip: str
    endpoints: Mapping[str, Any]
    fresh: bool = False


def start_lab(
    directory: Path,
    *,
    speed: float = 1.0,
    allowance: str | None = None,
    compose: Path | None = None,
    parts: Sequence[str] = ALL_PARTS,
    deadline_s: float = START_DEADLINE_S,
) -> Lab:
    """Start the lab of this folder in the background, and wait until it answers; a lab that runs already is kept.

    ``allowance`` (a name in data/allowances.json) sets the tenancy's limits; None keeps what the folder's lab had.
    ``compose`` says which services run on a new lab's Docker host; None takes the lab's own.
    What a crashed lab left behind is cleaned up. Raises BadInput, and LabNotRunning with the end of lab.log.
    """
    _check(speed, allowance, parts)
    folder = LabDirectory(directory.resolve())
    folder.prepare()
    with folder.starting(deadline_s):
        return _start(folder, speed, allowance, compose, parts, deadline_s)


def _start(
    folder: LabDirectory,
    speed: float,
    allowance: str | None,
    compose: Path | None,
    parts: Sequence[str],
    deadline_s: float,
) -> Lab:
    if folder.holder() is not None:
        running = _wait_for_answer(folder, min(deadline_s, HUNG_AFTER_S))
        if running:
            return running
        _kill_hung(folder)
    process = _spawn(folder, speed, allowance, compose, parts)
    running = _wait_for_answer(folder, deadline_s, ended=lambda: process.poll() is not None)
    if running:
        return replace(running, fresh=running.pid == process.pid)
    if process.poll() is None:
        process.terminate()
        why = f"no answer within {deadline_s:g} s"
    else:
        why = f"exit status {process.returncode}"
    raise LabNotRunning(
        "the lab did not start",
        where=str(folder.path),
        why=f"{why}; the end of its log:\n{folder.log_tail()}",
        next_move=f"see {folder.log_file}",
    )


def stop_lab(directory: Path, *, deadline_s: float = STOP_DEADLINE_S) -> bool:
    """Stop the lab of this folder and wait until it has ended; returns whether one ran. Its state stays."""
    folder = LabDirectory(directory.resolve())
    pid = folder.holder()
    if pid is None:
        if folder.marker.exists():
            _clean_up(folder)
        return False
    status = folder.read_status()
    asked = False
    if status:
        with contextlib.suppress(OSError, ValueError):
            call(str(status["control"]), "/stop", body={})
            asked = True
    if not asked:
        _signal(folder, signal.SIGTERM)
    if not _ended(folder, deadline_s):
        _kill_hung(folder)
    _clean_up(folder)  # it may have been dying of something else when we asked, and left its helper behind
    return True


def lab_status(directory: Path) -> dict[str, Any]:
    """What the running lab says of itself (parts, counts, uptime, faults, memory, endpoints). Raises LabNotRunning."""
    lab = running_lab(directory)
    return {**ask(lab, "/status"), "directory": str(lab.directory), "control": lab.control}


def running_lab(directory: Path) -> Lab:
    """The lab of this folder. Raises LabNotRunning when it doesn't answer."""
    folder = LabDirectory(directory.resolve())
    lab = _answering(folder)
    if lab is None:
        raise LabNotRunning("the lab is not running", where=str(folder.path), next_move="hybridlab lab start")
    return lab


def ask(lab: Lab, path: str, *, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """One request to the lab's control port: GET, or POST with a body. Raises BadInput for what it refuses."""
    try:
        return call(lab.control, path, body=body)
    except urllib.error.HTTPError as error:
        raise BadInput("the lab refused", where=path.partition("?")[0], why=_reason(error)) from error
    except OSError as error:
        raise LabNotRunning(
            "the lab stopped answering", where=str(lab.directory), why=str(error), next_move="hybridlab lab start"
        ) from error


def call(control: str, path: str, *, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(control + path, data=data, headers={"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback never goes through a proxy
    with opener.open(request, timeout=ANSWER_DEADLINE_S) as answer:
        found: dict[str, Any] = json.loads(answer.read())
    return found


def _reason(error: urllib.error.HTTPError) -> str:
    text = error.read().decode(errors="replace")
    try:
        return str(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError):
        return text or error.reason


# -- starting ----------------------------------------------------------------------------------------------------------
def _check(speed: float, allowance: str | None, parts: Sequence[str]) -> None:
    if not 0.01 <= speed <= 1000:
        raise BadInput(f"speed {speed:g} is not between 0.01 and 1000")
    known = [entry["name"] for entry in _allowances()]
    if allowance is not None and allowance not in known:
        raise _unknown("allowance", allowance, known)
    for part in parts:
        if part not in ALL_PARTS:
            raise _unknown("part", part, ALL_PARTS)


def _unknown(what: str, name: str, known: Sequence[str]) -> BadInput:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
    return BadInput(f"unknown {what} {name!r}", next_move=hint)


def _allowances() -> list[dict[str, Any]]:
    text = resources.files("hybridlab.data").joinpath("allowances.json").read_text(encoding="utf-8")
    found: list[dict[str, Any]] = json.loads(text)["allowances"]
    return found


def _spawn(
    folder: LabDirectory, speed: float, allowance: str | None, compose: Path | None, parts: Sequence[str]
) -> subprocess.Popen[bytes]:
    """The lab as a session of its own, so that neither this process' end nor its terminal's reaches it."""
    command = [sys.executable, "-P", "-m", "hybridlab.lab", "--dir", str(folder.path), "--speed", f"{speed:g}"]
    if allowance:
        command += ["--allowance", allowance]
    if compose:
        command += ["--compose", str(compose.resolve())]
    if tuple(parts) != ALL_PARTS:
        command += ["--parts", ",".join(parts)]
    source = str(Path(__file__).resolve().parents[2])  # the lab runs from the same checkout as its starter
    paths = [source, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    log = os.open(folder.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=folder.path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            start_new_session=True,
        )
    finally:
        os.close(log)
    # a caller that lives on (a notebook's kernel) must not be left with a zombie when the lab stops
    threading.Thread(target=process.wait, name="lab reaper", daemon=True).start()
    return process


def _answering(folder: LabDirectory) -> Lab | None:
    """The folder's lab, if its control port answers as the process that holds the lock."""
    status = folder.read_status()
    if not status:
        return None
    try:
        said = call(str(status["control"]), "/status")
    except (OSError, ValueError):
        return None
    if said.get("pid") != status["pid"]:
        return None  # a leftover lab.json, and its port belongs to somebody else now
    return Lab(
        directory=folder.path,
        pid=int(status["pid"]),
        started=float(status["started"]),
        speed=float(status["speed"]),
        control=str(status["control"]),
        operator_ip=str(status["operator_ip"]),
        endpoints=status["endpoints"],
    )


def _wait_for_answer(
    folder: LabDirectory, deadline_s: float, *, ended: Callable[[], bool] = lambda: True
) -> Lab | None:
    """Wait for a lab to answer; None when the deadline passes, or when ``ended`` and nobody holds the folder."""

    def look() -> tuple[Lab | None, bool]:
        gone = ended() and folder.holder() is None
        return _answering(folder), gone

    try:
        lab: Lab | None = wait_until(
            look, lambda seen: seen[0] is not None or seen[1], what="the lab", deadline_s=deadline_s, **_QUICKLY
        )[0]
    except DeadlineExceeded:
        return None
    return lab


# -- stopping ----------------------------------------------------------------------------------------------------------
def _signal(folder: LabDirectory, how: signal.Signals) -> None:
    # only the process that holds this folder's lock at this moment: a pid from a file might be somebody else's by now
    pid = folder.holder()
    if pid:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, how)


def _ended(folder: LabDirectory, deadline_s: float) -> bool:
    """Wait until nobody holds the folder; False when the deadline passes first."""
    try:
        wait_until(folder.holder, lambda pid: pid is None, what="the lab's end", deadline_s=deadline_s, **_QUICKLY)
    except DeadlineExceeded:
        return False
    return True


def _clean_up(folder: LabDirectory) -> None:
    """Remove what a lab that was killed could not remove itself."""
    end_leftover(folder.path / "s3.pid", str(folder.path))
    folder.status_file.unlink(missing_ok=True)


def _kill_hung(folder: LabDirectory) -> None:
    """End a lab that holds the folder and doesn't answer. Raises DeadlineExceeded when even that has no effect."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        _signal(folder, how)
        if _ended(folder, 5.0):
            _clean_up(folder)
            return
    raise DeadlineExceeded(
        "a lab that doesn't answer can't be ended",
        where=str(folder.path),
        why=f"process {folder.holder()} holds {folder.path}",
        next_move="end that process by hand",
    )
