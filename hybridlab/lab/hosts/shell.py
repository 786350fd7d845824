"""From the text of an SSH exec request to a command of the table.

There is no shell: the text is split into words as sh would, anything sh would act on is refused, and only commands of
the table exist. ``sudo``, ``env`` and ``timeout`` are understood because they wrap other commands.
"""

from __future__ import annotations

import asyncio
import re
import shlex

from hybridlab.lab.hosts.call import Call, Command, Usage, split_options
from hybridlab.lab.hosts.commands import TABLE, program_file
from hybridlab.lab.hosts.files import ROOT
from hybridlab.lab.hosts.packages import provider

STANDARD_FOLDERS = ("/bin", "/usr/bin", "/sbin", "/usr/sbin")
ACTIVE = set(";|&<>()`$\n*?[")
SECRET_WORD = re.compile(r"^(--?(?:agent-)?token|[A-Z0-9_]*(?:TOKEN|SECRET|PASSWORD)[A-Z0-9_]*)(=)(.+)$", re.DOTALL)
SECRET_OPTION = re.compile(r"^--?(?:agent-)?token$")


class NotWords(Exception):
    """The request is shell text, not a command with its arguments."""


def split(text: str) -> list[str]:
    """The words of an exec request. Raises NotWords where sh would do more than pass words on."""
    quote, start_of_word, skip = "", True, False
    for char in text:
        if skip:
            skip, start_of_word = False, False
        elif quote:
            if char == quote:
                quote = ""
            elif quote == '"' and char in "`$":
                raise NotWords(char)
            elif quote == '"' and char == "\\":
                skip = True
        elif char in "'\"":
            quote, start_of_word = char, False
        elif char == "\\":
            skip = True
        elif char in ACTIVE or (start_of_word and char in "~#"):
            raise NotWords(char)
        else:
            start_of_word = char.isspace()
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise NotWords(str(error)) from error
    if not words:
        raise NotWords("empty")
    if re.match(r"^[A-Za-z_][A-Za-z0-9_]*=", words[0]):
        raise NotWords("=")
    return words


def masked(argv: list[str]) -> tuple[str, bool]:
    """The command for the log, secrets replaced, and whether there were any."""
    shown: list[str] = []
    found = hide_next = False
    for word in argv:
        match = SECRET_WORD.match(word)
        if hide_next:
            shown.append("***")
            hide_next, found = False, True
        elif match:
            shown.append(f"{match[1]}=***")
            found = True
        else:
            shown.append(word)
            hide_next = bool(SECRET_OPTION.match(word))
    return shlex.join(shown), found


def unwrapped(argv: list[str]) -> list[str]:
    """The command inside sudo, env and timeout, to look up what it means."""
    words = list(argv)
    while words:
        name = words[0].rsplit("/", 1)[-1]
        if name == "sudo":
            words = words[1:]
            while words and words[0].startswith("-"):
                words = words[2:] if words[0] in ("-u", "-p") else words[1:]
        elif name == "env":
            words = words[1:]
            while words and (words[0].startswith("-") or "=" in words[0]):
                words = words[1:]
        elif name == "timeout" and len(words) > 2:
            words = words[2:]
        else:
            break
    return words


def is_mutating(call: Call) -> bool:
    words = unwrapped(call.argv)
    if not words:
        return False
    found = _find(call.with_argv(words))
    return isinstance(found, Command) and found.is_mutating(words[1:])


def _find(call: Call) -> Command | int:
    """The command these words name, or the exit status of not finding one (126, 127)."""
    word = call.argv[0]
    folder, _, name = word.rpartition("/")
    files = call.host.files
    if not folder or folder in STANDARD_FOLDERS:
        package = provider(name)
        if name in TABLE and (package is None or package in call.host.state.packages):
            return TABLE[name]
        if folder or not files.exists(f"/usr/local/bin/{name}"):
            return 127
        word = f"/usr/local/bin/{name}"
    if not files.exists(word):
        return 127
    return program_file(call, word)


async def run(call: Call) -> int:
    """Run one command line; returns its exit status and never raises for what a user can do wrong."""
    name = call.name
    try:
        if name == "sudo":
            return await _sudo(call)
        if name == "env":
            return await _env(call)
        if name == "timeout":
            return await _timeout(call)
        found = _find(call)
        if found == 126:
            return await call.fail(f"bash: {call.argv[0]}: cannot execute binary file: Exec format error", 126)
        if isinstance(found, int):
            return await call.fail(f"bash: {call.argv[0]}: command not found", found)
        return await found.run(call)
    except Usage as error:
        return await call.fail(f"{name}: {error}", 2)
    except OSError as error:
        if isinstance(error, ConnectionError):
            raise
        path = error.filename if isinstance(error.filename, str) else ""
        return await call.fail(f"{name}: {path}: {error.strerror}" if path else f"{name}: {error.strerror}")


async def _sudo(call: Call) -> int:
    words = list(call.args)
    user = ROOT
    while words and words[0].startswith("-"):
        option = words.pop(0)
        if option == "--":
            break
        if option == "-u" and words:
            name = words.pop(0)
            if name not in ("root", call.host.user.name):
                return await call.fail(f"sudo: unknown user {name}")
            user = ROOT if name == "root" else call.host.user
        elif option not in ("-n", "-H", "-E"):
            return await call.fail(f"sudo: invalid option -- '{option.lstrip('-')}'")
    if not words:
        return await call.fail("usage: sudo [-n] command")
    # sudo resets the environment
    return await run(call.with_argv(words, user=user, env={}))


async def _env(call: Call) -> int:
    words, env = list(call.args), dict(call.env)
    while words and "=" in words[0] and not words[0].startswith("-"):
        key, _, value = words.pop(0).partition("=")
        env[key] = value
    if words and words[0].startswith("-"):
        raise Usage(f"invalid option -- '{words[0].lstrip('-')}'")
    if not words:
        return await call.out("\n".join(f"{key}={value}" for key, value in env.items()))
    return await run(call.with_argv(words, env=env))


async def _timeout(call: Call) -> int:
    _, words = split_options(call.args[:1])
    try:
        seconds = float(words[0].removesuffix("s"))
    except (IndexError, ValueError) as error:
        raise Usage(f"invalid time interval '{' '.join(words)}'") from error
    if len(call.args) < 2:
        raise Usage("missing operand")
    try:
        return await asyncio.wait_for(run(call.with_argv(call.args[1:])), seconds)
    except TimeoutError:
        return 124
