"""A budget ARM+AMD Kubernetes cluster as notebooks you can rehearse, run, resume and trust."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hybridlab.cluster import open_cluster as open_cluster
    from hybridlab.ui import figure as figure
    from hybridlab.ui import form as form
    from hybridlab.ui import gate as gate
    from hybridlab.ui import progress as progress
    from hybridlab.ui import show as show
    from hybridlab.ui import view_comparison as view_comparison
    from hybridlab.ui import view_fit as view_fit
    from hybridlab.ui import view_scores as view_scores

__version__ = "0.1.0"

_HOME = {
    "open_cluster": "hybridlab.cluster",
    "form": "hybridlab.ui",
    "show": "hybridlab.ui",
    "gate": "hybridlab.ui",
    "progress": "hybridlab.ui",
    "figure": "hybridlab.ui",
    "view_comparison": "hybridlab.ui",
    "view_fit": "hybridlab.ui",
    "view_scores": "hybridlab.ui",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    """Import a name when it is first used, so that ``import hybridlab`` costs nothing."""
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
