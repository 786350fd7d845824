"""Helper processes of the lab that outlived it: found by their pid file, ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

END_DEADLINE_S = 3.0


def command_line(pid: int) -> str | None:
    """The command line of a process; None when there is no such process (or a zombie)."""
    proc = Path(f"/proc/{pid}/cmdline")
    if Path("/proc/self/cmdline").exists():
        try:
            return proc.read_bytes().replace(b"\0", b" ").decode(errors="replace").strip() or None
        except OSError:
            return None
    try:
        asked = subprocess.run(
            ["ps", "-ww", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout.strip() or None


def end_leftover(pid_file: Path, mark: str) -> bool:
    """End the process that a pid file names, if its command line still holds ``mark``; returns whether it was there.

    ``mark`` guards against a pid that meanwhile belongs to somebody else.
    """
    try:
        pid = int(pid_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    found = mark in (command_line(pid) or "")
    if found:
        for how in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, how)
            end = time.monotonic() + END_DEADLINE_S
            while mark in (command_line(pid) or "") and time.monotonic() < end:
                time.sleep(0.02)
    pid_file.unlink(missing_ok=True)
    return found
