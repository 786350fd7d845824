"""Secrets out of everything a run writes: notebooks, logs, records and reports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hybridlab.masking import all_forms, mask


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
        self._forms = all_forms(values)
        self._signature = signature
        return True

    def text(self, text: str) -> str:
        return mask(text, self._forms)

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
