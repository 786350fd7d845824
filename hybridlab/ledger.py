"""A cluster's record under ``state/<cluster>/``: the ledger, its lock, the evidence and the secrets."""

from __future__ import annotations

import fcntl
import getpass
import hashlib
import json
import os
import re
import secrets as random_secrets
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from hybridlab.errors import BadInput, Locked, SchemaTooNew
from hybridlab.models import Json
from hybridlab.plan import canonical

SCHEMA = 1
Event = Literal[
    "planned",
    "approved",
    "refused",
    "started",
    "done",
    "failed",
    "unknown",
    "undone",
    "skipped",
    "interrupted",
    "verified",
    "cell",
]


CELL_MARK = '"event": "cell"'
"""What only the row of a cell contains: inside of a text, JSON writes its quotes with backslashes."""


def now_iso() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def who() -> str:
    """The person behind this process, as far as the system knows: ``user on host``."""
    return f"{user_name()} on {socket.gethostname()}"


def user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in many containers
        return str(os.getuid())


@dataclass(frozen=True)
class Row:
    """One line of the ledger. ``step`` is a step's id, or empty for rows of a whole stage."""

    time: str
    run: str
    stage: str
    step: str
    event: Event
    effect: str = "none"
    target: str = ""
    detail: Mapping[str, Json] = field(default_factory=dict)
    schema: int = SCHEMA


class Ledger:
    """The append-only record of a cluster. Each row is flushed to disk before the call returns."""

    def __init__(self, path: Path, *, run: str, redact: Callable[[str], str] = lambda text: text) -> None:
        self.path = path
        self.run = run
        self._redact = redact

    def add(
        self,
        stage: str,
        step: str,
        event: Event,
        *,
        effect: str = "none",
        target: str = "",
        detail: Mapping[str, Json] | None = None,
    ) -> Row:
        row = Row(now_iso(), self.run, stage, step, event, effect, target, detail or {})
        line = self._redact(json.dumps(asdict(row), ensure_ascii=False, default=str))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            _end_torn_line(file.fileno())
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        return row

    def rows(self, *, stage: str | None = None) -> tuple[Row, ...]:
        """All rows of stages and steps, in order. A torn last line (the machine died while writing) is left out."""
        return tuple(r for r in self._read(cells=False) if stage is None or r.stage == stage)

    def cells(self, *, run: str) -> tuple[Row, ...]:
        """How the cells of a run's notebooks ended, in order; ``detail`` as hybridlab.runner.cell_rows writes it."""
        return tuple(r for r in self._read(cells=True) if r.run == run)

    def _read(self, *, cells: bool) -> list[Row]:
        """One kind of rows. There are more of cells than of all else, so they are told apart before they are parsed."""
        if not self.path.exists():
            return []
        rows: list[Row] = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            if (CELL_MARK in line) is not cells:
                continue
            try:
                data = json.loads(line)
            except ValueError:
                continue
            if data.get("schema", 0) > SCHEMA:
                raise SchemaTooNew(
                    "the ledger was written by a newer hybridlab",
                    where=str(self.path),
                    why=f"schema {data['schema']}, this one reads up to {SCHEMA}",
                    next_move="upgrade hybridlab, then run again",
                )
            known = {k: data[k] for k in Row.__dataclass_fields__ if k in data}
            rows.append(Row(**known))
        return rows

    def open_steps(self, stage: str) -> tuple[str, ...]:
        """Steps that were started and have no outcome: their result is unknown and must be looked at."""
        last: dict[str, Event] = {}
        for row in self.rows(stage=stage):
            if row.step and row.event in ("started", "done", "failed", "unknown", "undone", "interrupted"):
                last[row.step] = row.event
        return tuple(step for step, event in last.items() if event in ("started", "unknown", "interrupted"))


def _end_torn_line(fd: int) -> None:
    """Put a line end after a half-written last line, so that the next row stands on a line of its own."""
    size = os.lseek(fd, 0, os.SEEK_END)
    if size and os.pread(fd, 1, size - 1) != b"\n":
        os.write(fd, b"\n")


@contextmanager
def locked(path: Path, *, run: str) -> Iterator[None]:
    """Hold the cluster's lock: one writer at a time. Raises Locked, which says who has it and since when.

    flock is released by the kernel when a holder dies, so a lock is never stale.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 4096, 0).decode(errors="replace").strip() or "an unnamed process"
            raise Locked(
                "another run is changing this cluster",
                where=str(path.parent.name),
                why=holder,
                next_move="wait for it to end, or stop that process",
            ) from None
        who = f"process {os.getpid()} on {socket.gethostname()}, run {run}, since {now_iso()}"
        os.ftruncate(fd, 0)
        os.pwrite(fd, who.encode(), 0)
        yield
    finally:
        os.close(fd)


# -- evidence ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Evidence:
    """Something that can't be looked up again. ``inputs`` is a hash of what it depends on; ``cluster`` whose it is."""

    kind: str
    cluster: str
    made: str
    run: str
    inputs: str
    data: Mapping[str, Json]
    schema: int = SCHEMA

    def age_h(self, now: float) -> float:
        return (now - datetime.fromisoformat(self.made).timestamp()) / 3600


def inputs_hash(value: Json) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:16]


class EvidenceStore:
    """Evidence of one cluster, one JSON file a kind (``benchmark``, ``migrate-checksums``, ``restore-drill``)."""

    def __init__(self, folder: Path, *, cluster: str, run: str) -> None:
        self.folder = folder
        self._cluster = cluster
        self._run = run

    def save(self, kind: str, data: Mapping[str, Json], *, inputs: Json) -> Evidence:
        evidence = Evidence(kind, self._cluster, now_iso(), self._run, inputs_hash(inputs), data)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self.folder / f"{kind}.json", json.dumps(asdict(evidence), indent=1, default=str).encode())
        return evidence

    def load(self, kind: str) -> Evidence | None:
        path = self.folder / f"{kind}.json"
        if not path.exists():
            return None
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.get("schema", 0) > SCHEMA:
            raise SchemaTooNew("evidence was written by a newer hybridlab", where=str(path), next_move="upgrade")
        return Evidence(**data)

    def usable(self, kind: str, *, inputs: Json, max_age_h: float, now: float) -> tuple[Evidence | None, str]:
        """The evidence if it may be relied on, else None and the reason."""
        evidence = self.load(kind)
        if evidence is None:
            return None, "there is none yet"
        if evidence.cluster != self._cluster:
            return None, f"it belongs to another cluster ({evidence.cluster})"
        if evidence.inputs != inputs_hash(inputs):
            return None, "what it was made from has changed"
        age = evidence.age_h(now)
        if age > max_age_h:
            return None, f"it is {age:.0f} h old, more than {max_age_h:g} h"
        return evidence, f"{age:.1f} h old"

    def drop(self, kind: str) -> None:
        (self.folder / f"{kind}.json").unlink(missing_ok=True)


# -- secrets -----------------------------------------------------------------------------------------------------------
class Secret:
    """A value that must not be seen: its repr is masked, ``reveal`` is explicit."""

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__


class SecretStore:
    """``state/<cluster>/secrets/``: 0700, one 0600 file a secret. A secret is written here before its first use."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name):
            raise BadInput(f"not a name for a secret: {name!r}")
        return self.folder / name

    def get(self, name: str) -> Secret | None:
        path = self.path(name)
        return Secret(path.read_text(encoding="utf-8")) if path.exists() else None

    def put(self, name: str, value: str) -> Secret:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomic(self.path(name), value.encode(), mode=0o600)
        return Secret(value)

    def get_or_make(self, name: str, make: Callable[[], str] = lambda: random_secrets.token_urlsafe(24)) -> Secret:
        return self.get(name) or self.put(name, make())

    def drop(self, name: str) -> None:
        self.path(name).unlink(missing_ok=True)

    def values(self) -> tuple[str, ...]:
        """Every secret value, for redaction; public halves (``*.pub``) are not secret."""
        if not self.folder.exists():
            return ()
        return tuple(p.read_text(encoding="utf-8") for p in sorted(self.folder.iterdir()) if p.suffix != ".pub")


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write a file so that a reader sees the old or the new content, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
