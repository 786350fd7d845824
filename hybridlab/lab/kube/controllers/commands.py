"""Which commands of a container the lab can really run, and how: its paths become folders, the rest is refused.

A container is not emulated. What runs is real: a Python script that the pod mounts, and a few programs on files in
mounted volumes. Everything else is CannotRun, which the caller reports as exit status 127.
"""

from __future__ import annotations

import posixpath
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PYTHON = ("python3", "python")
FILE_PROGRAMS = ("cat", "ls", "sha256sum", "touch", "mkdir", "rm")
PLAIN_PROGRAMS = ("true", "false", "sleep", "echo")
_TAR_LETTERS = set("cxtvfzJkmpOCSP")
_TAR_OPTIONS = [
    "--create",
    "--extract",
    "--list",
    "--file",
    "--directory",
    "--gzip",
    "--numeric-owner",
    "--xattrs",
    "--sparse",
    "--same-owner",
    "--no-same-owner",
    "--same-permissions",
    "--no-same-permissions",
    "--preserve-permissions",
    "--hard-dereference",
    "--exclude",
    "--null",
    "--sort",
    "--totals",
    "--keep-old-files",
    "--overwrite",
    "--warning",
    "--format",
]


KEEPS_OWNERS = ("archive", "extract", "digest")  # the helper's commands that know owners and modes


def owners_file(folder: Path) -> Path:
    """Beside a volume's folder: the owners and modes that the lab's own user can't give its files."""
    return folder.with_name(folder.name + ".owners")


class CannotRun(Exception):
    """The lab doesn't run this command; the text says which and why."""


@dataclass(frozen=True)
class Mount:
    """A container's mount: where it sees it, and the real folder or file behind it."""

    path: str
    real: Path
    read_only: bool = False


@dataclass(frozen=True)
class Command:
    """A real process: its arguments, environment and working directory."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    directory: Path


def translate(text: str, mounts: Sequence[Mount], directory: str = "/") -> Path | None:
    """The real path of a container's path; None where no mount holds it."""
    path = posixpath.normpath(posixpath.join(directory, text))
    best: Mount | None = None
    for mount in mounts:
        at = mount.path.rstrip("/") or "/"
        if (path == at or path.startswith(at.rstrip("/") + "/")) and (
            best is None or len(at) > len(best.path.rstrip("/"))
        ):
            best = mount
    if best is None:
        return None
    rest = path[len(best.path.rstrip("/")) :].lstrip("/")
    return best.real / rest if rest else best.real


def prepare(
    argv: Sequence[str],
    mounts: Sequence[Mount],
    environment: Mapping[str, str],
    scratch: Path,
    working_dir: str = "/",
) -> Command:
    """Make a container's command one for this machine; ``scratch`` is an empty folder. Raises CannotRun."""
    if not argv:
        raise CannotRun("lab: cannot run an empty command")
    program = posixpath.basename(argv[0])
    real_directory = translate(working_dir, mounts)
    directory = real_directory if real_directory is not None and real_directory.is_dir() else scratch
    safe_environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/root", **environment}
    if program in PYTHON and len(argv) > 1:
        script = translate(argv[1], mounts, working_dir)
        if script is None or not script.is_file():
            raise CannotRun(f"lab: cannot run {argv[0]} {argv[1]}: it is not a file in a mounted volume")
        if argv[2:3] == ["listen"]:
            raise CannotRun("lab: a pod has no sockets of its own: who reaches it is answered from the machines' rules")
        rest = [_rewritten(arg, mounts) for arg in argv[2:]]
        holder = _volume_of(argv[3], mounts) if len(argv) > 3 and argv[2] in KEEPS_OWNERS else None
        if holder is not None:
            rest.append(f"--owners={owners_file(holder)}")
        return Command((sys.executable, "-I", str(script), *rest), safe_environment, directory)
    if program in PLAIN_PROGRAMS:
        return Command((_which(program), *argv[1:]), safe_environment, directory)
    if program in FILE_PROGRAMS:
        rest = [arg if arg.startswith("-") else str(_inside(arg, mounts, working_dir)) for arg in argv[1:]]
        return Command((_which(program), *rest), safe_environment, directory)
    if program == "tar":
        return Command((_which("tar"), *_tar_arguments(argv[1:], mounts, working_dir)), safe_environment, directory)
    raise CannotRun(f"lab: cannot run {argv[0]}: containers are not emulated")


def _volume_of(path: str, mounts: Sequence[Mount]) -> Path | None:
    """The folder of the volume that a path is the root of, or a file in the root of."""
    for mount in mounts:
        at = mount.path.rstrip("/")
        if path == at or (posixpath.dirname(path) == at and (mount.real / posixpath.basename(path)).is_file()):
            return mount.real
    return None


def _which(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        raise CannotRun(f"lab: cannot run {program}: this machine has none")
    return found


def _rewritten(arg: str, mounts: Sequence[Mount]) -> str:
    """An argument of a script: an absolute path in a mount (also after ``--option=``) becomes the real one."""
    option, equals, value = arg.partition("=")
    if option.startswith("--") and equals and value.startswith("/"):
        real = translate(value, mounts)
        return f"{option}={real}" if real is not None else arg
    if not arg.startswith("/"):
        return arg
    real = translate(arg, mounts)
    return str(real) if real is not None else arg


def _inside(arg: str, mounts: Sequence[Mount], working_dir: str) -> Path:
    real = translate(arg, mounts, working_dir)
    if real is None:
        raise CannotRun(f"lab: cannot run a command on {arg}: it is not in a mounted volume")
    return real


def _tar_arguments(args: Sequence[str], mounts: Sequence[Mount], working_dir: str) -> list[str]:
    """tar's arguments with -C, -f and member paths kept inside the mounts; options that run programs are refused."""
    result: list[str] = []
    base = working_dir
    waiting: list[str] = []  # letters of the last bundle that still take an argument, in order
    for index, arg in enumerate(args):
        bundle = arg.startswith("-") and not arg.startswith("--") and arg != "-"
        if waiting:
            letter = waiting.pop(0)
            if letter == "C":
                base = posixpath.join(base, arg)
            result.append("-" if arg == "-" else str(_inside(arg, mounts, base if letter == "f" else working_dir)))
        elif arg.startswith("--"):
            option, equals, value = arg.partition("=")
            if option not in _TAR_OPTIONS:
                raise CannotRun(f"lab: cannot run tar with {option}")
            if option in ("--file", "--directory"):
                if not equals:
                    raise CannotRun(f"lab: cannot run tar with {option} apart from its value")
                value = "-" if value == "-" else str(_inside(value, mounts, working_dir))
                base = posixpath.join(base, arg.partition("=")[2]) if option == "--directory" else base
                arg = f"{option}={value}"
            result.append(arg)
        elif bundle or (index == 0 and set(arg) <= _TAR_LETTERS):
            letters = arg.lstrip("-")
            if not set(letters) <= _TAR_LETTERS:
                raise CannotRun(f"lab: cannot run tar with {arg}")
            waiting = [letter for letter in letters if letter in "fC"]
            result.append(arg)
        elif arg.startswith("/"):
            result.append(str(_inside(arg, mounts, base)))
        else:
            _inside(arg, mounts, base)  # relative to -C: must stay inside
            result.append(arg)
    return result
