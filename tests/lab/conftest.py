"""Labs for the tests of this folder: real background processes in temporary folders."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
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
