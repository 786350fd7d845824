"""Where things are: the folder with params/, and the lab's folder under it."""

from __future__ import annotations

import os
from pathlib import Path

from hybridlab.errors import BadInput


def find_root(start: Path | None = None) -> Path:
    """HYBRIDLAB_HOME, else the nearest parent folder with params/. Raises BadInput where there is none."""
    home = os.environ.get("HYBRIDLAB_HOME")
    if home:
        return Path(home).resolve()
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / "params").is_dir():
            return folder
    raise BadInput(
        "no params/ folder here or above", where=str(here), next_move="go to your clone, or set HYBRIDLAB_HOME"
    )


def lab_directory(root: Path) -> Path:
    """HYBRIDLAB_LAB_DIR, else ``.lab`` under the root."""
    return Path(os.environ.get("HYBRIDLAB_LAB_DIR") or root / ".lab").resolve()
