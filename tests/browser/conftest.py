"""A browser for the tests of this folder; they skip where there is none."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import Chromium, find_chromium

sys.path.append(str(Path(__file__).parent.parent / "unit"))


@pytest.fixture(scope="session")
def browser() -> Iterator[Chromium]:
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium: apt install chromium, or HYBRIDLAB_CHROMIUM=its path")
    with Chromium(program) as chromium:
        yield chromium
