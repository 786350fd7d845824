"""install.sh, k3s and its uninstall scripts, recognised by what is in the files."""

from __future__ import annotations

import re
import shlex

from hybridlab.lab.hosts import k3s_service
from hybridlab.lab.hosts.call import Call, Command, Usage
from hybridlab.lab.hosts.k3s_release import INSTALLER_MARK
from hybridlab.lab.hosts.k3s_settings import Role

UNINSTALL_MARK = re.compile(r"^# hybridlab-lab-k3s (uninstall role=(server|agent)|killall)$", re.MULTILINE)


def program(call: Call, path: str) -> Command | int:
    """What running this file means, or 126."""
    files = call.host.files
    mark = k3s_service.binary_mark(call.host, path)
    if mark is not None:
        return Command(binary) if mark[1] == call.host.machine.arch else 126
    if files.stat(path).is_file and UNINSTALL_MARK.search(files.text(path)):
        return Command(script, True)
    return 126


async def sh(call: Call) -> int:
    """``sh FILE [ARGUMENT…]`` for K3s' scripts; there is no shell for anything else."""
    words = [word for word in call.args if word not in ("-e", "-x")]
    if not words or words[0].startswith("-"):
        raise Usage("there is no shell on the lab's machines: the lab knows sh FILE, for K3s' own scripts")
    path = words[0]
    text = call.host.files.read(path, cwd=call.cwd, asker=call.user).decode("utf-8", "replace")
    if UNINSTALL_MARK.search(text):
        return await script(call.with_argv(words))
    if INSTALLER_MARK not in text:
        return await call.fail(f"sh: {path}: the lab runs no scripts other than K3s' own", 126)
    return await install(call.with_argv(words))


async def install(call: Call) -> int:
    host, env = call.host, call.env
    if not call.user.is_root:
        return await call.fail("[ERROR]  Can not write to /usr/local/bin: run as root")
    if any("TOKEN" in key and value for key, value in env.items()):
        call.notes.append("token in the environment of the command")
    words = call.args or shlex.split(env.get("INSTALL_K3S_EXEC", ""))
    role: Role = "agent" if env.get("K3S_URL") else "server"
    if words and words[0] in ("server", "agent"):
        role = "agent" if words.pop(0) == "agent" else "server"
    if env.get("INSTALL_K3S_SKIP_DOWNLOAD") != "true":
        return await call.fail("[ERROR]  Download failed: the lab's machines reach no server to download from")
    if not host.files.exists(k3s_service.BINARY):
        return await call.fail(f"[ERROR]  Executable k3s binary not found at {k3s_service.BINARY}")
    name = k3s_service.UNITS[role]
    await call.out("[INFO]  Skipping k3s download and verify")
    before = host.files.text(k3s_service.unit_path(role), "")
    k3s_service.install(host, role, words, dict(env))
    await call.out(f"[INFO]  systemd: Creating service file {k3s_service.unit_path(role)}")
    if env.get("INSTALL_K3S_SKIP_ENABLE") == "true":
        return 0
    unit = host.unit(name)
    if unit is not None:
        unit.enabled = True
    await call.out(f"[INFO]  systemd: Enabling {name} unit")
    if env.get("INSTALL_K3S_SKIP_START") == "true":
        return 0
    changed = host.files.text(k3s_service.unit_path(role)) != before or env.get("INSTALL_K3S_FORCE_RESTART") == "true"
    if host.k3s is not None and not changed:
        await call.out("[INFO]  No change detected so skipping service start")
        return 0
    await call.out(f"[INFO]  systemd: Starting {name}")
    if host.k3s is not None and host.k3s.role == role:
        await k3s_service.stop_k3s(host)
    if not await k3s_service.start_k3s(host, role):
        return await call.fail(
            f"Job for {name}.service failed because the control process exited with error code.\n"
            f'See "systemctl status {name}.service" and "journalctl -xeu {name}.service" for details.'
        )
    return 0


async def binary(call: Call) -> int:
    mark = k3s_service.binary_mark(call.host)
    if call.args in (["--version"], ["-v"]) and mark is not None:
        return await call.out(f"k3s version {mark[0]} (hybridlab lab)")
    return await call.fail("this is the lab's place-holder for k3s: it answers --version and runs as a service")


async def script(call: Call) -> int:
    text = call.host.files.text(call.argv[0])
    match = UNINSTALL_MARK.search(text)
    if not call.user.is_root or match is None:
        return await call.fail(f"{call.name}: must be run as root")
    if match[2] is None:
        await k3s_service.killall(call.host)
    else:
        await k3s_service.uninstall(call.host, "agent" if match[2] == "agent" else "server")
    return 0


TABLE = {"sh": Command(sh, True), "bash": Command(sh, True)}
