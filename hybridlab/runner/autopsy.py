"""Asked in the kernel after a cell failed: what the error was, as data rather than as a traceback."""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path

from hybridlab.errors import HybridlabError

EXPRESSION = "__import__('hybridlab.runner.autopsy', fromlist=['last_error']).last_error()"


def last_error() -> str:
    """The last exception of this interpreter as JSON, or ``null``."""
    error = getattr(sys, "last_value", None)
    if error is None:
        return "null"
    name = type(error).__name__
    if isinstance(error, HybridlabError):
        return json.dumps(
            {
                "error": name,
                "what": error.what,
                "where": error.where,
                "why": error.why,
                "next_move": error.next_move,
                "exit_code": error.exit_code,
            }
        )
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if f"{Path(__file__).parent.parent}/" in f.filename]
    return json.dumps(
        {
            "error": name,
            "what": f"{name}: {error}" if str(error) else name,
            "where": f"{Path(ours[-1].filename).name}, line {ours[-1].lineno}" if ours else "",
            "next_move": "the notebook has the traceback",
        }
    )
