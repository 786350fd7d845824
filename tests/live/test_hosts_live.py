"""The host contract of tests/lab, unchanged, on a real machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from machines import BOOT_DEADLINE_S, LiveMachines
from test_hosts import *  # noqa: F403 - every test of the contract is a test of this module too
from test_hosts import Target

from hybridlab.drivers.ssh import SshHosts


@pytest.fixture(scope="module")  # type: ignore[no-redef]
def target(rig: LiveMachines, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    machine = rig.add(["contract"])[0]
    known_hosts: Path = tmp_path_factory.mktemp("contract") / "known_hosts"
    with SshHosts(lambda host, port: (host, port), known_hosts, rig.key) as driver:
        driver.wait_for_ssh(machine.host, BOOT_DEADLINE_S)
        yield Target(machine.host, driver)
