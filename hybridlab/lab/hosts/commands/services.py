"""systemctl and journalctl."""

from __future__ import annotations

import time

from hybridlab.lab.hosts import k3s_service
from hybridlab.lab.hosts.call import Call, Command, Usage, split_options
from hybridlab.lab.hosts.firewall import BadRule
from hybridlab.lab.hosts.host import Host, Unit

CHANGES = {"start", "stop", "restart", "try-restart", "reload", "enable", "disable", "reset-failed", "mask", "unmask"}
POWER = {"reboot", "poweroff"}


def _mutates(args: list[str]) -> bool:
    words = [word for word in args if not word.startswith("-")]
    return bool(words) and words[0] in CHANGES | POWER | {"daemon-reload"}


async def systemctl(call: Call) -> int:
    options, words = split_options(
        call.args, "-q --quiet --now --no-pager --no-block --value -f --force --full", "-p --property"
    )
    if not words:
        raise Usage("the lab knows: systemctl VERB [UNIT…]")
    verb, units = words[0], [unit.removesuffix(".service") for unit in words[1:]]
    host = call.host
    quiet = bool(options.keys() & {"-q", "--quiet"})
    if verb == "is-system-running":
        failed = any(unit.active == "failed" for unit in host.state.units.values())
        await call.out("degraded" if failed else "running")
        return int(failed)
    if verb == "show":
        return await _show(call, options, units)
    if verb in ("is-active", "is-enabled", "is-failed"):
        return await _is(call, verb, units, quiet)
    if verb not in CHANGES | POWER | {"daemon-reload"}:
        raise Usage(f"Unknown command verb '{verb}'.")
    if not call.user.is_root:
        return await call.fail(f"Failed to {verb} {' '.join(units)}: Interactive authentication required.")
    if verb in POWER:
        part = host.world.hosts
        getattr(part, "reboot_soon" if verb == "reboot" else "power_off_soon")(host)
        return 0
    status = 0
    for name in units:
        status = max(status, await _change(call, verb, name, now="--now" in options))
    return status


async def _is(call: Call, verb: str, units: list[str], quiet: bool) -> int:
    status = 0
    for name in units:
        unit = call.host.unit(name)
        if verb == "is-enabled":
            word = "not-found" if unit is None else "enabled" if unit.enabled else "disabled"
            code = 4 if unit is None else 0 if unit.enabled else 1
        else:
            word = "inactive" if unit is None else unit.active
            good = word == ("failed" if verb == "is-failed" else "active")
            code = 0 if good else 4 if unit is None else 3 if verb == "is-active" else 1
        status = max(status, code)
        if not quiet:
            await call.out(word)
    return status


async def _show(call: Call, options: dict[str, str], units: list[str]) -> int:
    wanted = [p for p in options.get("-p", options.get("--property", "")).split(",") if p]
    for name in units:
        unit = call.host.unit(name)
        values = _properties(call.host, name, unit)
        for key in wanted or list(values):
            if key in values:
                await call.out(values[key] if "--value" in options else f"{key}={values[key]}")
    return 0


def _properties(host: Host, name: str, unit: Unit | None) -> dict[str, str]:
    if unit is None:
        return {"Id": f"{name}.service", "LoadState": "not-found", "ActiveState": "inactive", "SubState": "dead",
                "UnitFileState": "", "Result": "success", "MainPID": "0"}  # fmt: skip
    folder = "/etc" if unit.own else "/usr/lib"
    since = time.strftime("%a %Y-%m-%d %H:%M:%S UTC", time.gmtime(unit.since)) if unit.since else ""
    running = unit.active == "active"
    return {
        "Id": f"{name}.service",
        "LoadState": "loaded",
        "ActiveState": unit.active,
        "SubState": "running" if running else "failed" if unit.active == "failed" else "dead",
        "UnitFileState": "enabled" if unit.enabled else "disabled",
        "Result": unit.result,
        "MainPID": "1000" if running else "0",
        "ActiveEnterTimestamp": since if running else "",
        "FragmentPath": f"{folder}/systemd/system/{name}.service",
    }


async def _change(call: Call, verb: str, name: str, *, now: bool) -> int:
    host = call.host
    unit = host.unit(name)
    if unit is None:
        if verb in ("enable", "disable"):
            return await call.fail(f"Failed to {verb} unit: Unit file {name}.service does not exist.")
        return await call.fail(f"Failed to {verb} {name}.service: Unit {name}.service not found.", 5)
    if verb in ("enable", "disable"):
        unit.enabled = verb == "enable"
        return await _run(call, "start" if verb == "enable" else "stop", name, unit) if now else 0
    if verb == "reset-failed":
        unit.active = "inactive" if unit.active == "failed" else unit.active
        return 0
    if verb in ("mask", "unmask", "reload"):
        raise Usage(f"the lab does not know systemctl {verb}")
    return await _run(call, verb, name, unit)


async def _run(call: Call, verb: str, name: str, unit: Unit) -> int:
    host = call.host
    role = k3s_service.ROLES.get(name)
    if verb in ("stop", "restart", "try-restart"):
        if verb == "try-restart" and unit.active != "active":
            return 0
        if role is not None and host.k3s is not None and host.k3s.role == role:
            await k3s_service.stop_k3s(host)
        host.set_unit(name, "inactive")
        if verb == "stop":
            return 0
    if role is not None:
        if await k3s_service.start_k3s(host, role):
            return 0
    elif name == "netfilter-persistent":
        try:
            host.firewall.restore(host.files.text("/etc/iptables/rules.v4", ""))
            host.set_unit(name, "active")
            return 0
        except BadRule as error:
            host.log(name, f"iptables-restore: {error}")
            host.set_unit(name, "failed", "exit-code")
    else:
        host.set_unit(name, "active")
        host.log(name, f"Started {name}.service.")
        return 0
    return await call.fail(
        f"Job for {name}.service failed because the control process exited with error code.\n"
        f'See "systemctl status {name}.service" and "journalctl -xeu {name}.service" for details.'
    )


async def journalctl(call: Call) -> int:
    options, words = split_options(call.args, "--no-pager -q --quiet", "-u --unit -n --lines -o --output -b")
    unit = options.get("-u", options.get("--unit"))
    if words or unit is None:
        raise Usage("the lab knows: journalctl -u UNIT [-n LINES] [--no-pager] [-o cat]")
    lines = call.host.state.journals.get(unit.removesuffix(".service"), [])
    count = options.get("-n", options.get("--lines", "all"))
    shown = lines if count == "all" else lines[-int(count) :] if int(count) else []
    if not shown:
        return await call.out("-- No entries --")
    return await call.out("\n".join(shown))


TABLE = {"systemctl": Command(systemctl, _mutates), "journalctl": Command(journalctl)}
