"""The SSH driver: trust, loss and return, streams."""

from __future__ import annotations

import hashlib
import itertools
import threading
import time
import tracemalloc
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import asyncssh
import pytest
from hosts_lab import LabHosts, eventually, lab_hosts

from hybridlab.drivers.ssh import SshHosts
from hybridlab.errors import AuthFailed, BadInput, CommandFailed, DeadlineExceeded, Interrupted, Unreachable
from hybridlab.models import CommandResult, HostAddress


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


def test_first_contact_is_told_and_pinned(lab: LabHosts, host: HostAddress) -> None:
    seen: list[tuple[str, str]] = []
    with lab.driver(on_first_contact=lambda h, fingerprint: seen.append((h.name, fingerprint))) as driver:
        driver.wait_for_ssh(host, 20)
    with lab.driver(on_first_contact=lambda h, fingerprint: seen.append((h.name, fingerprint))) as driver:
        driver.run(host, ["true"])
    assert len(seen) == 1
    assert seen[0][1].startswith("SHA256:")
    known = lab.directory / "known_hosts"
    assert known.read_text().startswith(f"{host.address} ssh-ed25519 ")
    assert known.stat().st_mode & 0o777 == 0o600


def test_another_host_key_is_refused_with_the_next_move(lab: LabHosts, host: HostAddress, driver: SshHosts) -> None:
    driver.close()
    known = lab.directory / "known_hosts"
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode().strip()
    known.write_text(f"{host.address} {other}\n")
    with pytest.raises(AuthFailed) as caught:
        driver.run(host, ["true"])
    assert caught.value.code == "host-key-changed"
    assert str(known) in caught.value.next_move
    with pytest.raises(AuthFailed):
        driver.wait_for_ssh(host, 20)  # at once, not at the deadline
    driver.forget(host)
    assert driver.run(host, ["whoami"]).stdout == "ubuntu\n"


def test_wrong_key_wrong_user_locked_key_and_no_key(lab: LabHosts, host: HostAddress, tmp_path: Path) -> None:
    with lab.driver() as driver:
        driver.wait_for_ssh(host, 20)
        with pytest.raises(AuthFailed, match="right user"):
            driver.run(HostAddress(host.name, host.address, "opc"), ["true"])
    stranger = asyncssh.generate_private_key("ssh-ed25519")
    with lab.driver(key=stranger.export_private_key().decode()) as driver, pytest.raises(AuthFailed, match="refused"):
        driver.run(host, ["true"])
    locked = tmp_path / "locked"
    locked.write_bytes(stranger.export_private_key("pkcs8-pem", passphrase="secret"))
    with lab.driver(key=locked) as driver, pytest.raises(BadInput, match="passphrase"):
        driver.run(host, ["true"])
    with lab.driver(key=tmp_path / "missing") as driver, pytest.raises(BadInput, match="not there"):
        driver.run(host, ["true"])
    with lab.driver(key="nonsense") as driver, pytest.raises(BadInput, match="no SSH private key"):
        driver.run(host, ["true"])


def test_a_lost_answer_is_unknown_and_never_repeated(lab: LabHosts, host: HostAddress, driver: SshHosts) -> None:
    lab.world.faults.ask("ssh-drop", 1, "arm-1 tee -a /tmp/log")
    with pytest.raises(Unreachable, match="whether it took effect is unknown"):
        driver.run(host, ["tee", "-a", "/tmp/log"], stdin=b"x")
    assert driver.run(host, ["cat", "/tmp/log"]).stdout == "x", "the effect happened, once"
    drops = [row for row in lab.rows() if "ssh-drop" in row["detail"]]
    assert [row["target"] for row in drops] == ["arm-1: tee -a /tmp/log"]


def test_a_refused_connection_is_unreachable_and_the_next_one_works(
    lab: LabHosts, host: HostAddress, driver: SshHosts
) -> None:
    driver.close()
    lab.world.faults.ask("ssh-refuse", 2, "arm-1")
    for _ in range(2):
        with pytest.raises(Unreachable):
            driver.run(host, ["true"])
    driver.run(host, ["true"])


def test_a_reboot_is_waited_out(lab: LabHosts, host: HostAddress, driver: SshHosts) -> None:
    before = driver.run(host, ["cat", "/proc/sys/kernel/random/boot_id"]).stdout
    driver.run(host, ["systemctl", "reboot"], sudo=True, check=False)
    boots = lab.part.host(lab.machine().id).state.boots
    eventually(lambda: lab.part.host(lab.machine().id).state.boots > boots or not _answers(driver, host))
    driver.wait_for_ssh(host, 20)
    assert driver.run(host, ["cat", "/proc/sys/kernel/random/boot_id"]).stdout != before


def _answers(driver: SshHosts, host: HostAddress) -> bool:
    try:
        driver.run(host, ["true"])
    except Unreachable:
        return False
    return True


def test_waiting_for_a_host_that_never_comes_ends_at_the_deadline(lab: LabHosts) -> None:
    with lab.driver() as driver, pytest.raises(DeadlineExceeded, match="nowhere"):
        driver.wait_for_ssh(HostAddress("nowhere", "203.0.113.99"), 0.5)


def test_a_command_that_takes_too_long(host: HostAddress, driver: SshHosts) -> None:
    driver.put(host, _helper(), "/tmp/node_helper.py")
    with pytest.raises(DeadlineExceeded, match="may still be running"):
        driver.run(
            host, ["python3", "/tmp/node_helper.py", "listen", "--tcp", "7000", "--seconds", "20"], timeout_s=0.3
        )
    assert driver.run(host, ["echo", "on"]).stdout == "on\n", "the connection is still good"


def _helper() -> bytes:
    return resources.files("hybridlab.data").joinpath("node_helper.py").read_bytes()


def test_streams_both_ways(host: HostAddress, driver: SshHosts) -> None:
    block = bytes(range(256)) * 1024
    sent, got = hashlib.sha256(), hashlib.sha256()

    def source() -> Iterator[bytes]:
        for _ in range(120):
            sent.update(block)
            yield block

    result = driver.stream(host, ["cat"], stdin=source(), stdout=got.update)
    assert (result.exit_status, result.stdout) == (0, "")
    assert sent.digest() == got.digest()


def test_a_slow_receiver_holds_the_sender_up(host: HostAddress, driver: SshHosts) -> None:
    driver.run(host, ["fallocate", "-l", "120M", "/tmp/big"])
    got = 0

    def slow(piece: bytes) -> None:
        nonlocal got
        got += len(piece)
        time.sleep(0.001)

    tracemalloc.start()
    try:
        driver.stream(host, ["cat", "/tmp/big"], stdout=slow)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert got == 120 << 20
    assert peak < 40 << 20, "both ends are in this process, and together they must not hold a third of it"


def test_a_failing_source_or_receiver_ends_the_stream(host: HostAddress, driver: SshHosts) -> None:
    def broken() -> Iterator[bytes]:
        yield b"x" * 100000
        raise RuntimeError("the source broke")

    def full(_: bytes) -> None:
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="the source broke"):
        driver.stream(host, ["cat"], stdin=broken())
    with pytest.raises(RuntimeError, match="the disk is full"):
        driver.stream(host, ["cat"], stdin=itertools.repeat(b"x" * 100000, 300), stdout=full)
    assert driver.run(host, ["echo", "on"]).stdout == "on\n"


def test_a_stream_whose_command_fails_says_so(host: HostAddress, driver: SshHosts) -> None:
    with pytest.raises(CommandFailed, match="No such file"):
        driver.stream(host, ["cat", "/no/such"], stdin=itertools.repeat(b"y" * 65536, 500))


def test_a_drop_during_a_stream_is_unknown(lab: LabHosts, host: HostAddress, driver: SshHosts) -> None:
    lab.world.faults.ask("ssh-drop", 1, "arm-1 tee /tmp/streamed")
    with pytest.raises(Unreachable, match="unknown"):
        driver.stream(host, ["tee", "/tmp/streamed"], stdin=iter([b"abc"]))
    assert driver.run(host, ["cat", "/tmp/streamed"]).stdout == "abc"


def test_one_host_down_does_not_hide_the_others(lab: LabHosts, host: HostAddress, driver: SshHosts) -> None:
    gone = HostAddress("gone", "203.0.113.98")
    found = driver.run_all([host, gone], ["whoami"])
    assert found[0] == CommandResult(0, "ubuntu\n", "")
    assert isinstance(found[1], Unreachable)


def test_a_file_upload_streams_from_disk(host: HostAddress, driver: SshHosts, tmp_path: Path) -> None:
    path = tmp_path / "big"
    path.write_bytes(hashlib.shake_128(b"big").digest(9_000_000))
    assert driver.put(host, path, "/tmp/big", mode=0o755)
    assert not driver.put(host, path, "/tmp/big", mode=0o755)
    assert driver.run(host, ["stat", "-c", "%s %a", "/tmp/big"]).stdout == "9000000 755\n"
    with pytest.raises(BadInput):
        driver.put(host, tmp_path / "missing", "/tmp/other")


def test_ctrl_c_ends_what_other_threads_wait_for_and_lets_them_clean_up(host: HostAddress, driver: SshHosts) -> None:
    driver.put(host, _helper(), "/tmp/node_helper.py")
    long = ["python3", "/tmp/node_helper.py", "listen", "--tcp", "7000", "--seconds", "60"]
    said: list[str] = []

    def work() -> None:
        try:
            driver.run(host, long, timeout_s=120)
        except Interrupted as error:
            said.append(error.why)
            said.append(driver.run(host, ["echo", "cleaned up"]).stdout)

    thread = threading.Thread(target=work)
    thread.start()
    eventually(lambda: ":7000" in driver.run(host, ["ss", "-ltnH"]).stdout)
    begun = time.monotonic()
    driver.interrupt()
    thread.join(20)
    assert not thread.is_alive()
    assert time.monotonic() - begun < 20, "a minute was left"
    assert said == ["whether it took effect is unknown", "cleaned up\n"]
    assert driver.run(host, ["echo", "on"]).stdout == "on\n", "who said so goes on"


def test_a_thread_between_two_commands_does_not_begin_the_next(host: HostAddress, driver: SshHosts) -> None:
    between, gate, said = threading.Event(), threading.Event(), list[str]()

    def work() -> None:
        driver.run(host, ["true"])
        between.set()
        gate.wait(20)
        try:
            driver.run(host, ["tee", "/tmp/too-late"], stdin=b"x")
        except Interrupted as error:
            said.append(error.why)

    thread = threading.Thread(target=work)
    thread.start()
    assert between.wait(20)
    driver.interrupt()
    gate.set()
    thread.join(20)
    assert said == ["nothing was done"]
    assert driver.run(host, ["test", "-e", "/tmp/too-late"], check=False).exit_status == 1


def test_each_host_has_its_own_key(lab: LabHosts, tmp_path: Path) -> None:
    other = tmp_path / "other"
    key = asyncssh.generate_private_key("ssh-ed25519")
    key.write_private_key(other)
    theirs = {"id": "ocid1.instance.arm-2", "private_ip": "10.0.0.12", "public_ip": "203.0.113.12"}
    first = lab.power_on(lab.machine())
    second = lab.power_on(lab.machine("arm-2", authorized_keys=(key.export_public_key().decode(),), **theirs))
    with lab.driver(key=lambda host: other if host.name == "arm-2" else lab.key) as driver:
        for host in (first, second):
            driver.wait_for_ssh(host, 20)
            assert driver.run(host, ["hostname"]).stdout == f"{host.name}\n"
    with lab.driver(key=lambda host: lab.key) as driver, pytest.raises(AuthFailed, match=r"nodes\[\]\.key_file"):
        driver.run(second, ["true"])
