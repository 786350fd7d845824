"""Secrets out of everything a run writes: notebooks, logs, records and reports."""

from __future__ import annotations

import base64
import json
import urllib.parse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

MASK = "***"
SHORTEST = 6
"""A shorter value is left alone: masking ``1`` or ``yes`` everywhere would make a record unreadable."""
SHORTEST_LINE = 24
"""Lines of a longer secret (a PEM key) that are masked on their own too."""


class Redactor:
    """Masks every value kept in some ``secrets/`` folders, also as base64 and in URLs.

    The folders are read again whenever they changed, so that a secret made a moment ago is masked as well.
    """

    def __init__(self, folders: Sequence[Path] = (), *, root: Path | None = None) -> None:
        self._fixed = tuple(folders)
        self._root = root
        self._signature: tuple[object, ...] = ()
        self._forms: tuple[str, ...] = ()

    def _folders(self) -> list[Path]:
        # with a root, all clusters under it: what a bare ``papermill --engine hybridlab`` has to go by
        return [*self._fixed, *(sorted(self._root.glob("state/*/secrets")) if self._root else ())]

    def refresh(self) -> bool:
        """Read the secrets again if they changed; returns whether they did."""
        files = [p for folder in self._folders() for p in _secret_files(folder)]
        signature = tuple((str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in files)
        if signature == self._signature:
            return False
        values = [p.read_bytes().decode("utf-8", errors="replace") for p in files]
        # longest first: a form that contains another one must go as a whole
        self._forms = tuple(sorted({f for v in values for f in forms(v)}, key=len, reverse=True))
        self._signature = signature
        return True

    def text(self, text: str) -> str:
        for form in self._forms:
            if form in text:
                text = text.replace(form, MASK)
        return text

    def clean(self, value: Any) -> Any:
        """Mask in place in nested lists and mappings (their keys too); returns the value, a new one for a string."""
        if not self._forms:
            return value
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            value[:] = [self.clean(item) for item in value]
        elif isinstance(value, dict):
            for key in list(value):
                cleaned = self.clean(value[key])
                shown = self.text(key) if isinstance(key, str) else key
                if shown != key:
                    del value[key]
                value[shown] = cleaned
        return value

    def leaks(self, folder: Path) -> list[Path]:
        """Files below a folder in which a secret is left."""
        self.refresh()
        needles = [form.encode() for form in self._forms]
        found = []
        for path in sorted(folder.rglob("*")):
            if needles and path.is_file() and path.name != "plotly.min.js":
                data = path.read_bytes()
                if any(needle in data for needle in needles):
                    found.append(path)
        return found


def _secret_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    # a name with a leading dot is another process's half-written file
    return sorted(p for p in folder.iterdir() if p.suffix != ".pub" and not p.name.startswith(".") and p.is_file())


def forms(value: str) -> Iterable[str]:
    """The ways a secret value may appear in text: plain, by line, in JSON, in a URL, in base64 at any offset."""
    plain = value.strip()
    if len(plain) < SHORTEST:
        return
    for text in {value, plain}:
        yield text
        yield json.dumps(text)[1:-1]
        yield json.dumps(text, ensure_ascii=False)[1:-1]
        yield urllib.parse.quote(text, safe="")
        yield urllib.parse.quote_plus(text)
        yield base64.b64encode(text.encode()).decode()
        yield base64.urlsafe_b64encode(text.encode()).decode()
    yield repr(plain)[1:-1]
    yield from _base64_inside(plain.encode())
    lines = plain.splitlines()
    if len(lines) > 1:
        yield from (line.strip() for line in lines if len(line.strip()) >= SHORTEST_LINE and "-----" not in line)


def _base64_inside(value: bytes) -> Iterable[str]:
    """What is the same in the base64 of any text that contains the value, e.g. of ``user:password``."""
    for offset in range(3):
        encoded = base64.b64encode(bytes(offset) + value).decode().rstrip("=")
        first = -(-offset * 8 // 6)
        last = (offset + len(value)) * 8 // 6
        middle = encoded[first:last]
        if len(middle) >= SHORTEST:
            yield middle
            yield middle.replace("+", "-").replace("/", "_")
