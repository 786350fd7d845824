"""A lab that runs in the background, as tests use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from hybridlab.lab.process import Lab, ask, lab_status


@dataclass(frozen=True)
class RunningLab:
    """A lab under test. ``dir`` is what HYBRIDLAB_LAB_DIR would name."""

    lab: Lab

    @property
    def dir(self) -> Path:
        return self.lab.directory

    @property
    def endpoints(self) -> Mapping[str, Any]:
        return self.lab.endpoints

    def status(self) -> dict[str, Any]:
        return lab_status(self.dir)

    def fault(self, name: str, *, count: int = 1, match: str = "") -> list[str]:
        """Ask for a fault; returns what was done at once."""
        done: list[str] = ask(self.lab, "/faults", body={"name": name, "count": count, "match": match})["done"]
        return done

    def dial(self, host: str, port: int) -> tuple[str, int]:
        answer = ask(self.lab, "/dial?" + urlencode({"host": host, "port": port}))
        return answer["state"], answer["port"]

    def requests(self, *, since: float = 0.0, part: str = "", mutating: bool = False) -> list[dict[str, Any]]:
        query = urlencode({"since": since, "part": part, "mutating": int(mutating)})
        rows: list[dict[str, Any]] = ask(self.lab, f"/log?{query}")["rows"]
        return rows
