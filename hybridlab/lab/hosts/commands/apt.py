"""apt-get, dpkg and dpkg-query, over the table of known packages."""

from __future__ import annotations

import re

from hybridlab.lab.hosts.call import Call, Command, Usage, split_options
from hybridlab.lab.hosts.host import Unit
from hybridlab.lab.hosts.packages import PACKAGES, with_needs

UPDATE_S = 1.0
INSTALL_S = 1.0
# what a package's postinst enables and starts
STARTS = {"rpcbind": True, "docker": True, "netfilter-persistent": True, "iscsid": False, "open-iscsi": False}


async def apt_get(call: Call) -> int:
    options, words = split_options(
        call.args, "-y -q -qq --yes --quiet --no-install-recommends --assume-yes --purge", "-o"
    )
    if not words or words[0] not in ("update", "install", "remove", "purge"):
        raise Usage("the lab knows: apt-get update | install -y PACKAGE… | remove -y PACKAGE…")
    verb, names = words[0], words[1:]
    if not call.user.is_root:
        await call.fail("E: Could not open lock file /var/lib/dpkg/lock-frontend - open (13: Permission denied)")
        return await call.fail(
            "E: Unable to acquire the dpkg frontend lock (/var/lib/dpkg/lock-frontend), are you root?", 100
        )
    if verb == "update":
        await call.host.world.clock.takes(UPDATE_S)
        call.host.files.put("/var/lib/apt/periodic/update-success-stamp", "")
        return await call.out("Reading package lists...")
    if not options.keys() & {"-y", "--yes", "--assume-yes"}:
        return await call.fail("Do you want to continue? [Y/n] Abort.")
    return await (_install(call, names) if verb == "install" else _remove(call, names))


async def _install(call: Call, names: list[str]) -> int:
    state = call.host.state
    wanted: list[str] = []
    for name in names:
        try:
            wanted += [each for each in with_needs(name) if each not in wanted and each not in state.packages]
        except KeyError:
            return await call.fail(f"E: Unable to locate package {name}", 100)
    if wanted:
        await call.host.world.clock.takes(INSTALL_S)
    for name in wanted:
        state.packages[name] = PACKAGES[name].version
        for unit in PACKAGES[name].units:
            on = STARTS.get(unit, True)
            state.units.setdefault(unit, Unit("active" if on else "inactive", on, since=call.host.world.clock.now()))
        await call.out(f"Setting up {name} ({PACKAGES[name].version}) ...")
    return await call.out(f"0 upgraded, {len(wanted)} newly installed, 0 to remove and 0 not upgraded.")


async def _remove(call: Call, names: list[str]) -> int:
    state = call.host.state
    for name in names:
        if name not in PACKAGES:
            return await call.fail(f"E: Unable to locate package {name}", 100)
    gone = [name for name in names if state.packages.pop(name, None)]
    for name in gone:
        for unit in PACKAGES[name].units:
            state.units.pop(unit, None)
    return await call.out(f"0 upgraded, 0 newly installed, {len(gone)} to remove and 0 not upgraded.")


async def dpkg(call: Call) -> int:
    if call.args != ["--print-architecture"]:
        raise Usage("the lab knows: dpkg --print-architecture")
    return await call.out(call.host.machine.arch)


async def dpkg_query(call: Call) -> int:
    words = ["-f" + word[3:] if word.startswith("-f=") else word for word in call.args]  # dpkg's own way of options
    options, names = split_options(words, "-W --show", "-f --showformat")
    if not options.keys() & {"-W", "--show"}:
        raise Usage("the lab knows: dpkg-query -W [-f FORMAT] PACKAGE…")
    pattern = options.get("-f", options.get("--showformat", "${Package}\t${Version}\n"))
    status = 0
    for name in names or sorted(call.host.state.packages):
        version = call.host.state.packages.get(name)
        if version is None:
            status = await call.fail(f"dpkg-query: no packages found matching {name}")
            continue
        values = {"Package": name, "binary:Package": name, "Version": version, "Status": "install ok installed",
                  "db:Status-Status": "installed", "Architecture": call.host.machine.arch}  # fmt: skip
        line = re.sub(r"\$\{([^}]+)\}", lambda m, v=values: v.get(m[1], ""), pattern)  # type: ignore[misc]
        line = line.replace("\\n", "\n").replace("\\t", "\t")
        await call.stdout.write(line.encode())
    return status


TABLE = {
    "apt-get": Command(apt_get, lambda args: any(w in args for w in ("install", "remove", "purge", "update"))),
    "dpkg": Command(dpkg),
    "dpkg-query": Command(dpkg_query),
}
