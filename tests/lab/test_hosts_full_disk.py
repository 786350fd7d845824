"""A disk of the lab's machines that fills up: SFTP and commands alike stop where it is full, and rm makes room."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts_lab import LabHosts, lab_hosts

from hybridlab.drivers.ssh import SshHosts
from hybridlab.errors import CommandFailed, Conflict
from hybridlab.models import HostAddress

FILLER = "/var/log/filler"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[LabHosts]:
    with lab_hosts(tmp_path / "lab") as made:
        yield made


@pytest.fixture
def host(lab: LabHosts) -> HostAddress:
    return lab.power_on(lab.machine())


@pytest.fixture
def driver(lab: LabHosts, host: HostAddress) -> Iterator[SshHosts]:
    with lab.driver() as made:
        made.wait_for_ssh(host, 20)
        yield made


def free(driver: SshHosts, host: HostAddress) -> int:
    return int(driver.run(host, ["df", "--output=avail", "-B1", "/"]).stdout.split()[-1])


def test_nothing_more_fits_over_sftp_or_by_commands(lab: LabHosts, driver: SshHosts, host: HostAddress) -> None:
    told = lab.world.faults.ask("disk-full", 1, "arm-1")
    assert told[0].startswith("arm-1: /var/log/filler takes ")
    assert free(driver, host) == 0
    with pytest.raises(Conflict, match="the host's disk is full") as sftp:
        driver.put(host, b"x" * 100, "/tmp/over-sftp")
    assert "free space on the host" in sftp.value.next_move
    for argv in (
        ["tee", "/tmp/by-tee"],
        ["cp", "/etc/passwd", "/tmp/by-cp"],
        ["fallocate", "-l", "1M", "/tmp/by-fall"],
    ):
        with pytest.raises(CommandFailed, match="No space left on device") as shell:
            driver.run(host, argv, stdin=b"x" * 100)
        assert shell.value.what == "the host's disk is full"
        assert "free space on the host" in shell.value.next_move
    left = driver.run(host, ["ls", "-A", "/tmp"]).stdout.split()
    assert not [name for name in left if name.startswith(".hybridlab-")], "scratch files are cleaned up"


def test_what_fits_is_written_and_the_rest_is_not(lab: LabHosts, driver: SshHosts, host: HostAddress) -> None:
    lab.world.faults.ask("disk-full", 1, "arm-1 20000")
    assert driver.put(host, b"y" * 9000, "/tmp/small")
    with pytest.raises(Conflict, match="disk is full"):
        driver.put(host, b"y" * 90000, "/tmp/large")
    assert driver.run(host, ["test", "-e", "/tmp/large"], check=False).exit_status == 1
    assert driver.run(host, ["tee", "/tmp/small"], stdin=b"z" * 9000).stdout == "z" * 9000, "no more than before"


def test_removing_the_file_makes_room_and_a_restart_of_the_lab_does_not(tmp_path: Path) -> None:
    with lab_hosts(tmp_path / "lab") as lab:
        host = lab.power_on(lab.machine())
        with lab.driver() as driver:
            driver.wait_for_ssh(host, 20)
            lab.world.faults.ask("disk-full", 1, "arm-1")
    with lab_hosts(tmp_path / "lab") as lab, lab.driver() as driver:
        driver.wait_for_ssh(host, 20)
        with pytest.raises(Conflict, match="disk is full"):
            driver.put(host, b"x" * 100, "/tmp/file")
        driver.run(host, ["rm", FILLER], sudo=True)
        assert driver.put(host, b"x" * 100, "/tmp/file")


def test_a_swap_file_takes_room(driver: SshHosts, host: HostAddress) -> None:
    before = free(driver, host)
    driver.run(host, ["fallocate", "-l", "2G", "/swap"], sudo=True)
    assert before - free(driver, host) >= 2 << 30
    driver.run(host, ["rm", "/swap"], sudo=True)
    assert abs(before - free(driver, host)) < 1 << 20


@pytest.mark.parametrize("match", ["", "arm-9", "arm-1 lots"])
def test_a_match_that_names_no_machine(lab: LabHosts, host: HostAddress, match: str) -> None:
    with pytest.raises(LookupError, match="HOST BYTES"):
        lab.world.faults.ask("disk-full", 1, match)
