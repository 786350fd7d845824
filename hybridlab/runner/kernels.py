"""Kernels for a run: one a runbook, over IPC sockets, the next one booting while the one before works."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import ensure_async, run_sync

from hybridlab.runner.leftovers import OwnFolder

log = logging.getLogger(__name__)

WARM_UP = "__import__('hybridlab.runner.in_kernel', fromlist=['prepare']).prepare()"
"""Run by a kernel while nobody waits for it, so that the first cell doesn't pay for the imports."""


class Kernels:
    """Started, handed out and ended here. Use as a context manager: nothing is left running."""

    def __init__(self, *, env: Mapping[str, str], cwd: Path) -> None:
        self._env = dict(env)
        self._cwd = cwd
        # a socket's path may have 107 characters at most: a short folder of our own, not the run's
        self._folder = OwnFolder()
        self._count = 0
        self._ready: dict[str, Any] = {}
        self._running: list[Any] = []

    def __enter__(self) -> Kernels:
        return self

    def __exit__(self, *_: object) -> None:
        for manager in [*self._ready.values(), *self._running]:
            self._end(manager)
        self._folder.remove()

    def prepare(self, name: str) -> None:
        """Let a kernel boot for whoever takes one of this name next."""
        if name not in self._ready:
            self._ready[name] = self._start(name)

    def take(self, name: str) -> Any:
        """A kernel of this name: the prepared one if it still lives, else a new one."""
        manager = self._ready.pop(name, None)
        if manager is not None and not _alive(manager):
            self._end(manager)
            manager = None
        manager = manager or self._start(name)
        self._running.append(manager)
        return manager

    def give_back(self, manager: Any) -> None:
        """The runbook is over: end its kernel at once, with whatever threads it left."""
        self._running.remove(manager)
        self._end(manager)

    def _start(self, name: str) -> Any:
        self._count += 1
        manager = AsyncKernelManager(
            kernel_name=name,
            transport="ipc",
            ip=str(self._folder.path / f"k{self._count}"),
            connection_file=str(self._folder.path / f"k{self._count}.json"),
        )
        arguments = [f"--IPKernelApp.exec_lines={WARM_UP}"] if name == "python3" else []

        async def start() -> None:
            await manager.start_kernel(env=self._env, cwd=str(self._cwd), extra_arguments=arguments)

        run_sync(start)()
        return manager

    def _end(self, manager: Any) -> None:
        async def end() -> None:
            if manager.has_kernel:
                await ensure_async(manager.shutdown_kernel(now=True))
            else:
                await ensure_async(manager.cleanup_resources())

        with suppress(RuntimeError):
            run_sync(end)()


def _alive(manager: Any) -> bool:
    async def alive() -> bool:
        return bool(await ensure_async(manager.is_alive()))

    return bool(run_sync(alive)())
