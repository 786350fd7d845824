"""The papermill engine ``hybridlab``, as papermill finds it by its entry point.

papermill loads every engine while it is being imported itself, so this module imports nothing of papermill's.
"""

from __future__ import annotations

from typing import Any


class HybridlabEngine:
    """papermill engine with a truthful record (see hybridlab.runner.record).

    Engine arguments besides papermill's: ``deadline_s`` for the whole notebook, ``km`` a kernel started before,
    ``redactor``, ``watch``, ``told``, ``make_room`` for when a save fails, and ``records``, a list that the Record is
    appended to before anything runs.
    """

    @classmethod
    def execute_notebook(cls, nb: Any, kernel_name: str, **kwargs: Any) -> Any:
        from hybridlab.runner.execution import execute_notebook

        return execute_notebook(nb, kernel_name, **kwargs)

    @classmethod
    def nb_kernel_name(cls, nb: Any, name: str | None = None) -> Any:
        from papermill.utils import nb_kernel_name

        return nb_kernel_name(nb, name)

    @classmethod
    def nb_language(cls, nb: Any, language: str | None = None) -> Any:
        from papermill.utils import nb_language

        return nb_language(nb, language)
