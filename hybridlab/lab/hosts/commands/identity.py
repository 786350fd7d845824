"""Who and what the machine is: uname, id, nproc, free, df, lscpu, date, …"""

from __future__ import annotations

import json
import time

from hybridlab.lab.hosts.call import Call, Command, Usage, split_options
from hybridlab.lab.hosts.host import hash_text

KERNEL = "6.14.0-1014-oracle"
NO_NUMBER = 4 * 1024**2


async def uname(call: Call) -> int:
    host = call.host
    options, operands = split_options(call.args, "-a -m -n -p -r -s -v")
    if operands:
        raise Usage(f"extra operand '{operands[0]}'")
    fields = {
        "-s": "Linux",
        "-n": host.name,
        "-r": KERNEL,
        "-v": "#14-Ubuntu SMP (lab)",
        "-m": host.uname,
        "-p": host.uname,
    }
    wanted = [key for key in fields if key in options or "-a" in options] or ["-s"]
    return await call.out(" ".join(fields[key] for key in wanted))


async def arch(call: Call) -> int:
    return await call.out(call.host.uname)


async def hostname(call: Call) -> int:
    options, operands = split_options(call.args, "-f -s -I --fqdn")
    if operands:
        raise Usage("the lab's machines keep the name they were launched with")
    return await call.out(call.host.machine.private_ip + " " if "-I" in options else call.host.name)


async def identify(call: Call) -> int:
    options, operands = split_options(call.args, "-u -g -n -G")
    user = call.user
    if operands:
        known = {"root": (0, "root"), call.host.user.name: (call.host.user.uid, call.host.user.name)}
        if operands[0] not in known:
            return await call.fail(f"id: '{operands[0]}': no such user")
        uid, name = known[operands[0]]
    else:
        uid, name = user.uid, user.name
    if options:
        return await call.out(name if "-n" in options else str(uid))
    groups = f"{uid}({name})" + ("" if uid == 0 else ",27(sudo)")
    return await call.out(f"uid={uid}({name}) gid={uid}({name}) groups={groups}")


async def whoami(call: Call) -> int:
    return await call.out(call.user.name)


async def nproc(call: Call) -> int:
    return await call.out(str(call.host.cpus))


async def getent(call: Call) -> int:
    _, operands = split_options(call.args)
    if len(operands) != 2 or operands[0] not in ("passwd", "group", "hosts"):
        raise Usage("the lab knows: getent passwd|group|hosts NAME")
    database, key = operands
    for line in call.host.files.text(f"/etc/{database}", "").splitlines():
        names = line.split() if database == "hosts" else [line.split(":")[0], *line.split(":")[2:3]]
        if key in names:
            return await call.out(line)
    return 2


def memory(call: Call) -> dict[str, int]:
    """Bytes, as /proc/meminfo would have them; used is what an idle Ubuntu with or without K3s takes."""
    host = call.host
    total = int(host.machine.memory_gb * 1024**3 * 0.97)
    base = 180 * 1024**2
    if host.k3s is not None:
        base += (760 if host.k3s.role == "server" else 250) * 1024**2
    used = min(base, total)
    return {"total": total, "used": used, "available": total - used, "swap": host.swap_bytes()}


async def free(call: Call) -> int:
    options, _ = split_options(call.args, "-b -k -m -g -h -w")
    unit = 1024**3 if "-g" in options else 1024**2 if "-m" in options else 1 if "-b" in options else 1024
    m = {key: value // unit for key, value in memory(call).items()}
    left = m["total"] - m["used"]
    header = f"{'':14}{'total':>14}{'used':>14}{'free':>14}{'shared':>14}{'buff/cache':>14}{'available':>14}"
    mem = f"{'Mem:':14}{m['total']:>14}{m['used']:>14}{left:>14}{0:>14}{0:>14}{m['available']:>14}"
    swap = f"{'Swap:':14}{m['swap']:>14}{0:>14}{m['swap']:>14}"
    return await call.out("\n".join([header, mem, swap]))


async def df(call: Call) -> int:
    flags = "-B1 -P -k -h -T"
    words = [word for word in call.args if word not in ("-B1", "--block-size=1")]
    unit = 1 if len(words) != len(call.args) else 1024
    options, operands = split_options(words, flags, "--output")
    for path in operands:
        call.host.files.stat(path, asker=call.user)
    size, used = (value // unit for value in call.host.disk())
    left = max(0, size - used)
    values = {
        "source": "/dev/sda1",
        "fstype": "ext4",
        "size": str(size),
        "used": str(used),
        "avail": str(left),
        "pcent": f"{100 * used // size}%",
        "target": "/",
    }
    names = {
        "source": "Filesystem",
        "fstype": "Type",
        "size": "1B-blocks" if unit == 1 else "1K-blocks",
        "used": "Used",
        "avail": "Avail",
        "pcent": "Use%",
        "target": "Mounted on",
    }
    wanted = options["--output"].split(",") if "--output" in options else [k for k in names if k != "fstype"]
    unknown = [key for key in wanted if key not in names]
    if unknown:
        raise Usage(f"option --output: field '{unknown[0]}' unknown")
    return await call.out(" ".join(names[k] for k in wanted) + "\n" + " ".join(values[k] for k in wanted))


async def lscpu(call: Call) -> int:
    options, operands = split_options(call.args, "-J --json")
    if operands or not options:
        raise Usage("the lab knows: lscpu -J")
    host = call.host
    fields = {"Architecture:": host.uname, "CPU(s):": str(host.cpus), "Model name:": host.cpu_model}
    rows = [{"field": key, "data": value} for key, value in fields.items()]
    return await call.out(json.dumps({"lscpu": rows}, indent=3))


async def date(call: Call) -> int:
    words = [word for word in call.args if word not in ("-u", "--utc")]
    now = call.host.world.clock.now()
    if not words:
        return await call.out(time.strftime("%a %b %e %H:%M:%S UTC %Y", time.gmtime(now)))
    if len(words) != 1 or not words[0].startswith("+"):
        raise Usage("the lab knows: date [-u] [+FORMAT]")
    return await call.out(time.strftime(words[0][1:].replace("%s", str(int(now))), time.gmtime(now)))


async def uptime(call: Call) -> int:
    if call.args not in (["-s"], ["--since"]):
        raise Usage("the lab knows: uptime -s")
    return await call.out(time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(call.host.state.booted_at)))


async def true(_: Call) -> int:
    return 0


async def false(_: Call) -> int:
    return 1


async def echo(call: Call) -> int:
    return await call.out(" ".join(call.args))


def proc_text(call: Call, path: str) -> str | None:
    """A file of /proc or /sys as this machine would show it, or None."""
    host = call.host
    now = host.world.clock.now()
    m = {key: value // 1024 for key, value in memory(call).items()}
    texts = {
        "/proc/meminfo": f"MemTotal: {m['total']} kB\nMemFree: {m['available']} kB\nMemAvailable: {m['available']} kB\n"
        f"SwapTotal: {m['swap']} kB\nSwapFree: {m['swap']} kB\n",
        "/proc/uptime": f"{now - host.state.booted_at:.2f} 0.00\n",
        "/proc/version": f"Linux version {KERNEL} (lab)\n",
        "/proc/cpuinfo": "".join(f"processor\t: {n}\nmodel name\t: {host.cpu_model}\n\n" for n in range(host.cpus)),
        "/proc/swaps": "Filename\tType\tSize\tUsed\tPriority\n"
        + "".join(f"{p}\tfile\t{host.files.stat(p).size // 1024}\t0\t-2\n" for p in host.state.swaps),
        "/proc/modules": "".join(f"{name} 16384 0 - Live 0x0000000000000000\n" for name in host.state.modules),
        "/proc/sys/kernel/random/boot_id": f"{hash_text(f'{host.machine.id} {host.state.boots}'):032x}\n",
    }
    return texts.get(path)


TABLE = {
    "uname": Command(uname),
    "arch": Command(arch),
    "hostname": Command(hostname),
    "id": Command(identify),
    "whoami": Command(whoami),
    "nproc": Command(nproc),
    "getent": Command(getent),
    "free": Command(free),
    "df": Command(df),
    "lscpu": Command(lscpu),
    "date": Command(date),
    "uptime": Command(uptime),
    "true": Command(true),
    "false": Command(false),
    "echo": Command(echo),
}
