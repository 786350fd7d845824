"""One machine of the lab: its saved state, its files, its live rules, and what happens when it boots."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import asyncssh

from hybridlab.lab.hosts.files import Files, User
from hybridlab.lab.hosts.firewall import BadRule, Firewall
from hybridlab.lab.hosts.packages import preinstalled, units_of
from hybridlab.lab.hosts.space import room, size_bytes, used_bytes
from hybridlab.lab.world import K3sService, Machine, World

JOURNAL_LINES = 400
INTERFACE = "ens3"
SWAP_SIGNATURE_AT = 4096 - 10
SWAP_SIGNATURE = b"SWAPSPACE2"


@dataclass
class Unit:
    """A service as systemd sees it. ``result`` is systemd's word for how the last run ended."""

    active: str = "inactive"  # active, inactive, failed
    enabled: bool = False
    result: str = "success"
    since: float = 0.0
    own: bool = False  # the unit file is in /etc/systemd/system, not from a package


@dataclass
class HostState:
    """Everything of a machine that survives the lab's own restart, JSON-able."""

    machine: Machine
    powered: bool = False
    port: int = 0
    booted_at: float = 0.0
    boots: int = 0
    owners: dict[str, list[int]] = field(default_factory=dict)
    rules: str = ""  # the live rules, as iptables-save prints them
    modules: list[str] = field(default_factory=list)
    swaps: list[str] = field(default_factory=list)
    sysctls: dict[str, str] = field(default_factory=dict)
    packages: dict[str, str] = field(default_factory=dict)
    units: dict[str, Unit] = field(default_factory=dict)
    journals: dict[str, list[str]] = field(default_factory=dict)
    reserved: dict[str, int] = field(default_factory=dict)  # lengths that fallocate gave, by path
    docker: dict[str, Any] | None = None  # what Docker knows, on a machine that has it

    @classmethod
    def load(cls, saved: dict[str, Any]) -> HostState:
        saved = dict(saved)
        machine = dict(saved.pop("machine"))
        machine["authorized_keys"] = tuple(machine["authorized_keys"])
        units = {name: Unit(**unit) for name, unit in saved.pop("units").items()}
        return cls(machine=Machine(**machine), units=units, **saved)


class Host:
    """A machine as it runs. Its folder is ``<lab>/hosts/<id>/``, its state ``<lab>/hosts/<id>.json``."""

    def __init__(self, world: World, state: HostState) -> None:
        self.world = world
        self.state = state
        uid = 1001 if "Ubuntu" in state.machine.image else 1000  # Oracle's Ubuntu images keep 1000 for opc
        self.user = User(state.machine.user, uid, uid)
        self.files = Files(self.directory(world) / state.machine.id, state.owners, self.user, lambda: room(self))
        self.firewall = Firewall()
        if state.rules:
            self.firewall.restore(state.rules)
        self.listening: dict[tuple[str, int], int] = defaultdict(int)  # (protocol, port) → programs listening
        self.connections: set[asyncssh.SSHServerConnection] = set()
        self.commands: set[asyncio.Task[None]] = set()  # running now
        self.acceptor: asyncssh.SSHAcceptor | None = None
        self.k3s: K3sService | None = None  # what runs now

    @staticmethod
    def directory(world: World) -> Path:
        return world.directory / "hosts"

    @property
    def machine(self) -> Machine:
        return self.state.machine

    @property
    def name(self) -> str:
        return self.machine.name

    @property
    def cpus(self) -> int:
        """Virtual CPUs: an OCPU is one on Arm and two on x86."""
        per_ocpu = 1 if self.machine.arch == "arm64" else 2
        return max(per_ocpu, round(self.machine.ocpus * per_ocpu))

    @property
    def uname(self) -> str:
        return "aarch64" if self.machine.arch == "arm64" else "x86_64"

    @property
    def cpu_model(self) -> str:
        return "Neoverse-N1" if self.machine.arch == "arm64" else "AMD EPYC 7551 32-Core Processor"

    def save(self) -> None:
        """Write the state; called after every command that may have changed it."""
        self.state.rules = self.firewall.save()
        self.world.save(f"hosts/{self.machine.id}", asdict(self.state))

    def host_key(self) -> asyncssh.SSHKey:
        """The machine's own key, made once; it survives reboots and lab restarts."""
        path = self.directory(self.world) / f"{self.machine.id}.hostkey"
        if not path.exists():
            key = asyncssh.generate_private_key("ssh-ed25519")
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(key.export_private_key())
            self.files.put("/etc/ssh/ssh_host_ed25519_key.pub", key.export_public_key().decode())
        return asyncssh.read_private_key(path)

    # -- units and journal -----------------------------------------------------------------------------------------
    def log(self, unit: str, line: str) -> None:
        lines = self.state.journals.setdefault(unit.removesuffix(".service"), [])
        lines.append(line)
        del lines[:-JOURNAL_LINES]

    def unit(self, name: str) -> Unit | None:
        """A unit that a package or a file under /etc/systemd/system provides, or None."""
        name = name.removesuffix(".service")
        own = self.files.exists(f"/etc/systemd/system/{name}.service")
        known = self.state.units.get(name)
        if known is None and own:
            known = self.state.units[name] = Unit(own=True)
        if known is not None and known.own and not own:
            del self.state.units[name]
            return None
        return known

    def set_unit(self, name: str, active: str, result: str = "success") -> None:
        unit = self.unit(name)
        if unit is not None:
            unit.active, unit.result, unit.since = active, result, self.world.clock.now()

    def is_listening(self, protocol: str, port: int) -> bool:
        """Whether something on this machine has the port: a program of ours, sshd, or K3s."""
        if self.listening.get((protocol, port)):
            return True
        if (protocol, port) == ("tcp", 22):
            return True
        if self.k3s is None:
            return False
        taken = {("tcp", 10250), ("udp", 8472)}
        if self.k3s.settings.get("flannel-backend") == "wireguard-native":
            taken = {("tcp", 10250), ("udp", 51820)}
        if self.k3s.role == "server":
            taken.add(("tcp", int(self.k3s.settings.get("https-listen-port", 6443))))
        return (protocol, port) in taken

    # -- life ------------------------------------------------------------------------------------------------------
    def seed(self) -> None:
        """Lay out a new machine as its image ships it."""
        machine, files = self.machine, self.files
        files.root.mkdir(parents=True, exist_ok=True)
        oracle = "Ubuntu" in machine.image
        for path, mode in (("/tmp", 0o1777), ("/var/tmp", 0o1777), ("/root", 0o700), ("/run", 0o755)):
            files.makedirs(path)
            files.chmod(path, mode)
        for path in (
            "/usr/local/bin", "/usr/bin", "/etc/systemd/system", "/etc/sysctl.d", "/etc/modules-load.d",
            "/etc/iptables", "/etc/ssh", "/var/lib", "/var/log", "/opt", "/mnt", "/srv", "/home", "/boot",
        ):  # fmt: skip
            files.makedirs(path)
        home = files.home(self.user)
        files.makedirs(home + "/.ssh")
        for path, mode in ((home, 0o750), (home + "/.ssh", 0o700)):
            files.set_owner(path, self.user.uid, self.user.gid, mode)
        keys = "".join(key.strip() + "\n" for key in machine.authorized_keys)
        files.put(home + "/.ssh/authorized_keys", keys, 0o600, self.user)
        files.put("/etc/os-release", _OS_RELEASE)
        files.put("/etc/hostname", machine.name + "\n")
        files.put("/etc/hosts", f"127.0.0.1 localhost\n127.0.1.1 {machine.name} {machine.name}\n")
        files.put("/etc/machine-id", f"{hash_text(machine.id):032x}\n", 0o444)
        files.put("/etc/timezone", "Etc/UTC\n")
        files.put("/etc/localtime", "TZif2 UTC0\n")  # a link to zoneinfo on the real image; what mounts it wants a file
        files.put("/etc/fstab", "LABEL=cloudimg-rootfs / ext4 defaults 0 1\n")
        files.put("/etc/modules", "# names of kernel modules to load at boot\n")
        files.put("/etc/passwd", _PASSWD + f"{self.user.name}:x:{self.user.uid}:{self.user.gid}::{home}:/bin/bash\n")
        files.put("/etc/group", f"root:x:0:\nsudo:x:27:{self.user.name}\n{self.user.name}:x:{self.user.gid}:\n")
        files.put(f"/etc/sudoers.d/90-{self.user.name}", f"{self.user.name} ALL=(ALL) NOPASSWD:ALL\n", 0o440)
        self.state.packages = preinstalled(machine.image)
        for unit in ("ssh", "cron", "systemd-journald"):
            self.state.units[unit] = Unit("active", True)
        for package in self.state.packages:
            for unit in units_of(package):
                self.state.units[unit] = Unit("inactive", package in ("netfilter-persistent", "docker-ce"))
        if oracle:
            rules = resources.files("hybridlab.data").joinpath("hosts/oracle-ubuntu-rules.v4").read_text("utf-8")
            files.put("/etc/iptables/rules.v4", rules, 0o640)
            files.put("/etc/iptables/rules.v6", "*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n", 0o640)

    def boot(self) -> None:
        """What the kernel and systemd do at boot, all but starting K3s."""
        state, files = self.state, self.files
        state.boots += 1
        state.booted_at = self.world.clock.now()
        self.listening.clear()
        for path in ("/tmp", "/run"):
            for name in files.listdir(path):
                files.rmtree(f"{path}/{name}")
        self.firewall = Firewall()
        state.modules = ["ip_tables", "x_tables"]
        state.swaps = []
        state.sysctls = {}
        for name, unit in state.units.items():
            if not name.startswith("k3s"):
                unit.active = "active" if unit.enabled else "inactive"
                unit.since = state.booted_at
        self._boot_rules()
        for path in ["/etc/modules", *self._drop_ins("/etc/modules-load.d")]:
            state.modules += [m for m in _lines(files.text(path, "")) if m not in state.modules]
        for path in [*self._drop_ins("/etc/sysctl.d"), "/etc/sysctl.conf"]:
            for line in _lines(files.text(path, "")):
                key, equals, value = line.partition("=")
                if equals:
                    state.sysctls[key.strip()] = value.strip()
        for line in _lines(files.text("/etc/fstab", "")):
            words = line.split()
            if len(words) >= 3 and words[2] == "swap":
                try:
                    self.swap_on(words[0])
                except OSError as error:
                    self.log("swap", f"swapon: {words[0]}: {error.strerror}")

    def _boot_rules(self) -> None:
        unit = self.state.units.get("netfilter-persistent")
        if unit is None or not unit.enabled or not self.files.exists("/etc/iptables/rules.v4"):
            return
        try:
            self.firewall.restore(self.files.text("/etc/iptables/rules.v4"))
        except BadRule as error:
            unit.active, unit.result = "failed", "exit-code"
            self.log("netfilter-persistent", f"iptables-restore: {error}")

    def _drop_ins(self, folder: str) -> list[str]:
        return [f"{folder}/{name}" for name in self.files.listdir(folder) if name.endswith(".conf")]

    def swap_on(self, path: str) -> None:
        """Use a file as swap. Raises OSError: missing, in use, or without mkswap's signature."""
        resolved = self.files.resolve(path)
        if resolved in self.state.swaps:
            raise OSError(errno.EBUSY, "Device or resource busy", path)
        with self.files.open_read(resolved) as file:
            file.seek(SWAP_SIGNATURE_AT)
            if file.read(len(SWAP_SIGNATURE)) != SWAP_SIGNATURE:
                raise OSError(errno.EINVAL, "read swap header failed", path)
        self.state.swaps.append(resolved)

    def swap_bytes(self) -> int:
        total = 0
        for path in self.state.swaps:
            with contextlib.suppress(OSError):
                total += self.files.stat(path).size
        return total

    def disk(self) -> tuple[int, int]:
        """Size and use of the root file system in bytes."""
        return size_bytes(self), used_bytes(self)


def hash_text(text: str) -> int:
    """A stable number for a text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]


_OS_RELEASE = """\
PRETTY_NAME="Ubuntu 24.04.3 LTS"
NAME="Ubuntu"
VERSION_ID="24.04"
VERSION="24.04.3 LTS (Noble Numbat)"
VERSION_CODENAME=noble
ID=ubuntu
ID_LIKE=debian
HOME_URL="https://www.ubuntu.com/"
UBUNTU_CODENAME=noble
"""
_PASSWD = "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
