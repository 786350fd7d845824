"""For every test: the caller's own hybridlab settings don't reach in (HYBRIDLAB_TEST_… and HYBRIDLAB_OCI_CLI do).

And in which order the files are handed out in parallel (``--dist loadfile --no-loadscope-reorder``): what takes longest
first, and files with live machines apart from each other, because machines share one kernel and one file waits for the
other's to go.
"""

from __future__ import annotations

import os

import pytest

FIRST = (
    "test_bootstrap_live",
    "test_resume",
    "test_life_whole",
    "test_life_killed",
    "test_life",
    "test_refusals_live",
    "test_move",
    "test_own_hosts_live",
)

for _name in list(os.environ):
    if _name.startswith("HYBRIDLAB_") and not _name.startswith(("HYBRIDLAB_TEST_", "HYBRIDLAB_OCI_CLI")):
        del os.environ[_name]


def _rank(item: pytest.Item) -> int:
    return next((rank for rank, name in enumerate(FIRST) if item.path.stem.startswith(name)), len(FIRST))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_rank)
