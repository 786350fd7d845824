"""cp: files and folders, with owners, modes and times where asked for."""

from __future__ import annotations

import os
import posixpath

from hybridlab.lab.hosts.call import CHUNK, Call, Command, Usage, split_options

KEEP = ("-p", "-a", "--preserve")
RECURSIVE = ("-r", "-R", "-a", "--recursive")


def into(call: Call, source: str, dest: str) -> str:
    """The path a copy lands at when the destination may be a directory."""
    files = call.host.files
    if files.exists(dest, cwd=call.cwd) and files.stat(dest, cwd=call.cwd).is_dir:
        return posixpath.join(dest, posixpath.basename(source.rstrip("/")))
    return dest


def copy_file(call: Call, source: str, dest: str) -> None:
    """One file's bytes and permission bits."""
    files = call.host.files
    mode = files.stat(source, cwd=call.cwd, asker=call.user).mode & 0o777
    with (
        files.open_read(source, cwd=call.cwd, asker=call.user) as reader,
        files.open_write(dest, cwd=call.cwd, asker=call.user, mode=mode) as writer,
    ):
        while piece := reader.read(CHUNK):
            writer.write(piece)


async def cp(call: Call) -> int:
    options, operands = split_options(call.args, "-p -a -r -R -f -n --preserve --recursive")
    if len(operands) < 2:
        raise Usage("the lab knows: cp [-a|-p|-r|-n] SOURCE… DEST")
    *sources, dest = operands
    files = call.host.files
    if len(sources) > 1 and not (files.exists(dest, cwd=call.cwd) and files.stat(dest, cwd=call.cwd).is_dir):
        return await call.fail(f"cp: target '{dest}' is not a directory")
    recursive, keep = bool(options.keys() & set(RECURSIVE)), bool(options.keys() & set(KEEP))
    status = 0
    for source in sources:
        target = into(call, source, dest)
        if files.stat(source, cwd=call.cwd, asker=call.user).is_dir and not recursive:
            status = await call.fail(f"cp: -r not specified; omitting directory '{source}'")
        elif not ("-n" in options and files.exists(target, cwd=call.cwd)):
            _copy(call, source, target, keep=keep)
    return status


def _copy(call: Call, source: str, dest: str, *, keep: bool) -> None:
    files = call.host.files
    found = files.stat(source, cwd=call.cwd, follow=False, asker=call.user)
    if found.is_link and keep:
        files.symlink(str(found.real.readlink()), dest, cwd=call.cwd, asker=call.user)
        return
    if found.is_dir:
        if not files.exists(dest, cwd=call.cwd):
            files.mkdir(dest, cwd=call.cwd, asker=call.user, mode=found.mode & 0o777)
        for name in files.listdir(source, cwd=call.cwd, asker=call.user):
            _copy(call, posixpath.join(source, name), posixpath.join(dest, name), keep=keep)
    else:
        copy_file(call, source, dest)
    if keep:
        resolved = files.resolve(dest, cwd=call.cwd)
        owner = (found.uid, found.gid) if call.user.is_root else files.owner(resolved)
        files.set_owner(resolved, *owner, found.mode & 0o7777)
        os.utime(files.real(resolved), ns=(found.mtime_ns, found.mtime_ns))


TABLE = {"cp": Command(cp, True)}
