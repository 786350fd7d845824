"""docker exec, as far as dumping a database goes: only in containers of a database, and only its own programs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hybridlab.lab import databases
from hybridlab.lab.hosts.call import Call, Usage

WORTH_S = 0.3  # how long a dump takes


async def docker_exec(call: Call, name: str, container: dict[str, Any], argv: list[str]) -> int:
    """Run a program in a container. 127 where its image has no such program."""
    if not container["running"]:
        short = container["id"]
        return await call.fail(f"Error response from daemon: container {short} is not running")
    kind = databases.kind_of(container["image"])
    try:
        program, _ = databases.program(argv, kind)
    except databases.NotKnown as error:
        return await call.fail(str(error), 127)
    if kind is None or program != kind.dump:
        return await call.fail(f"docker exec: the lab only dumps in {name}: it does not run {program}", 127)
    folder = next(
        (m["Source"] for m in container["mounts"] if kind.folder.startswith(str(m["Destination"]).rstrip("/"))), None
    )
    if folder is None:
        return await call.fail(f"lab: {name} has no volume at {kind.folder}")
    await call.host.world.clock.takes(WORTH_S)
    call.notes.append(databases.NOTE)
    if kind.dump.endswith("-cli"):
        path = f"{folder}/dump.rdb"
        if not call.host.files.exists(path):
            return await call.fail("lab: the volume holds no dump.rdb")
        await call.stdout.write(call.host.files.read(path))
        return 0
    for piece in databases.sql_dump(kind, _files(call, folder)):
        await call.stdout.write(piece)
    return 0


def _files(call: Call, folder: str) -> Iterator[tuple[str, bytes]]:
    files = call.host.files
    for path in sorted(files.walk(files.resolve(folder))):
        if files.stat(path, follow=False).is_file:
            yield path[len(folder) + 1 :], files.read(path)


def parse(words: list[str]) -> tuple[str, list[str]]:
    """Container and command of ``docker exec [-i] CONTAINER COMMAND…``. Raises Usage."""
    rest = list(words)
    while rest and rest[0].startswith("-"):
        if rest[0] not in ("-i", "--interactive"):
            raise Usage(f"the lab knows: docker exec [-i] CONTAINER COMMAND, not {rest[0]}")
        rest.pop(0)
    if len(rest) < 2:
        raise Usage("'docker exec' requires at least 2 arguments")
    return rest[0], rest[1:]
