"""Labs for the tests of this folder: real background processes in temporary folders."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from life import Life
from running_lab import RunningLab

from hybridlab.lab.process import start_lab, stop_lab

SPEED = 20.0


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    """The whole lab, shared by all tests of a session: don't stop it, and clean up what you make in it."""
    directory = tmp_path_factory.mktemp("lab")
    yield RunningLab(start_lab(directory, speed=SPEED))
    stop_lab(directory)


@pytest.fixture(scope="session")
def store_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    """A lab of registry and S3 only."""
    directory = tmp_path_factory.mktemp("store-lab")
    yield RunningLab(start_lab(directory, speed=SPEED, parts=["registry", "s3"]))
    stop_lab(directory)


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    """A clone with a lab of its own that has just started: nothing is in it. Shared by the tests of a module."""
    with _alone():
        life = Life(tmp_path_factory.mktemp("home"))
        life.start()
        yield life
        life.stop()


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Life]:
    """As ``life``, for one test."""
    with _alone():
        life = Life(tmp_path / "home")
        life.start()
        yield life
        life.stop()


@contextmanager
def _alone() -> Iterator[None]:
    """Without what the tester's shell says of a lab or a clone."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HOME", "LAB_DIR", "APPROVE", "SET", "RUN", "LOCKED"):
            patch.delenv(f"HYBRIDLAB_{name}", raising=False)
        yield
