"""Answers of registries on disk: what a digest says never changes; which digest a tag had is kept with its time."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from dataclasses import asdict, replace
from pathlib import Path

from hybridlab.models import ImageBefore, ImageConfig, ImageInfo, Json, Platform

SCHEMA = 1


class Cache:
    """Files under one folder, each written whole; a file that can't be read counts as absent."""

    def __init__(self, folder: Path) -> None:
        self._digests = folder / "digests"
        self._tags = folder / "tags"

    def by_digest(self, digest: str) -> ImageInfo | None:
        found = _read(self._digests / f"{digest.replace(':', '-')}.json")
        if found is None:
            return None
        try:
            info = found["info"]
            return ImageInfo(
                reference=str(info["reference"]),
                known=True,
                digest=str(info["digest"]),
                index=bool(info["index"]),
                platforms=tuple(Platform(**p) for p in info["platforms"]),
                config=_config(info["config"]),
                problem=str(info["problem"]),
                looked_up=str(info["looked_up"]),
            )
        except (LookupError, TypeError):
            return None

    def by_tag(self, canonical: str) -> ImageInfo | None:
        """The last answer for a tag; ``looked_up`` is when the tag was seen to have that digest."""
        found = _read(self._tag_file(canonical))
        if found is None or not isinstance(found.get("digest"), str):
            return None
        info = self.by_digest(found["digest"])
        return replace(info, looked_up=str(found.get("time", "")), before=self._before(found)) if info else None

    def keep(self, canonical: str, info: ImageInfo) -> None:
        """Remember an answer under its digest."""
        path = self._digests / f"{info.digest.replace(':', '-')}.json"
        _write(path, {"schema": SCHEMA, "info": asdict(replace(info, reference=canonical, before=None))})

    def keep_tag(self, canonical: str, digest: str, time: str) -> ImageBefore | None:
        """Remember which digest a tag has; returns what it had before it last moved, if it ever did."""
        path = self._tag_file(canonical)
        last = _read(path) or {}
        before = last.get("before")
        if isinstance(last.get("digest"), str) and last["digest"] != digest:
            before = {"digest": last["digest"], "time": last.get("time", "")}
        row = {"schema": SCHEMA, "reference": canonical, "digest": digest, "time": time, "before": before}
        _write(path, row)
        return self._before(row)

    def _before(self, row: dict[str, Json]) -> ImageBefore | None:
        before = row.get("before")
        if not isinstance(before, dict) or not isinstance(before.get("digest"), str):
            return None
        info = self.by_digest(before["digest"])
        return ImageBefore(info.digest, info.platforms, str(before.get("time", ""))) if info else None

    def _tag_file(self, canonical: str) -> Path:
        return self._tags / f"{hashlib.sha256(canonical.encode()).hexdigest()}.json"


def _config(saved: dict[str, Json]) -> ImageConfig:
    fields: dict[str, Json] = {k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()}
    return ImageConfig(**fields)


def _read(path: Path) -> dict[str, Json] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("schema") == SCHEMA else None


def _write(path: Path, value: Json) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    scratch.write_text(json.dumps(value, indent=1), encoding="utf-8")
    scratch.replace(path)
