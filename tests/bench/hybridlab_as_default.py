"""pytest plugin (``-p hybridlab_as_default``): papermill's default engine is ours; the summary counts its notebooks."""

from __future__ import annotations

from typing import Any

import pytest
from papermill.engines import papermill_engines

from hybridlab.runner.engine import HybridlabEngine

executed = 0


class Counted(HybridlabEngine):
    @classmethod
    def execute_notebook(cls, nb: Any, kernel_name: str, **kwargs: Any) -> Any:
        global executed
        executed += 1
        return super().execute_notebook(nb, kernel_name, **kwargs)


papermill_engines.register(None, Counted)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(f"notebooks executed by the hybridlab engine: {executed}")
