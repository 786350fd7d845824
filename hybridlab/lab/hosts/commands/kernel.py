"""sysctl, kernel modules and swap."""

from __future__ import annotations

import os
import posixpath
import re

from hybridlab.lab.hosts.call import Call, Command, Usage, split_options
from hybridlab.lab.hosts.host import SWAP_SIGNATURE, SWAP_SIGNATURE_AT
from hybridlab.lab.hosts.space import reserve

MODULES = frozenset(
    [
        "br_netfilter",
        "dm_crypt",
        "dm_snapshot",
        "ip_tables",
        "ip_vs",
        "iscsi_tcp",
        "nbd",
        "nf_conntrack",
        "nfs",
        "nvme_tcp",
        "overlay",
        "vxlan",
        "wireguard",
        "x_tables",
        "xt_conntrack",
    ]
)
SYSCTLS = {
    "fs.inotify.max_user_instances": "128",
    "fs.inotify.max_user_watches": "65536",
    "kernel.hostname": "",
    "kernel.panic": "0",
    "kernel.panic_on_oops": "0",
    "net.core.rmem_max": "212992",
    "net.core.wmem_max": "212992",
    "net.core.somaxconn": "4096",
    "net.ipv4.ip_forward": "0",
    "net.ipv4.ip_local_port_range": "32768\t60999",
    "net.ipv6.conf.all.forwarding": "0",
    "net.bridge.bridge-nf-call-iptables": "1",
    "net.bridge.bridge-nf-call-ip6tables": "1",
    "vm.max_map_count": "65530",
    "vm.nr_hugepages": "0",
    "vm.overcommit_memory": "0",
    "vm.panic_on_oom": "0",
    "vm.swappiness": "60",
}
UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "KIB": 1024, "MIB": 1024**2, "GIB": 1024**3,
         "KB": 1000, "MB": 1000**2, "GB": 1000**3}  # fmt: skip


async def sysctl(call: Call) -> int:
    options, words = split_options(call.args, "-n -w -q -e --system -p")
    state = call.host.state
    if "--system" in options or "-p" in options:
        if not call.user.is_root:
            return await call.fail("sysctl: permission denied", 1)
        paths = words or ["/etc/sysctl.conf"]
        if "--system" in options:
            folder = "/etc/sysctl.d"
            paths = [f"{folder}/{name}" for name in call.host.files.listdir(folder)]
        for path in paths:
            for line in call.host.files.text(path, "").splitlines():
                key, equals, value = line.partition("=")
                if equals and not line.lstrip().startswith("#"):
                    state.sysctls[key.strip()] = value.strip()
        return 0
    for word in words:
        key, equals, value = word.partition("=")
        missing = key not in SYSCTLS or (key.startswith("net.bridge.") and "br_netfilter" not in state.modules)
        if missing:
            path = key.replace(".", "/")
            return await call.fail(f"sysctl: cannot stat /proc/sys/{path}: No such file or directory", 255)
        if equals:
            if not call.user.is_root:
                return await call.fail(f'sysctl: permission denied on key "{key}"', 255)
            state.sysctls[key] = value
        else:
            value = state.sysctls.get(key, SYSCTLS[key])
        if "-q" not in options:
            await call.out(value if "-n" in options else f"{key} = {value}")
    return 0


async def modprobe(call: Call) -> int:
    options, words = split_options(call.args, "-q -r -n -a")
    if not words:
        raise Usage("missing module name")
    if not call.user.is_root and "-n" not in options:
        return await call.fail(f"modprobe: ERROR: could not insert '{words[0]}': Operation not permitted")
    loaded = call.host.state.modules
    for name in (word.replace("-", "_") for word in words):
        if name not in MODULES:
            return await call.fail(f"modprobe: FATAL: Module {name} not found in directory /lib/modules")
        if "-n" in options:
            continue
        if "-r" in options:
            loaded[:] = [module for module in loaded if module != name]
        elif name not in loaded:
            loaded.append(name)
    return 0


async def lsmod(call: Call) -> int:
    rows = [f"{name:<24}16384  0" for name in sorted(call.host.state.modules)]
    return await call.out("\n".join(["Module                  Size  Used by", *rows]))


def size_of(text: str) -> int:
    match = re.fullmatch(r"(\d+)([A-Za-z]*)", text)
    if not match or match[2].upper() not in UNITS:
        raise Usage(f"invalid length value specified: {text}")
    return int(match[1]) * UNITS[match[2].upper()]


async def fallocate(call: Call) -> int:
    options, words = split_options(call.args, "", "-l --length")
    length = options.get("-l", options.get("--length"))
    if length is None or len(words) != 1:
        raise Usage("the lab knows: fallocate -l SIZE FILE")
    total, used = call.host.disk()
    if size_of(length) > total - used:
        return await call.fail("fallocate: fallocate failed: No space left on device")
    existing = call.host.files.exists(words[0], cwd=call.cwd)
    with call.host.files.open_write(words[0], "r+b" if existing else "wb", cwd=call.cwd, asker=call.user) as file:
        size = max(size_of(length), os.fstat(file.fileno()).st_size)
    # the lab gives the length, not the blocks: this disk is somebody's own
    reserve(call.host, posixpath.join(call.cwd, words[0]), size)
    return 0


async def mkswap(call: Call) -> int:
    _, words = split_options(call.args, "-f")
    if len(words) != 1:
        raise Usage("the lab knows: mkswap FILE")
    found = call.host.files.stat(words[0], cwd=call.cwd, asker=call.user)
    if call.host.files.resolve(words[0], cwd=call.cwd) in call.host.state.swaps:
        return await call.fail(f"mkswap: error: {words[0]} is mounted; will not make swapspace")
    if found.size < 40 * 1024:
        return await call.fail("mkswap: error: swap area needs to be at least 40 KiB")
    if found.mode & 0o077:
        await call.fail(f"mkswap: {words[0]}: insecure permissions {found.mode & 0o7777:04o}, fix with: chmod 0600")
    with call.host.files.open_write(words[0], "r+b", cwd=call.cwd, asker=call.user) as file:
        file.seek(SWAP_SIGNATURE_AT)
        file.write(SWAP_SIGNATURE)
    return await call.out(f"Setting up swapspace version 1, size = {found.size - 4096} bytes")


async def swapon(call: Call) -> int:
    options, words = split_options(call.args, "--bytes --noheadings --raw -s -a", "--show")
    listing = "--show" in call.args or "--show" in options or not call.args
    if listing:
        return await _swaps(call, options)
    if not call.user.is_root:
        return await call.fail(f"swapon: {' '.join(words)}: swapon failed: Operation not permitted", 255)
    for path in words:
        found = call.host.files.stat(path, cwd=call.cwd)
        if found.mode & 0o077:
            await call.fail(f"swapon: {path}: insecure permissions {found.mode & 0o7777:04o}, 0600 suggested.")
        try:
            call.host.swap_on(path)
        except OSError as error:
            return await call.fail(f"swapon: {path}: swapon failed: {error.strerror}", 255)
    return 0


async def _swaps(call: Call, options: dict[str, str]) -> int:
    columns = (options.get("--show") or "NAME,TYPE,SIZE,USED,PRIO").upper().split(",")
    if "--noheadings" not in options and call.host.state.swaps:
        await call.out(" ".join(columns))
    for number, path in enumerate(call.host.state.swaps):
        size = call.host.files.stat(path).size - 4096
        values = {"NAME": path, "TYPE": "file", "SIZE": str(size), "USED": "0", "PRIO": str(-2 - number)}
        await call.out(" ".join(values.get(column, "") for column in columns))
    return 0


async def swapoff(call: Call) -> int:
    _, words = split_options(call.args, "-a")
    swaps = call.host.state.swaps
    if not call.user.is_root:
        return await call.fail("swapoff: Not superuser.", 8)
    for path in words if "-a" not in call.args else list(swaps):
        resolved = call.host.files.resolve(path, cwd=call.cwd)
        if resolved not in swaps:
            return await call.fail(f"swapoff: {path}: swapoff failed: Invalid argument", 4)
        swaps.remove(resolved)
    return 0


def _show_words(args: list[str]) -> bool:
    return any(not word.startswith("-") for word in args)


TABLE = {
    "sysctl": Command(sysctl, lambda args: any("=" in word or word in ("-p", "--system") for word in args)),
    "modprobe": Command(modprobe, True),
    "lsmod": Command(lsmod),
    "fallocate": Command(fallocate, True),
    "mkswap": Command(mkswap, True),
    "swapon": Command(swapon, _show_words),
    "swapoff": Command(swapoff, True),
}
