"""Real machines for tests: systemd-nspawn boots copies of one cached Debian, each with its own ext4 and network.

The image is made once (debootstrap, about a minute) and kept under HYBRIDLAB_TEST_CACHE, else ~/.cache/hybridlab.
Every machine has real systemd, sshd, sudo and iptables with Oracle's rules file, and sees the others over a bridge.
What differs from a VM: no boot loader, no udev, no cloud-init, and swap lines of fstab are left to a unit of ours,
because systemd ignores them in containers.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import asyncssh

from hybridlab.models import HostAddress

USER = "ubuntu"
SUITE = "bookworm"
PACKAGES = (
    "systemd", "systemd-sysv", "dbus", "openssh-server", "sudo", "iptables", "iptables-persistent", "python3",
    "open-iscsi", "curl", "iproute2", "procps", "kmod", "openssl", "python3-yaml",
)  # fmt: skip
IMAGE_BYTES = 3 << 30  # sparse
BOOT_DEADLINE_S = 60.0
REBOOTED = 133  # how nspawn ends with --keep-unit when the machine rebooted

FILES = {
    "etc/sudoers.d/90-user": f"{USER} ALL=(ALL) NOPASSWD:ALL\n",
    "etc/systemd/network/10-host.network": "",  # a machine's own, written when it is made
    # or a reboot waits for a minute and a half for what a container can't stop
    "etc/systemd/system.conf.d/10-test.conf": "[Manager]\nDefaultTimeoutStopSec=15s\n",
    "etc/systemd/system/fstab-swap.service": (
        "[Unit]\nDescription=Swap as fstab has it (systemd ignores it in containers)\n"
        "[Service]\nType=oneshot\nExecStart=/sbin/swapon -a\n[Install]\nWantedBy=multi-user.target\n"
    ),
    "etc/ssh/sshd_config.d/10-test.conf": "PasswordAuthentication no\nPermitRootLogin no\nUseDNS no\n",
    # as on Ubuntu, which Oracle's images are
    "etc/environment": 'PATH="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"\n',
    "etc/resolv.conf": "",
    "etc/fstab": "",
}
SETUP = f"""
set -eu
useradd -m -s /bin/bash {USER}
systemctl enable systemd-networkd fstab-swap netfilter-persistent
systemctl mask systemd-networkd-wait-online.service systemd-resolved.service getty.target console-getty.service \
    apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer fstrim.timer iscsid.service open-iscsi.service \
    systemd-udevd.service systemd-udev-trigger.service systemd-timesyncd.service
rm -f /etc/ssh/ssh_host_* /etc/machine-id /var/cache/apt/archives/*.deb
rm -rf /usr/share/doc/* /usr/share/man/* /usr/share/locale/*
"""


def why_not(*, patience_s: float = 0) -> str:
    """Why machines can't be booted here; empty when nothing is known against it.

    ``patience_s``: how long to wait for another file's machines to go.
    """
    if os.name != "posix" or not Path("/proc/self/ns/net").exists():
        return "machines need Linux with namespaces"
    if os.geteuid() != 0:
        return "machines need root"
    missing = [tool for tool in ("systemd-nspawn", "debootstrap", "mkfs.ext4", "ip", "losetup") if not _which(tool)]
    if missing:
        return f"not installed: {', '.join(missing)} (apt-get install systemd-container debootstrap iproute2)"
    probe = f"hl-probe{os.getpid() % 100000}"
    made = subprocess.run(["ip", "link", "add", probe, "type", "bridge"], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"this sandbox allows no bridge: {made.stderr.strip()}"
    _must("ip", "link", "del", probe)
    if not _alone(patience_s):
        return "another run's machine has a swap file in use, and machines share the kernel's list of them"
    if not Path("/dev/loop-control").exists():
        return "this sandbox has no loop devices"
    return ""


def _alone(patience_s: float) -> bool:
    """Whether no machine of another process has our swap file in use, now or after a while."""
    end = time.monotonic() + patience_s
    while "/swapfile-hybridlab" in Path("/proc/swaps").read_text(encoding="utf-8"):
        if time.monotonic() > end:
            return False
        time.sleep(1)
    return True


def _which(tool: str) -> str | None:
    return shutil.which(tool, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def _must(*argv: str, timeout_s: float = 120.0) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=timeout_s)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: status {done.returncode}: {(done.stderr or done.stdout)[-600:]}")
    return done.stdout


# -- the image ---------------------------------------------------------------------------------------------------------
def cache_folder() -> Path:
    named = os.environ.get("HYBRIDLAB_TEST_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "hybridlab"


def mirror() -> str:
    """The Debian mirror that apt is set up for here, else Debian's own."""
    lists = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    for path in lists:
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        found = re.search(r"^(?:deb|URIs:)\s+(?:\[[^]]*\]\s+)?(https?://\S+/debian/?)(?:\s|$)", text, re.MULTILINE)
        if found:
            return found[1]
    return "http://deb.debian.org/debian"


def image() -> Path:
    """The cached image, made now if it isn't there; one process makes it, others wait. Raises RuntimeError."""
    rules = resources.files("hybridlab.data").joinpath("hosts/oracle-ubuntu-rules.v4").read_text(encoding="utf-8")
    recipe = repr((SUITE, PACKAGES, sorted(FILES.items()), SETUP, rules, IMAGE_BYTES))
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"debian-{SUITE}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}.ext4"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            _make_image(path, rules)
    return path


def _make_image(path: Path, rules: str) -> None:
    tree, half = path.with_suffix(".tree"), path.with_suffix(".half")
    shutil.rmtree(tree, ignore_errors=True)
    try:
        include = f"--include={','.join(PACKAGES)}"
        _must("debootstrap", "--variant=minbase", include, SUITE, str(tree), mirror(), timeout_s=900)
        for name, text in {**FILES, "etc/iptables/rules.v4": rules}.items():
            at = tree / name
            at.parent.mkdir(parents=True, exist_ok=True)
            at.unlink(missing_ok=True)
            at.write_text(text, encoding="utf-8")
        (tree / "etc/sudoers.d/90-user").chmod(0o440)
        (tree / "etc/iptables/rules.v4").chmod(0o640)
        _must("chroot", str(tree), "/bin/sh", "-c", SETUP)
        with half.open("wb") as file:
            file.truncate(IMAGE_BYTES)
        _must("mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", "-d", str(tree), str(half), timeout_s=300)
        half.rename(path)
        for old in path.parent.glob(f"debian-{SUITE}-*.ext4"):
            if old != path:
                old.unlink()
    finally:
        shutil.rmtree(tree, ignore_errors=True)
        half.unlink(missing_ok=True)


# -- machines ----------------------------------------------------------------------------------------------------------
@dataclass
class LiveMachine:
    """One machine; ``supervise`` starts it again when it reboots, as a VM would."""

    name: str
    address: str
    folder: Path
    bridge: str
    prefix: int = 24
    boots: int = 0
    _process: subprocess.Popen[bytes] | None = None
    _thread: threading.Thread | None = None
    _stopping: bool = False

    @property
    def root(self) -> Path:
        return self.folder / "root"

    @property
    def host(self) -> HostAddress:
        return HostAddress(self.name, self.address, USER)

    @property
    def console(self) -> Path:
        return self.folder / "console.log"

    def make(self, source: Path, public_key: str) -> None:
        """A copy of the image with this machine's name, address, host key and the user's key."""
        self.folder.mkdir(parents=True)
        disk = self.folder / "disk.ext4"
        _must("cp", "--sparse=always", "--reflink=auto", str(source), str(disk))
        self.root.mkdir()
        _must("mount", "-o", "loop", str(disk), str(self.root))
        key = asyncssh.generate_private_key("ssh-ed25519")
        network = (
            f"[Match]\nName=host0\n[Network]\nAddress={self.address}/{self.prefix}\n"
            f"Gateway={self.address.rsplit('.', 1)[0]}.1\nLinkLocalAddressing=no\nLLMNR=no\n"
        )
        self.write("etc/hostname", self.name + "\n")
        self.write("etc/hosts", f"127.0.0.1 localhost\n{self.address} {self.name}\n")
        self.write("etc/systemd/network/10-host.network", network)
        self.write("etc/ssh/ssh_host_ed25519_key", key.export_private_key().decode(), 0o600)
        self.write("etc/ssh/ssh_host_ed25519_key.pub", key.export_public_key().decode())
        self.write(f"home/{USER}/.ssh/authorized_keys", public_key, 0o600)
        for path in (f"home/{USER}/.ssh", f"home/{USER}/.ssh/authorized_keys"):
            os.chown(self.root / path, 1000, 1000)

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        at = self.root / path
        at.parent.mkdir(parents=True, exist_ok=True)
        at.write_text(text, encoding="utf-8")
        at.chmod(mode)

    def start(self) -> None:
        self._stopping = False
        self._thread = threading.Thread(target=self._supervise, name=f"machine {self.name}", daemon=True)
        self._thread.start()

    def _supervise(self) -> None:
        argv = [
            *(("setpriv", "--pdeathsig", "TERM") if _which("setpriv") else ()),  # nothing outlives a killed test run
            "systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", "--link-journal=no",
            # the host's end of the network is named after the machine: another test run may have one of that name
            f"--network-bridge={self.bridge}", f"--machine={self.bridge}-{self.name}", f"--hostname={self.name}",
            f"--directory={self.root}",
            "--system-call-filter=@swap", "--console=pipe", "--settings=no", "--timezone=off", "--resolv-conf=off",
        ]  # fmt: skip
        while not self._stopping:
            self.boots += 1
            with self.console.open("ab") as log:
                self._process = subprocess.Popen(
                    argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                )
                status = self._process.wait()
            if status != REBOOTED:
                return

    def _init(self) -> int | None:
        """Process 1 of the machine, seen from here."""
        process = self._process
        if process is None or process.poll() is not None:
            return None
        with suppress(OSError, IndexError):
            text = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
            return int(text.split()[0])
        return None

    def stop(self) -> None:
        """Pull the plug."""
        self._stopping = True
        init = self._init()
        if init is not None:
            with suppress(ProcessLookupError):
                os.kill(init, signal.SIGKILL)
        elif self._process is not None:
            self._process.terminate()
        if self._thread is not None:
            self._thread.join(15)

    def remove(self) -> None:
        self.stop()
        for name in self.swap_files():
            subprocess.run(["swapoff", str(self.root / name)], capture_output=True, check=False)
        subprocess.run(["umount", str(self.root)], capture_output=True, check=False)
        if not os.path.ismount(self.root):
            shutil.rmtree(self.folder, ignore_errors=True)

    def swap_files(self) -> list[str]:
        return [p.name for p in self.root.glob("*swap*") if p.is_file()]

    def last_words(self) -> str:
        return self.console.read_text(errors="replace")[-800:] if self.console.exists() else ""


@dataclass
class LiveMachines:
    """Some machines on one bridge, and the key that opens them."""

    folder: Path
    bridge: str
    network: str  # the first three numbers
    key: Path
    machines: dict[str, LiveMachine] = field(default_factory=dict)

    def __getitem__(self, name: str) -> LiveMachine:
        return self.machines[name]

    def address(self, number: int) -> str:
        return f"{self.network}.{number}"

    def add(self, names: Sequence[str]) -> list[LiveMachine]:
        """Make and start machines, all at once."""
        source = image()
        public = asyncssh.read_private_key(self.key).export_public_key().decode()
        made = []
        for name in names:
            address = self.address(11 + len(self.machines))
            machine = LiveMachine(name, address, self.folder / name, self.bridge)
            self.machines[name] = machine
            machine.make(source, public)
            machine.start()
            made.append(machine)
        return made


@contextmanager
def live_machines(folder: Path) -> Iterator[LiveMachines]:
    """A bridge with nothing on it yet. Everything on it goes at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    key = folder / "key"
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(key)
    key.chmod(0o600)
    bridge = f"hl{os.getpid() % 1000000}"
    network = f"10.213.{_free_network()}"
    _must("ip", "link", "add", bridge, "type", "bridge")
    found = LiveMachines(folder, bridge, network, key)
    try:
        _must("ip", "addr", "add", f"{network}.1/24", "dev", bridge)
        _must("ip", "link", "set", bridge, "up")
        yield found
    finally:
        for machine in found.machines.values():
            machine.remove()
        subprocess.run(["ip", "link", "del", bridge], capture_output=True, check=False)


def _free_network() -> int:
    """The third number of a 10.213 network that nothing here routes to."""
    routes = _must("ip", "-4", "route")
    return next(n for n in range(1 + os.getpid() % 100, 255) if f"10.213.{n}." not in routes)


def until(check: Callable[[], bool], what: str, deadline_s: float = 60.0) -> None:
    """Wait until something is so; fails at the deadline."""
    end = time.monotonic() + deadline_s
    while not check():
        assert time.monotonic() < end, f"{what}: not within {deadline_s:g} s"
        time.sleep(0.1)
