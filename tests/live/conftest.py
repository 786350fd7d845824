"""Three real machines for the tests of this folder, or a skip that says why there are none."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from machines import LiveMachines, image, live_machines, why_not

sys.path.insert(0, str(Path(__file__).parents[1] / "lab"))  # for the host contract, which both run

NAMES = ("amd-1", "amd-2", "amd-3")


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveMachines]:
    """A bridge without machines."""
    reason = why_not(patience_s=200)
    if reason:
        pytest.skip(reason)
    try:
        image()
    except RuntimeError as error:
        pytest.skip(f"no image of a machine could be made: {error}")
    with live_machines(tmp_path_factory.mktemp("machines")) as made:
        yield made


@pytest.fixture(scope="module")
def machines(rig: LiveMachines) -> LiveMachines:
    """The bridge with three machines, booting."""
    rig.add(NAMES)
    return rig
