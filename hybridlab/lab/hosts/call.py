"""One command being run on a lab machine: its words, who runs it, its streams."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from hybridlab.lab.hosts.files import User

if TYPE_CHECKING:
    from hybridlab.lab.hosts.host import Host

CHUNK = 128 * 1024


class Source(Protocol):
    """Standard input."""

    async def read(self, size: int) -> bytes:
        """Up to ``size`` bytes; empty at the end."""


class Sink(Protocol):
    """Standard output or error."""

    async def write(self, data: bytes) -> None: ...


class Discard:
    """Where the answer goes once the connection is lost."""

    async def write(self, data: bytes) -> None:
        return None


class EmptySource:
    async def read(self, size: int) -> bytes:
        return b""


@dataclass
class Call:
    """What a command gets. ``argv[0]`` is the command's own name, as it was called."""

    host: Host
    argv: list[str]
    user: User
    stdin: Source
    stdout: Sink
    stderr: Sink
    login: User  # who came in over SSH; differs from ``user`` under sudo
    env: Mapping[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # for the request log

    @property
    def name(self) -> str:
        return self.argv[0].rsplit("/", 1)[-1]

    @property
    def args(self) -> list[str]:
        return self.argv[1:]

    @property
    def cwd(self) -> str:
        return self.host.files.home(self.login)

    async def out(self, text: str) -> int:
        """Print a line; for ``return await call.out(…)``."""
        await self.stdout.write((text + "\n").encode("utf-8", "surrogateescape"))
        return 0

    async def fail(self, text: str, status: int = 1) -> int:
        """Print a line on standard error and give the exit status."""
        await self.stderr.write((text + "\n").encode("utf-8", "surrogateescape"))
        return status

    async def read_stdin(self, limit: int = 16 * 1024 * 1024) -> bytes:
        """All of standard input, for commands whose input is small."""
        parts: list[bytes] = []
        total = 0
        while piece := await self.stdin.read(CHUNK):
            parts.append(piece)
            total += len(piece)
            if total > limit:
                raise OSError(27, "File too large", "standard input")
        return b"".join(parts)

    def with_argv(self, argv: Sequence[str], user: User | None = None, env: Mapping[str, str] | None = None) -> Call:
        return replace(self, argv=list(argv), user=user or self.user, env=self.env if env is None else env)


Handler = Callable[[Call], Awaitable[int]]
Mutates = bool | Callable[[list[str]], bool]


@dataclass(frozen=True)
class Command:
    """A row of the table: what runs, and whether these arguments are meant to change something."""

    run: Handler
    mutates: Mutates = False

    def is_mutating(self, args: list[str]) -> bool:
        return self.mutates if isinstance(self.mutates, bool) else self.mutates(args)


class Usage(Exception):
    """The command was called in a way the lab does not know; the text goes to standard error, status 2."""


def split_options(args: Sequence[str], flags: str = "", valued: str = "") -> tuple[dict[str, str], list[str]]:
    """Split short options (grouped ones too) and long options from operands.

    ``flags`` and ``valued`` are space-separated names such as ``-p --parents`` and ``-m --mode``. Raises Usage for
    any other option.
    """
    simple, takes = set(flags.split()), set(valued.split())
    options: dict[str, str] = {}
    operands: list[str] = []
    rest = list(args)
    while rest:
        word = rest.pop(0)
        if word == "--":
            operands += rest
            break
        if not word.startswith("-") or word == "-":
            operands.append(word)
        elif word.startswith("--"):
            name, equals, value = word.partition("=")
            if name in takes:
                if not equals and not rest:
                    raise Usage(f"option '{name}' requires an argument")
                options[name] = value if equals else rest.pop(0)
            elif name in simple and not equals:
                options[name] = ""
            else:
                raise Usage(f"unrecognized option '{word}'")
        elif word[:2] in takes:
            if word[2:]:
                options[word[:2]] = word[2:]
            elif rest:
                options[word[:2]] = rest.pop(0)
            else:
                raise Usage(f"option requires an argument -- '{word[1:]}'")
        else:
            for letter in word[1:]:
                if "-" + letter not in simple:
                    raise Usage(f"invalid option -- '{letter}'")
                options["-" + letter] = ""
    return options, operands
