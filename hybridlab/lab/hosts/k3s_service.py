"""K3s as a service of one machine: starting, stopping, installing and removing it."""

from __future__ import annotations

import asyncio
import shlex
from typing import TYPE_CHECKING

from hybridlab.lab.hosts.firewall import Rule, Table, parse_rule
from hybridlab.lab.hosts.k3s_release import MARK
from hybridlab.lab.hosts.k3s_settings import BadSettings, Role, read_settings
from hybridlab.lab.world import K3sService

if TYPE_CHECKING:
    from hybridlab.lab.hosts.host import Host

BINARY = "/usr/local/bin/k3s"
UNITS: dict[Role, str] = {"server": "k3s", "agent": "k3s-agent"}
ROLES: dict[str, Role] = {"k3s": "server", "k3s-agent": "agent"}
UNINSTALLERS: dict[Role, str] = {
    "server": "/usr/local/bin/k3s-uninstall.sh",
    "agent": "/usr/local/bin/k3s-agent-uninstall.sh",
}
KILLALL = "/usr/local/bin/k3s-killall.sh"
READY_LIMIT_S: dict[Role, float] = {"server": 90.0, "agent": 2.0}  # systemd's for notify; an agent's unit does not wait
STARTING = 'level=info msg="Starting k3s'
OWN_CHAINS = ("KUBE-", "CNI-", "FLANNEL-")


def binary_mark(host: Host, path: str = BINARY) -> tuple[str, str] | None:
    """Version and architecture of a K3s place-holder, or None where the file is something else."""
    if not host.files.exists(path):
        return None
    with host.files.open_read(path) as file:
        match = MARK.search(file.read(4096).decode("utf-8", "replace"))
    return (match[1], match[2]) if match else None


def unit_path(role: Role) -> str:
    return f"/etc/systemd/system/{UNITS[role]}.service"


def _command_line(host: Host, role: Role) -> list[str]:
    for line in host.files.text(unit_path(role)).splitlines():
        if line.startswith("ExecStart="):
            return shlex.split(line.removeprefix("ExecStart="))[2:]
    return []


def _environment(host: Host, role: Role) -> dict[str, str]:
    pairs = (line.partition("=") for line in host.files.text(unit_path(role) + ".env", "").splitlines())
    return {key: value for key, _, value in pairs if key}


def _describe(host: Host, role: Role) -> K3sService:
    """What would run now. Raises BadSettings with the journal's line."""
    mark = binary_mark(host)
    if mark is None:
        raise BadSettings(f"{UNITS[role]}.service: Unable to locate executable '{BINARY}': No such file or directory")
    version, arch = mark
    if arch != host.machine.arch:
        raise BadSettings(f"{UNITS[role]}.service: Failed at step EXEC spawning {BINARY}: Exec format error")
    if not host.files.stat(BINARY).mode & 0o111:
        raise BadSettings(f"{UNITS[role]}.service: Failed at step EXEC spawning {BINARY}: Permission denied")
    settings, warnings = read_settings(host.files, role, _command_line(host, role), _environment(host, role))
    for line in warnings:
        host.log(UNITS[role], line)
    return K3sService(role, version, settings)


async def start_k3s(host: Host, role: Role) -> bool:
    """Start the unit; whether it became active. A server's unit waits until the API answers, an agent's does not."""
    name = UNITS[role]
    if host.k3s is not None:
        if host.k3s.role == role:
            return True
        host.log(name, 'level=fatal msg="listen tcp 127.0.0.1:6444: bind: address already in use"')
        host.set_unit(name, "failed", "exit-code")
        return False
    host.log(name, f"Starting {name}.service - Lightweight Kubernetes...")
    try:
        service = _describe(host, role)
    except BadSettings as error:
        host.log(name, str(error))
        host.log(name, f"{name}.service: Failed with result 'exit-code'.")
        host.set_unit(name, "failed", "exit-code")
        return False
    host.k3s = service
    host.set_unit(name, "active")
    host.log(name, f'{STARTING} {role} {service.version}"')
    for module in ("overlay", "br_netfilter", "nf_conntrack", "vxlan"):
        if module not in host.state.modules:
            host.state.modules.append(module)
    _add_rules(host, service)
    host.save()
    started = asyncio.Event()

    async def tell() -> None:
        try:
            await host.world.kube.service_started(host.machine, service)
        finally:
            started.set()

    host.world.spawn(tell(), f"{name} on {host.name}")
    try:
        await asyncio.wait_for(started.wait(), READY_LIMIT_S[role])
    except TimeoutError:
        if role == "server":
            host.log(name, f"{name}.service: start operation timed out. Terminating.")
            await stop_k3s(host)
            host.set_unit(name, "failed", "timeout")
            return False
    if role == "server" and _died(host.state.journals[name]):
        await stop_k3s(host)
        host.set_unit(name, "failed", "exit-code")
        return False
    host.log(name, f"Started {name}.service - Lightweight Kubernetes.")
    return True


def _died(journal: list[str]) -> bool:
    """Whether K3s gave up since it was last started, by its journal."""
    for line in reversed(journal):
        if "level=fatal" in line:
            return True
        if line.startswith(STARTING):
            return False
    return False


async def stop_k3s(host: Host, *, mark: bool = True) -> None:
    """Stop K3s where it runs. ``mark`` False leaves the unit's state alone, for a machine that goes away."""
    service = host.k3s
    if service is None:
        return
    host.k3s = None
    if mark:
        host.set_unit(UNITS[service.role], "inactive")
        host.log(UNITS[service.role], f"Stopped {UNITS[service.role]}.service - Lightweight Kubernetes.")
    await host.world.kube.service_stopped(host.machine.id)


async def start_enabled(host: Host) -> None:
    """At boot: start K3s where its unit is enabled."""
    for name, role in ROLES.items():
        unit = host.unit(name)
        if unit is not None:
            unit.active = "inactive"
            if unit.enabled:
                await start_k3s(host, role)


async def resume_k3s(host: Host) -> None:
    """After the lab itself was restarted: K3s runs on as it did, and the Kubernetes part is told so."""
    for name, role in ROLES.items():
        unit = host.unit(name)
        if unit is not None and unit.active == "active":
            try:
                host.k3s = _describe(host, role)
            except BadSettings:
                unit.active = "failed"
                continue
            host.world.spawn(host.world.kube.service_started(host.machine, host.k3s), f"{name} on {host.name}")


def install(host: Host, role: Role, arguments: list[str], environment: dict[str, str]) -> None:
    """What install.sh leaves behind: unit, environment file, scripts."""
    files, name = host.files, UNITS[role]
    command = shlex.join([BINARY, role, *arguments])
    files.put(
        unit_path(role),
        "[Unit]\nDescription=Lightweight Kubernetes\nAfter=network-online.target\n"
        f"[Service]\nType={'notify' if role == 'server' else 'exec'}\nEnvironmentFile=-{unit_path(role)}.env\n"
        f"ExecStart={command}\nRestart=always\nRestartSec=5s\n[Install]\nWantedBy=multi-user.target\n",
    )
    kept = {key: value for key, value in environment.items() if key.startswith("K3S_") and value}
    files.put(unit_path(role) + ".env", "".join(f"{key}={value}\n" for key, value in kept.items()), 0o600)
    files.put(UNINSTALLERS[role], f"#!/bin/sh\n# hybridlab-lab-k3s uninstall role={role}\n", 0o755)
    files.put(KILLALL, "#!/bin/sh\n# hybridlab-lab-k3s killall\n", 0o755)
    host.unit(name)


async def uninstall(host: Host, role: Role) -> None:
    await killall(host)
    files, name = host.files, UNITS[role]
    for path in (
        unit_path(role), unit_path(role) + ".env", UNINSTALLERS[role], KILLALL, BINARY, "/etc/rancher/k3s",
        "/etc/rancher/node", "/var/lib/rancher/k3s", "/var/lib/kubelet", "/run/k3s", "/run/flannel",
    ):  # fmt: skip
        if files.exists(path):
            files.rmtree(path)
    host.state.units.pop(name, None)
    await host.world.kube.uninstalled(host.machine.id, role)


async def killall(host: Host) -> None:
    """Stop K3s and take its chains out of the live rules, as k3s-killall.sh does."""
    await stop_k3s(host)
    for table in host.firewall.tables.values():
        for chain in [c for c in table.policies if c.startswith(OWN_CHAINS)]:
            del table.policies[chain]
            table.rules.pop(chain, None)
        for rules in table.rules.values():
            rules[:] = [rule for rule in rules if not rule.target.startswith(OWN_CHAINS)]


def _add_rules(host: Host, service: K3sService) -> None:
    """The chains K3s keeps in the live rules: its network-policy controller's stand first, flannel's last.

    That is why pods can talk across nodes although FORWARD still ends with Oracle's REJECT, unless
    ``disable-network-policy`` is set.
    """
    table = host.firewall.filter
    if not service.settings.get("disable-network-policy"):
        comply = '-m comment --comment "rule to explicitly ACCEPT traffic that comply to network policies"'
        for builtin in ("INPUT", "FORWARD", "OUTPUT"):
            chain = f"KUBE-ROUTER-{builtin}"
            _chain(table, chain, f"{comply} -m mark --mark 0x20000/0x20000 -j ACCEPT")
            _jump(table, builtin, parse_rule(shlex.split(f'-m comment --comment "kube-router netpol" -j {chain}')), 0)
    _chain(table, "KUBE-FIREWALL")
    _chain(
        table,
        "KUBE-FORWARD",
        '-m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT',
    )
    _jump(
        table,
        "FORWARD",
        parse_rule(shlex.split('-m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD')),
        1,
    )
    _chain(table, "FLANNEL-FWD", "-s 10.42.0.0/16 -j ACCEPT", "-d 10.42.0.0/16 -j ACCEPT")
    _jump(table, "FORWARD", parse_rule(shlex.split('-m comment --comment "flanneld forward" -j FLANNEL-FWD')), None)


def _chain(table: Table, name: str, *specs: str) -> None:
    table.policies.setdefault(name, "-")
    table.rules[name] = [parse_rule(shlex.split(spec)) for spec in specs]


def _jump(table: Table, chain: str, rule: Rule, position: int | None) -> None:
    rules = table.chain(chain)
    if rule not in rules:
        rules.insert(len(rules) if position is None else position, rule)
