"""python3 with the node helper: the uploaded file really runs, on the machine's own folder.

What only a real network can show (probe, listen) is answered from the live rules of the machines. Owners and modes,
which this process cannot give, go through the helper's ``--owners`` file.
"""

from __future__ import annotations

import asyncio
import json
import os
import posixpath
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hybridlab.lab.hosts.call import Call, Command, Usage
from hybridlab.lab.hosts.commands.identity import KERNEL, memory
from hybridlab.lab.hosts.program import run_program

if TYPE_CHECKING:
    from hybridlab.lab.hosts.part import HostsPart

HELPER_MARK = b"hybridlab node helper"
VERSION = "Python 3.12.3"
READS, WRITES = {"archive", "digest"}, {"extract", "write"}
PROBE_TIMEOUT_S = 2.0


def _mutates(args: list[str]) -> bool:
    return bool(WRITES.intersection(args[:3]))


class Kept:
    """A small output, kept to be looked at before it is passed on."""

    def __init__(self) -> None:
        self.data = bytearray()

    async def write(self, data: bytes) -> None:
        self.data += data


async def python3(call: Call) -> int:
    words = [word for word in call.args if word not in ("-I", "-u", "-B")]
    if words in (["--version"], ["-V"]):
        return await call.out(VERSION)
    if not words or words[0].startswith("-"):
        raise Usage("the lab knows: python3 FILE, for the node helper")
    try:
        with call.host.files.open_read(words[0], cwd=call.cwd, asker=call.user) as file:
            marked = HELPER_MARK in file.read(400)
    except FileNotFoundError:
        return await call.fail(f"python3: can't open file '{words[0]}': [Errno 2] No such file or directory", 2)
    if not marked:
        return await call.fail(f"python3: {words[0]}: the lab runs no other program than the node helper", 126)
    subcommand = words[1] if len(words) > 1 else ""
    if subcommand == "probe":
        return await probe(call, words[2:])
    if subcommand == "listen":
        return await listen(call, words[2:])
    return await _run_helper(call, words, subcommand)


async def _run_helper(call: Call, words: list[str], subcommand: str) -> int:
    host = call.host
    real = [sys.executable, "-I", *(_mapped(call, word) for word in words)]
    share = min(1.0, host.machine.ocpus) if subcommand == "bench" else 1.0
    cpus = host.cpus if subcommand == "bench" else None
    kept = Kept()
    measured = subcommand in ("facts", "bench")
    stdout = kept if measured or subcommand == "write" else call.stdout
    target = next((word for word in words[2:] if not word.startswith("-")), None)
    async with _owners(call, subcommand, target) as options:
        status = await run_program([*real, *options], call.stdin, stdout, call.stderr, share=share, cpus=cpus)
    if (
        subcommand == "archive"
        and target is not None
        and host.world.faults.fires("source-changed", f"{host.name} {target}")
    ):
        _change_something(call, target)
    if subcommand == "write" and status == 0 and target is not None:
        host.files.set_owner(host.files.resolve(target, cwd=call.cwd), call.user.uid, call.user.gid, 0o644)
        await call.out(json.dumps({**json.loads(kept.data), "path": target}))
    if measured and status == 0:
        await call.out(json.dumps(_as_machine(call, json.loads(kept.data))))
    return status


def _change_something(call: Call, target: str) -> None:
    """The fault ``source-changed``: a byte more in the first file of a folder."""
    files = call.host.files
    for path in files.walk(files.resolve(target)):
        if files.stat(path, follow=False).is_file:
            with files.open_write(path, "ab") as file:
                file.write(b"!")
            return


def _mapped(call: Call, word: str) -> str:
    """An absolute path as the real path in the machine's folder; anything else as it is."""
    option, equals, value = word.partition("=")
    if word.startswith("--") and equals and value.startswith("/"):
        return f"{option}={_mapped(call, value)}"
    if not word.startswith("/"):
        return word
    files = call.host.files
    return str(files.real(files.resolve(word, asker=call.user, parents_exist=False)))


@asynccontextmanager
async def _owners(call: Call, subcommand: str, target: str | None) -> AsyncIterator[list[str]]:
    """The helper's options for owners and modes around a run, and the rights the user needs for it."""
    files = call.host.files
    if subcommand not in ("archive", "digest", "extract") or target is None or not target.startswith("/"):
        if subcommand == "write" and target is not None:
            files.open_write(target, "ab", cwd=call.cwd, asker=call.user).close()
        yield []
        return
    if subcommand == "extract":
        files.makedirs(target, asker=call.user)
    resolved = files.resolve(target, asker=call.user)
    single = files.real(resolved).is_file()
    for want in ("r", *(() if single else ("x",)), *(("w",) if subcommand == "extract" else ())):
        files.demand(call.user, resolved, want)
    if not single and not files.real(resolved).is_dir():
        yield []
        return
    handle, name = tempfile.mkstemp(prefix="owners-", dir=files.root.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            table = files.owners_below(resolved)
            json.dump({posixpath.basename(resolved): table["."]} if single else table, file)
        yield [f"--owners={name}"]
        if subcommand == "extract":
            files.adopt_owners(resolved, json.loads(Path(name).read_text("utf-8")))
    finally:
        Path(name).unlink()


def _as_machine(call: Call, found: dict[str, Any]) -> dict[str, Any]:
    """Facts of the lab's machine over those of the machine the lab runs on; measurements stay as they are."""
    host = call.host
    facts = found.get("facts", found)
    facts["note"] = f"lab: measured on the machine the lab runs on ({facts['cpu_model']}, {facts['machine']})"
    facts.update(
        hostname=host.name, machine=host.uname, cpu_model=host.cpu_model, cpus=host.cpus, kernel=KERNEL,
        memory_bytes=memory(call)["total"],
    )  # fmt: skip
    return found


# -- the network, from the rules ---------------------------------------------------------------------------------------
def _arguments(words: list[str], known: dict[str, str]) -> tuple[list[str], dict[str, list[str]]]:
    """Operands and options, for options that take one value ("1") or several ("*")."""
    operands: list[str] = []
    options: dict[str, list[str]] = {}
    current: list[str] | None = None
    for word in words:
        if word.startswith("--"):
            if word not in known:
                raise Usage(f"unrecognized arguments: {word}")
            current = options.setdefault(word, [])
        elif current is not None:
            current.append(word)
            current = current if known.get(next(reversed(options))) == "*" else None
        else:
            operands.append(word)
    return operands, options


async def listen(call: Call, words: list[str]) -> int:
    _, options = _arguments(words, {"--tcp": "*", "--udp": "*", "--seconds": "1", "--until-eof": "0"})
    seconds = float(options.get("--seconds", ["10"])[0])
    host = call.host
    wanted = [(kind, int(port)) for kind in ("tcp", "udp") for port in options.get(f"--{kind}", [])]
    taken = [key for key in wanted if host.is_listening(*key)]
    mine = [key for key in wanted if key not in taken]
    for key in mine:
        host.listening[key] += 1
    try:
        names = {
            "listening": [f"{port}/{kind}" for kind, port in mine],
            "in_use": [f"{port}/{kind}" for kind, port in taken],
        }
        await call.out(json.dumps(names))
        if "--until-eof" in options:
            await asyncio.wait_for(_until_eof(call), seconds)
        else:
            await asyncio.sleep(seconds)
    except TimeoutError:
        pass
    finally:
        for key in mine:
            host.listening[key] -= 1
    return 0


async def _until_eof(call: Call) -> None:
    while await call.stdin.read(1024):
        pass


async def probe(call: Call, words: list[str]) -> int:
    operands, options = _arguments(words, {"--size": "1", "--timeout": "1"})
    if not operands:
        raise Usage("the following arguments are required: HOST:PORT/tcp|udp")
    size = int(options.get("--size", ["64"])[0])
    timeout = float(options.get("--timeout", [str(PROBE_TIMEOUT_S)])[0])
    rows = []
    for target in operands:
        address, _, kind = target.rpartition("/")
        ip, _, port = address.rpartition(":")
        if kind not in ("tcp", "udp") or not port.isdigit():
            raise Usage(f"not HOST:PORT/tcp or /udp: {target}")
        state, error = _outcome(call, ip, kind, int(port))
        row: dict[str, Any] = {"target": target, "size": size, "state": state, "ms": 0.5}
        if state in ("filtered", "silent"):
            await call.host.world.clock.takes(timeout)
            row["ms"] = timeout * 1000
        rows.append({**row, **({"error": error} if error else {})})
    return await call.out(json.dumps(rows))


def _outcome(call: Call, ip: str, kind: str, port: int) -> tuple[str, str]:
    """What a program on this machine sees when it sends to an address: the helper's state, and the system's words."""
    host, world = call.host, call.host.world
    part = cast("HostsPart", world.hosts)
    own = host.machine.private_ip
    lost = ("filtered" if kind == "tcp" else "silent"), ""
    dest = host if ip == "127.0.0.1" else part.host_at(ip)
    if dest is None:
        return lost
    if dest is not host:
        if not world.network.allows(own, ip, kind, port):  # type: ignore[arg-type]
            return lost
        verdict = part.verdict(dest.machine.id, "INPUT", kind, port, source=own)
        if verdict == "DROP":
            return lost
        if verdict in ("REJECT tcp-reset", "REJECT icmp-port-unreachable"):
            return "refused", "Connection refused"
        if verdict.startswith("REJECT"):
            return "rejected", "No route to host"
    if dest.listening.get((kind, port)):
        return "echo", ""
    if dest.is_listening(kind, port):
        return ("open" if kind == "tcp" else "silent"), ""
    return "refused", "Connection refused"


TABLE = {"python3": Command(python3, _mutates)}
