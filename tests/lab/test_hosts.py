"""What a host does when told over SSH: the same on the lab's hosts and on real ones.

The contract tests take a ``Target``: an address and a driver. They ask for nothing that only the lab has, and leave
the host as they found it. The lab's own behaviour (power, faults, K3s' stand-in) is in test_hosts_lab.py.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hosts_lab import lab_hosts

from hybridlab.drivers.ssh import SshHosts
from hybridlab.errors import CommandFailed, NotFound, Refused
from hybridlab.models import CommandResult, HostAddress

REJECT_INPUT = ["INPUT", "-j", "REJECT", "--reject-with", "icmp-host-prohibited"]
RULES = "/etc/iptables/rules.v4"


@dataclass
class Target:
    host: HostAddress
    driver: SshHosts

    def run(self, *argv: str, sudo: bool = False, check: bool = True, stdin: bytes | None = None) -> CommandResult:
        return self.driver.run(self.host, list(argv), sudo=sudo, check=check, stdin=stdin)

    def out(self, *argv: str, sudo: bool = False) -> str:
        return self.run(*argv, sudo=sudo).stdout.strip()


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with lab_hosts(tmp_path_factory.mktemp("lab")) as lab, lab.driver() as driver:
        host = lab.power_on(lab.machine())
        driver.wait_for_ssh(host, 20)
        yield Target(host, driver)


@pytest.fixture
def scratch(target: Target) -> Iterator[str]:
    path = f"/tmp/hybridlab-test-{secrets.token_hex(4)}"
    target.run("mkdir", path)
    yield path
    target.run("rm", "-rf", path, sudo=True)


def test_says_who_and_what_it_is(target: Target) -> None:
    assert target.out("uname", "-m") in ("aarch64", "x86_64")
    assert target.out("whoami") == target.host.user
    assert target.out("id", "-u", sudo=True) == "0"
    assert int(target.out("nproc")) >= 1
    assert target.out("dpkg", "--print-architecture") in ("arm64", "amd64")
    assert "ID=ubuntu" in target.out("cat", "/etc/os-release") or "ID=debian" in target.out("cat", "/etc/os-release")


def test_memory_and_disk_are_numbers(target: Target) -> None:
    memory = next(line for line in target.out("free", "-b").splitlines() if line.startswith("Mem:"))
    assert int(memory.split()[1]) > 256 * 1024**2
    size, avail = target.out("df", "--output=size,avail", "-B1", "/").splitlines()[1].split()
    assert int(size) > int(avail) > 0


def test_an_unknown_command_is_127(target: Target) -> None:
    result = target.run("no-such-command-here", check=False)
    assert result.exit_status == 127
    assert "command not found" in result.stderr


def test_words_reach_the_command_unchanged(target: Target) -> None:
    words = ["a b", "$HOME", "x;y", "`id`", "it's", '"', "*", "ü", ""]
    assert target.out("echo", *words) == " ".join(words).strip()


def test_a_failed_command_raises_with_its_status_and_stderr(target: Target) -> None:
    with pytest.raises(CommandFailed) as caught:
        target.run("cat", "/no/such/file")
    assert caught.value.exit_status == 1
    assert "No such file or directory" in str(caught.value)
    assert target.host.name in str(caught.value)


def test_stdin_reaches_the_command(target: Target, scratch: str) -> None:
    data = bytes(range(256)) * 5000
    target.run("tee", f"{scratch}/file", stdin=data)
    assert target.driver.get(target.host, f"{scratch}/file") == data


def test_put_writes_once_and_says_whether_it_changed(target: Target, scratch: str) -> None:
    path = f"{scratch}/settings"
    assert target.driver.put(target.host, b"one\n", path, mode=0o600)
    assert not target.driver.put(target.host, b"one\n", path, mode=0o600)
    assert target.driver.put(target.host, b"one\n", path, mode=0o640), "a mode alone is a change"
    assert target.driver.put(target.host, b"two\n", path, mode=0o640)
    assert target.out("stat", "-c", "%a %U %s", path) == f"640 {target.host.user} 4"
    assert target.driver.get(target.host, path) == b"two\n"
    assert target.out("ls", "-A", scratch) == "settings", "no scratch file may be left"


def test_put_with_sudo_gives_the_file_to_root(target: Target, scratch: str) -> None:
    path = f"{scratch}/below/secret"
    assert target.driver.put(target.host, b"x", path, mode=0o600, sudo=True)
    assert not target.driver.put(target.host, b"x", path, mode=0o600, sudo=True)
    assert target.out("stat", "-c", "%a %U:%G", path, sudo=True) == "600 root:root"
    with pytest.raises(CommandFailed, match="Permission denied"):
        target.driver.get(target.host, path)
    assert target.driver.get(target.host, path, sudo=True) == b"x"
    target.run("chown", target.host.user, path, sudo=True)
    assert target.driver.put(target.host, b"x", path, mode=0o600, sudo=True), "another owner is a change"


def test_a_user_can_not_write_for_root(target: Target) -> None:
    with pytest.raises(Refused, match="Permission denied"):
        target.driver.put(target.host, b"x", "/etc/hybridlab-test")
    assert target.run("test", "-e", "/etc/hybridlab-test", check=False).exit_status == 1


def test_put_makes_missing_folders(target: Target, scratch: str) -> None:
    assert target.driver.put(target.host, b"x", f"{scratch}/missing/folder/file")
    assert target.out("stat", "-c", "%F %U", f"{scratch}/missing/folder") == f"directory {target.host.user}"
    with pytest.raises(CommandFailed, match="Permission denied"):
        target.driver.put(target.host, b"x", "/etc/hybridlab-test/file")


def test_get_of_a_missing_file_is_not_found(target: Target) -> None:
    with pytest.raises(NotFound):
        target.driver.get(target.host, "/etc/no-such-file")


def test_install_copies_with_owner_and_mode(target: Target, scratch: str) -> None:
    target.driver.put(target.host, b"data", f"{scratch}/from")
    target.run("install", "-m", "0600", "-o", "root", "-g", "root", f"{scratch}/from", f"{scratch}/to", sudo=True)
    assert target.out("stat", "-c", "%a %u %g", f"{scratch}/to") == "600 0 0"
    assert target.driver.get(target.host, f"{scratch}/to", sudo=True) == b"data"


def test_file_commands_agree_with_each_other(target: Target, scratch: str) -> None:
    target.run("tee", f"{scratch}/a", stdin=b"hello")
    target.run("cp", f"{scratch}/a", f"{scratch}/b")
    target.run("chmod", "u+x,go-r", f"{scratch}/b")
    assert target.out("stat", "-c", "%a", f"{scratch}/b") in ("700", "711")
    target.run("ln", "-s", "b", f"{scratch}/link")
    assert target.out("readlink", f"{scratch}/link") == "b"
    assert target.out("readlink", "-f", f"{scratch}/link") == f"{scratch}/b"
    target.run("mv", f"{scratch}/a", f"{scratch}/c")
    assert target.run("test", "-e", f"{scratch}/a", check=False).exit_status == 1
    sums = target.out("sha256sum", f"{scratch}/c", f"{scratch}/link").split()
    assert sums[0] == sums[2] == "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    target.run("rm", "-f", f"{scratch}/c", f"{scratch}/not-there")
    assert target.out("ls", scratch).split() == ["b", "link"]


def test_packages_are_found_and_unknown_ones_refused(target: Target) -> None:
    assert target.out("dpkg-query", "-W", "-f=${db:Status-Status}", "sudo") == "installed"
    assert target.run("dpkg-query", "-W", "no-such-package", check=False).exit_status == 1
    result = target.run("apt-get", "install", "-y", "no-such-package-anywhere", sudo=True, check=False)
    assert result.exit_status == 100
    assert "Unable to locate package" in result.stderr


def test_systemd_says_what_runs(target: Target) -> None:
    assert target.out("systemctl", "is-active", "ssh") == "active"
    missing = target.run("systemctl", "is-active", "no-such-unit", check=False)
    assert (missing.stdout.strip(), missing.exit_status != 0) == ("inactive", True)
    assert "LoadState=not-found" in target.out("systemctl", "show", "-p", "LoadState,ActiveState", "no-such-unit")
    refused = target.run("systemctl", "start", "no-such-unit", sudo=True, check=False)
    assert refused.exit_status == 5
    assert "not found" in refused.stderr


def test_the_image_ships_oracles_rules(target: Target) -> None:
    rules = target.out("iptables", "-S", sudo=True)
    assert "-A INPUT -j REJECT --reject-with icmp-host-prohibited" in rules
    assert "-A FORWARD -j REJECT --reject-with icmp-host-prohibited" in rules
    assert "-N InstanceServices" in rules
    assert ":InstanceServices - [0:0]" in target.out("cat", RULES, sudo=True)


def test_rules_need_root(target: Target) -> None:
    assert target.run("iptables", "-S", check=False).exit_status == 4


def test_one_rule_is_deleted_and_put_back_and_nothing_else_moves(target: Target) -> None:
    before = target.out("iptables", "-S", sudo=True).splitlines()
    at = [line for line in before if line.startswith("-A INPUT")].index("-A " + " ".join(REJECT_INPUT)) + 1
    assert target.run("iptables", "-C", *REJECT_INPUT, sudo=True, check=False).exit_status == 0
    target.run("iptables", "-D", *REJECT_INPUT, sudo=True)
    try:
        assert target.run("iptables", "-C", *REJECT_INPUT, sudo=True, check=False).exit_status == 1
        after = target.out("iptables", "-S", sudo=True).splitlines()
        assert [line for line in before if line not in after] == ["-A " + " ".join(REJECT_INPUT)]
        again = target.run("iptables", "-D", *REJECT_INPUT, sudo=True, check=False)
        assert again.exit_status == 1
        assert "does a matching rule exist" in again.stderr
    finally:
        target.run("iptables", "-I", "INPUT", str(at), *REJECT_INPUT[1:], sudo=True)
    assert target.out("iptables", "-S", sudo=True).splitlines() == before


def test_the_same_rule_in_other_words_is_the_same_rule(target: Target) -> None:
    words = ["INPUT", "-p", "tcp", "-m", "state", "--state", "NEW", "--dport", "22", "-j", "ACCEPT"]
    assert target.run("iptables", "-C", *words, sudo=True, check=False).exit_status == 0
    words[words.index("22")] = "23"
    assert target.run("iptables", "-C", *words, sudo=True, check=False).exit_status == 1


def test_saved_rules_can_be_restored(target: Target) -> None:
    saved = target.run("iptables-save", "-t", "filter", sudo=True).stdout
    target.run("iptables", "-A", "INPUT", "-p", "udp", "--dport", "8472", "-j", "ACCEPT", sudo=True)
    target.run("iptables-restore", sudo=True, stdin=saved.encode())
    assert "8472" not in target.out("iptables", "-S", sudo=True)
    broken = target.run("iptables-restore", sudo=True, stdin=b"*filter\n-A NOWHERE -j ACCEPT\nCOMMIT\n", check=False)
    assert broken.exit_status != 0
    assert "-A INPUT" in target.out("iptables", "-S", sudo=True), "a refused set must not replace the rules"


def test_ip_speaks_json(target: Target) -> None:
    assert '"addr_info"' in target.out("ip", "-j", "addr")
    assert '"default"' in target.out("ip", "-j", "route")


def test_swap_goes_on_and_off(target: Target) -> None:
    path = "/hybridlab-test-swap"
    target.run("fallocate", "-l", "64M", path, sudo=True)
    target.run("chmod", "600", path, sudo=True)
    try:
        early = target.run("swapon", path, sudo=True, check=False)
        assert early.exit_status == 255
        assert "read swap header failed" in early.stderr
        target.run("mkswap", path, sudo=True)
        target.run("swapon", path, sudo=True)
        shown = target.out("swapon", "--show=NAME,SIZE", "--bytes", "--noheadings", "--raw")
        assert f"{path} {64 * 1024**2 - 4096}" in shown
        target.run("swapoff", path, sudo=True)
        assert path not in target.out("swapon", "--show=NAME", "--noheadings", "--raw")
    finally:
        target.run("rm", "-f", path, sudo=True)


def test_sysctl_reads_and_writes(target: Target) -> None:
    before = target.out("sysctl", "-n", "net.ipv4.ip_forward")
    target.run("sysctl", "-w", "net.ipv4.ip_forward=1", sudo=True)
    assert target.out("sysctl", "-n", "net.ipv4.ip_forward") == "1"
    target.run("sysctl", "-w", f"net.ipv4.ip_forward={before}", sudo=True)
    assert target.run("sysctl", "-n", "no.such.key", check=False).exit_status != 0


def test_root_can_not_log_in(target: Target) -> None:
    root = HostAddress(target.host.name, target.host.address, "root", target.host.port)
    with pytest.raises(Refused):
        target.driver.run(root, ["true"])


def test_many_short_commands_at_once(target: Target) -> None:
    results = target.driver.run_all([target.host] * 40, ["echo", "here"])
    assert {r.stdout for r in results if isinstance(r, CommandResult)} == {"here\n"}
    assert all(isinstance(r, CommandResult) for r in results)
