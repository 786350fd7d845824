"""Files: cat, ls, test, stat, install, cp, mv, rm, chmod, chown, tee, mkdir, sha256sum, readlink, …"""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
import stat as stat_
from collections.abc import Callable

from hybridlab.lab.hosts.call import CHUNK, Call, Command, Usage, split_options
from hybridlab.lab.hosts.commands.copies import copy_file, into
from hybridlab.lab.hosts.commands.identity import proc_text
from hybridlab.lab.hosts.files import Stat, link_text


def mode_of(text: str, before: int = 0o644, *, is_dir: bool = False) -> int:
    """The mode a chmod argument asks for: octal, or symbolic such as ``u+x`` or ``go-rwx``."""
    if re.fullmatch(r"[0-7]{1,4}", text):
        return int(text, 8)
    mode = before
    for clause in text.split(","):
        match = re.fullmatch(r"([ugoa]*)([-+=])([rwxX]*)", clause)
        if not match:
            raise Usage(f"invalid mode: '{text}'")
        who, operator, what = match[1] or "a", match[2], match[3]
        bits = sum({"r": 4, "w": 2, "x": 1, "X": 1 if is_dir or mode & 0o111 else 0}[c] for c in set(what))
        for shift in (s for key, s in (("u", 6), ("g", 3), ("o", 0)) if key in who or "a" in who):
            if operator == "=":
                mode &= ~(7 << shift)
            mode = mode & ~(bits << shift) if operator == "-" else mode | bits << shift
    return mode


def owner_of(call: Call, text: str) -> tuple[int | None, int | None]:
    """uid and gid of ``user``, ``user:group`` or ``:group``, names or numbers."""

    def number(word: str, table: str) -> int | None:
        if not word:
            return None
        if word.isdigit():
            return int(word)
        for line in call.host.files.text(f"/etc/{table}").splitlines():
            parts = line.split(":")
            if parts[0] == word:
                return int(parts[2])
        raise Usage(f"invalid {'user' if table == 'passwd' else 'group'}: '{word}'")

    user, _, group = text.partition(":")
    return number(user, "passwd"), number(group, "group")


async def _for_each(call: Call, paths: list[str], action: Callable[[str], None]) -> int:
    """Run an action on each operand, reporting each failure as coreutils do."""
    status = 0
    for path in paths:
        try:
            action(path)
        except OSError as error:
            status = await call.fail(f"{call.name}: {path}: {error.strerror}")
    return status


def _need(operands: list[str], count: int = 1) -> None:
    if len(operands) < count:
        raise Usage("missing operand")


async def cat(call: Call) -> int:
    _, operands = split_options(call.args)
    status = 0
    for path in operands or ["-"]:
        if path == "-":
            while piece := await call.stdin.read(CHUNK):
                await call.stdout.write(piece)
            continue
        shown = proc_text(call, posixpath.normpath(path))
        if shown is not None:
            await call.stdout.write(shown.encode())
            continue
        try:
            with call.host.files.open_read(path, cwd=call.cwd, asker=call.user) as file:
                while piece := file.read(CHUNK):
                    await call.stdout.write(piece)
        except OSError as error:
            status = await call.fail(f"cat: {path}: {error.strerror}")
    return status


async def head(call: Call) -> int:
    options, operands = split_options(call.args, "", "-n -c")
    if "-c" not in options or len(operands) != 1:
        raise Usage("the lab knows: head -c BYTES FILE")
    with call.host.files.open_read(operands[0], cwd=call.cwd, asker=call.user) as file:
        await call.stdout.write(file.read(int(options["-c"])))
    return 0


async def ls(call: Call) -> int:
    options, operands = split_options(call.args, "-1 -a -A -l -n -d")
    files, status = call.host.files, 0
    for path in operands or ["."]:
        try:
            found = files.stat(path, cwd=call.cwd, asker=call.user, follow="-l" not in options)
            names = [path]
            if found.is_dir and "-d" not in options:
                names = files.listdir(path, cwd=call.cwd, asker=call.user)
                if "-a" not in options and "-A" not in options:
                    names = [name for name in names if not name.startswith(".")]
            for name in names:
                full = name if name == path else posixpath.join(path, name)
                if "-l" in options or "-n" in options:
                    entry = files.stat(full, cwd=call.cwd, follow=False, asker=call.user)
                    name = f"{stat_.filemode(entry.mode)} {entry.links} {entry.uid} {entry.gid} {entry.size} {name}"
                await call.out(name)
        except OSError as error:
            status = await call.fail(f"ls: cannot access '{path}': {error.strerror}", 2)
    return status


async def test(call: Call) -> int:
    words = list(call.args)
    if call.name == "[" and (not words or words.pop() != "]"):
        raise Usage("missing ]")
    negate = bool(words) and words[0] == "!"
    words = words[1:] if negate else words
    if len(words) != 2 or words[0] not in ("-e", "-f", "-d", "-L", "-h", "-s", "-r", "-w", "-x", "-n", "-z"):
        raise Usage("the lab knows: test [!] -e|-f|-d|-L|-s|-r|-w|-x PATH and -n|-z STRING")
    operator, operand = words
    if operator in ("-n", "-z"):
        result = bool(operand) == (operator == "-n")
    else:
        result = _path_test(call, operator, operand)
    return int(result == negate)


def _path_test(call: Call, operator: str, path: str) -> bool:
    files = call.host.files
    try:
        found = files.stat(path, cwd=call.cwd, follow=operator not in ("-L", "-h"), asker=call.user)
        if operator in ("-r", "-w", "-x"):
            files.demand(call.user, files.resolve(path, cwd=call.cwd), operator[1])  # type: ignore[arg-type]
            return operator != "-x" or bool(found.mode & 0o111)
    except OSError:
        return False
    checks = {
        "-e": True,
        "-f": found.is_file,
        "-d": found.is_dir,
        "-s": found.size > 0,
        "-L": found.is_link,
        "-h": found.is_link,
    }
    return checks[operator]


async def stat(call: Call) -> int:
    options, operands = split_options(call.args, "-L", "-c --format")
    pattern = options.get("-c", options.get("--format"))
    if pattern is None:
        raise Usage("the lab knows: stat [-L] -c FORMAT FILE…")
    _need(operands)
    status = 0
    for path in operands:
        try:
            found = call.host.files.stat(path, cwd=call.cwd, follow="-L" in options, asker=call.user)
        except OSError as error:
            status = await call.fail(f"stat: cannot statx '{path}': {error.strerror}")
            continue
        await call.out(_stat_line(call, pattern, path, found))
    return status


def _stat_line(call: Call, pattern: str, path: str, found: Stat) -> str:
    names = {0: "root", call.host.user.uid: call.host.user.name}
    kinds = {stat_.S_IFREG: "regular file" if found.size else "regular empty file", stat_.S_IFDIR: "directory",
             stat_.S_IFLNK: "symbolic link"}  # fmt: skip
    values = {
        "a": f"{found.mode & 0o7777:o}",
        "A": stat_.filemode(found.mode),
        "u": str(found.uid),
        "g": str(found.gid),
        "U": names.get(found.uid, "UNKNOWN"),
        "G": names.get(found.gid, "UNKNOWN"),
        "s": str(found.size),
        "n": path,
        "Y": str(found.mtime_ns // 10**9),
        "F": kinds.get(stat_.S_IFMT(found.mode), "other"),
        "h": str(found.links),
        "%": "%",
    }

    def value(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise Usage(f"%{match[1]}: the lab does not know this directive")
        return values[match[1]]

    return re.sub(r"%(.)", value, pattern)


async def readlink(call: Call) -> int:
    options, operands = split_options(call.args, "-f")
    _need(operands)
    files = call.host.files
    if "-f" in options:
        return await call.out(files.resolve(operands[0], cwd=call.cwd, asker=call.user))
    found = files.stat(operands[0], cwd=call.cwd, follow=False, asker=call.user)
    return await call.out(link_text(found.real)) if found.is_link else 1


async def sha256sum(call: Call) -> int:
    options, operands = split_options(call.args, "-b --binary -c --check --status")
    _need(operands)
    status = 0
    for path in operands:
        try:
            if "-c" in options or "--check" in options:
                for line in call.host.files.read(path, cwd=call.cwd, asker=call.user).decode().splitlines():
                    wanted, _, name = line.partition("  ")
                    ok = _digest(call, name) == wanted
                    status |= not ok
                    if "--status" not in options:
                        await call.out(f"{name}: {'OK' if ok else 'FAILED'}")
            else:
                await call.out(f"{_digest(call, path)}  {path}")
        except OSError as error:
            status = await call.fail(f"sha256sum: {error.filename or path}: {error.strerror}")
    return status


def _digest(call: Call, path: str) -> str:
    with call.host.files.open_read(path, cwd=call.cwd, asker=call.user) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # a BufferedReader in truth


async def mkdir(call: Call) -> int:
    options, operands = split_options(call.args, "-p --parents", "-m --mode")
    _need(operands)
    files = call.host.files
    mode_text = options.get("-m", options.get("--mode", "755"))

    def make(path: str) -> None:
        if "-p" in options or "--parents" in options:
            existed = files.exists(path, cwd=call.cwd)
            files.makedirs(path, cwd=call.cwd, asker=call.user)
            if not existed:
                files.chmod(path, mode_of(mode_text), cwd=call.cwd, asker=call.user)
        else:
            files.mkdir(path, cwd=call.cwd, asker=call.user, mode=mode_of(mode_text))

    return await _for_each(call, operands, make)


async def install(call: Call) -> int:
    options, operands = split_options(call.args, "-d -D -T", "-m --mode -o --owner -g --group")
    files = call.host.files
    mode = mode_of(options.get("-m", options.get("--mode", "755")))
    uid, _ = owner_of(call, options.get("-o", options.get("--owner", "")))
    _, gid = owner_of(call, ":" + options.get("-g", options.get("--group", "")))
    uid, gid = call.user.uid if uid is None else uid, call.user.gid if gid is None else gid

    def finish(path: str) -> None:
        if not call.user.is_root and (uid, gid) != (call.user.uid, call.user.gid):
            raise OSError(1, "Operation not permitted", path)
        files.set_owner(files.resolve(path, cwd=call.cwd), uid, gid, mode)

    if "-d" in options:
        _need(operands)

        def make(path: str) -> None:
            files.makedirs(path, cwd=call.cwd, asker=call.user)
            finish(path)

        return await _for_each(call, operands, make)
    _need(operands, 2)
    if len(operands) != 2:
        raise Usage("the lab knows: install [-m MODE] [-o OWNER] [-g GROUP] SOURCE DEST")
    source, dest = operands
    if "-D" in options:
        files.makedirs(posixpath.dirname(posixpath.join(call.cwd, dest)), asker=call.user)
    dest = into(call, source, dest)
    # install(1) makes a new file in place of the old one, so that a running program keeps its own
    data_from = files.stat(source, cwd=call.cwd, asker=call.user)
    if data_from.is_dir:
        return await call.fail(f"install: omitting directory '{source}'")
    scratch = posixpath.join(call.cwd, dest) + ".install-tmp"
    try:
        copy_file(call, source, scratch)
    except OSError:
        if files.exists(scratch):
            files.remove(scratch)
        raise
    files.rename(scratch, dest, cwd=call.cwd, asker=call.user)
    finish(dest)
    return 0


async def mv(call: Call) -> int:
    options, operands = split_options(call.args, "-f -n -T")
    if len(operands) != 2:
        raise Usage("the lab knows: mv [-f] [-T] SOURCE DEST")
    source, dest = operands
    dest = dest if "-T" in options else into(call, source, dest)
    call.host.files.rename(source, dest, cwd=call.cwd, asker=call.user)
    return 0


async def rm(call: Call) -> int:
    options, operands = split_options(call.args, "-f --force -r -R --recursive")
    files, force = call.host.files, bool(options.keys() & {"-f", "--force"})
    recursive = bool(options.keys() & {"-r", "-R", "--recursive"})
    if not force:
        _need(operands)

    def drop(path: str) -> None:
        resolved = files.resolve(path, cwd=call.cwd, follow=False, asker=call.user)
        if resolved == "/":
            raise OSError(1, "it is dangerous to operate recursively on '/'", path)
        if force and not os.path.lexists(files.real(resolved)):
            return
        if recursive:
            files.rmtree(resolved, asker=call.user)
        else:
            files.remove(resolved, asker=call.user)

    def drop_quietly(path: str) -> None:
        try:
            drop(path)
        except FileNotFoundError:
            if not force:
                raise

    return await _for_each(call, operands, drop_quietly)


async def rmdir(call: Call) -> int:
    _, operands = split_options(call.args)
    _need(operands)
    return await _for_each(call, operands, lambda p: call.host.files.rmdir(p, cwd=call.cwd, asker=call.user))


async def chmod(call: Call) -> int:
    words = call.args
    options, operands = split_options(words, "-R")
    _need(operands, 2)
    files = call.host.files

    def change(path: str) -> None:
        resolved = files.resolve(path, cwd=call.cwd, asker=call.user)
        for each in files.walk(resolved) if "-R" in options else [resolved]:
            found = files.stat(each, follow=False)
            if not found.is_link:
                files.chmod(each, mode_of(operands[0], found.mode & 0o7777, is_dir=found.is_dir), asker=call.user)

    return await _for_each(call, operands[1:], change)


async def chown(call: Call) -> int:
    options, operands = split_options(call.args, "-R -h")
    _need(operands, 2)
    files = call.host.files
    uid, gid = owner_of(call, operands[0])

    def change(path: str) -> None:
        resolved = files.resolve(path, cwd=call.cwd, asker=call.user)
        for each in files.walk(resolved) if "-R" in options else [resolved]:
            found = files.stat(each, follow=False)
            wanted = found.uid if uid is None else uid, found.gid if gid is None else gid
            files.chown(each, *wanted, asker=call.user)

    return await _for_each(call, operands[1:], change)


async def tee(call: Call) -> int:
    options, operands = split_options(call.args, "-a --append")
    _need(operands)
    flags = "ab" if options else "wb"
    opened = [call.host.files.open_write(path, flags, cwd=call.cwd, asker=call.user) for path in operands]
    try:
        while piece := await call.stdin.read(CHUNK):
            for file in opened:
                file.write(piece)
            await call.stdout.write(piece)
    finally:
        for file in opened:
            file.close()
    return 0


async def touch(call: Call) -> int:
    _, operands = split_options(call.args)
    _need(operands)
    return await _for_each(
        call, operands, lambda p: call.host.files.open_write(p, "ab", cwd=call.cwd, asker=call.user).close()
    )


async def ln(call: Call) -> int:
    options, operands = split_options(call.args, "-s -f -n")
    if len(operands) != 2:
        raise Usage("the lab knows: ln [-s] [-f] TARGET LINK")
    files = call.host.files
    target, link = operands
    resolved = files.resolve(link, cwd=call.cwd, follow=False, asker=call.user)
    if "-f" in options and os.path.lexists(files.real(resolved)):
        files.remove(resolved, asker=call.user)
    if "-s" in options:
        files.symlink(target, resolved, asker=call.user)
    else:
        files.link(target, resolved, cwd=call.cwd, asker=call.user)
    return 0


async def mktemp(call: Call) -> int:
    options, operands = split_options(call.args, "-d")
    pattern = operands[0] if operands else "/tmp/tmp.XXXXXXXXXX"
    if len(operands) > 1 or not pattern.endswith("XXX"):
        raise Usage("too few X's in template")
    stem = pattern.rstrip("X")
    path = posixpath.join(call.cwd, stem + os.urandom(8).hex()[: len(pattern) - len(stem)])
    if "-d" in options:
        call.host.files.mkdir(path, asker=call.user, mode=0o700)
    else:
        call.host.files.open_write(path, "xb", asker=call.user, mode=0o600).close()
    return await call.out(path)


TABLE = {
    "cat": Command(cat),
    "head": Command(head),
    "ls": Command(ls),
    "test": Command(test),
    "[": Command(test),
    "stat": Command(stat),
    "readlink": Command(readlink),
    "sha256sum": Command(sha256sum),
    "mkdir": Command(mkdir, True),
    "install": Command(install, True),
    "mv": Command(mv, True),
    "rm": Command(rm, True),
    "rmdir": Command(rmdir, True),
    "chmod": Command(chmod, True),
    "chown": Command(chown, True),
    "tee": Command(tee, True),
    "touch": Command(touch, True),
    "ln": Command(ln, True),
    "mktemp": Command(mktemp, True),
}
