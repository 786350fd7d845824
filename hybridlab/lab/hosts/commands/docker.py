"""docker, as far as moving services away from it goes: look, dump, stop, start."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from hybridlab.lab.hosts.call import Call, Command, Usage, split_options
from hybridlab.lab.hosts.commands.docker_exec import docker_exec, parse

VERSION = "28.5.1"
STOP_S = 0.5
START_S = 0.5
VOLUMES = "/var/lib/docker/volumes"
LABEL = "com.docker.compose"


def _mutates(args: list[str]) -> bool:
    return any(word in ("stop", "start", "restart", "down", "up", "rm") for word in args)


async def docker(call: Call) -> int:
    words = call.args
    state = call.host.state.docker
    if state is None:
        return await call.fail("Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is it running?")
    unit = call.host.unit("docker")
    if unit is None or unit.active != "active":
        return await call.fail("Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is it running?")
    verbs = {"ps": _ps, "version": _version, "inspect": _inspect, "stop": _stop, "start": _start, "volume": _volume,
             "compose": _compose, "exec": _exec}  # fmt: skip
    if not words or words[0] not in verbs:
        known = ", ".join(verbs)
        return await call.fail(f"docker: the lab does not run 'docker {' '.join(words[:1])}': it knows {known}", 127)
    return await verbs[words[0]](call, state, words[1:])


async def _version(call: Call, _: dict[str, Any], words: list[str]) -> int:
    options, _rest = split_options(words, "", "-f --format")
    pattern = options.get("-f", options.get("--format", "json"))
    value = {
        "Client": {"Version": VERSION},
        "Server": {"Version": VERSION, "Os": "linux", "Arch": call.host.machine.arch},
    }
    if pattern in ("json", "{{json .}}"):
        return await call.out(json.dumps(value))
    if pattern == "{{.Server.Version}}":
        return await call.out(VERSION)
    raise Usage("the lab knows: docker version --format json")


def _status(container: dict[str, Any]) -> str:
    return "Up" if container["running"] else f"Exited ({container.get('exit', 0)})"


def _labels(state: dict[str, Any], container: dict[str, Any]) -> dict[str, str]:
    return {
        f"{LABEL}.project": state["project"],
        f"{LABEL}.service": container["service"],
        f"{LABEL}.project.working_dir": state["folder"],
        f"{LABEL}.container-number": "1",
    }


def _has_label(labels: dict[str, str], wanted: str) -> bool:
    key, equals, value = wanted.partition("=")
    return labels.get(key) == value if equals else key in labels


async def _ps(call: Call, state: dict[str, Any], words: list[str]) -> int:
    options, operands = split_options(words, "-a --all --no-trunc -q", "--format -f --filter")
    wanted = options.get("-f", options.get("--filter", ""))
    if wanted and not wanted.startswith("label="):
        raise Usage("the lab knows: docker ps --filter label=KEY=VALUE")
    if operands or options.get("--format") not in ("json", "{{json .}}"):
        raise Usage("the lab knows: docker ps [-a] --format json")
    for name, container in state["containers"].items():
        labels = _labels(state, container)
        if wanted and not _has_label(labels, wanted.removeprefix("label=")):
            continue
        if container["running"] or options.keys() & {"-a", "--all"}:
            row = {
                "ID": container["id"][:12],
                "Names": name,
                "Image": container["image"],
                "State": "running" if container["running"] else "exited",
                "Status": _status(container),
                "Labels": ",".join(f"{key}={value}" for key, value in labels.items()),
                "Mounts": ",".join(mount["Name"] or mount["Source"] for mount in container["mounts"]),
            }
            await call.out(json.dumps(row))
    return 0


async def _inspect(call: Call, state: dict[str, Any], words: list[str]) -> int:
    _, names = split_options(words, "", "--type --format -f")
    found = []
    for name in names:
        key = _container(state, name)
        if key is None:
            await call.out("[]")
            return await call.fail(f"Error: No such object: {name}")
        container = state["containers"][key]
        found.append(
            {
                "Id": container["id"],
                "Name": f"/{key}",
                "State": {
                    "Status": "running" if container["running"] else "exited",
                    "Running": container["running"],
                    "ExitCode": container.get("exit", 0),
                    "StartedAt": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(container["since"])),
                },
                "Config": {"Image": container["image"], "Labels": _labels(state, container)},
                "Mounts": container["mounts"],
            }
        )
    return await call.out(json.dumps(found, indent=4))


def _container(state: dict[str, Any], name: str) -> str | None:
    return next(
        (key for key, c in state["containers"].items() if name == key or (len(name) >= 6 and c["id"].startswith(name))),
        None,
    )


async def _set(call: Call, state: dict[str, Any], names: list[str], running: bool) -> list[str]:
    """Start or stop containers by name; returns those that changed."""
    changed = [name for name in names if state["containers"][name]["running"] != running]
    if changed:
        await call.host.world.clock.takes(START_S if running else STOP_S)
    for name in changed:
        container = state["containers"][name]
        container.update(running=running, exit=0, since=call.host.world.clock.now())
    return changed


async def _stop(call: Call, state: dict[str, Any], words: list[str]) -> int:
    return await _by_name(call, state, words, running=False)


async def _start(call: Call, state: dict[str, Any], words: list[str]) -> int:
    return await _by_name(call, state, words, running=True)


async def _exec(call: Call, state: dict[str, Any], words: list[str]) -> int:
    name, argv = parse(words)
    key = _container(state, name)
    if key is None:
        return await call.fail(f"Error response from daemon: No such container: {name}")
    return await docker_exec(call, key, state["containers"][key], argv)


async def _by_name(call: Call, state: dict[str, Any], words: list[str], *, running: bool) -> int:
    _, names = split_options(words, "", "-t --time --timeout")
    if not names:
        raise Usage("requires at least 1 argument.")
    status = 0
    for name in names:
        key = _container(state, name)
        if key is None:
            status = await call.fail(f"Error response from daemon: No such container: {name}")
            continue
        await _set(call, state, [key], running)
        await call.out(name)
    return status


async def _volume(call: Call, state: dict[str, Any], words: list[str]) -> int:
    options, operands = split_options(words, "-q", "--format -f --filter")
    if not operands:
        raise Usage("the lab knows: docker volume ls --format json and docker volume inspect NAME")
    describe: Callable[[str], dict[str, Any]] = lambda name: {  # noqa: E731
        "Name": name,
        "Driver": "local",
        "Mountpoint": f"{VOLUMES}/{name}/_data",
        "Scope": "local",
        "Labels": {f"{LABEL}.project": state["project"], f"{LABEL}.volume": state["volumes"][name]["key"]}
        if state["volumes"][name]["key"]
        else {"com.docker.volume.anonymous": ""},
    }
    if operands[0] == "ls":
        if options.get("--format") not in ("json", "{{json .}}"):
            raise Usage("the lab knows: docker volume ls --format json")
        for name in state["volumes"]:
            row = describe(name)
            await call.out(json.dumps({**row, "Labels": ",".join(f"{k}={v}" for k, v in row["Labels"].items())}))
        return 0
    if operands[0] != "inspect":
        return await call.fail(f"docker: the lab does not run 'docker volume {operands[0]}'", 127)
    found = []
    for name in operands[1:]:
        if name not in state["volumes"]:
            await call.out("[]")
            return await call.fail(f"Error response from daemon: get {name}: no such volume")
        found.append(describe(name))
    return await call.out(json.dumps(found, indent=4))


async def _compose(call: Call, state: dict[str, Any], words: list[str]) -> int:
    options, operands = split_options(
        words, "-a --all", "-p --project-name -f --file --format -t --timeout --project-directory"
    )
    project = options.get("-p", options.get("--project-name", state["project"]))
    if not operands or operands[0] not in ("ps", "stop", "start", "version"):
        return await call.fail("docker compose: the lab knows ps, stop, start", 127)
    verb, services = operands[0], operands[1:]
    if verb == "version":
        return await call.out("Docker Compose version v2.40.0")
    mine = {c["service"]: name for name, c in state["containers"].items()} if project == state["project"] else {}
    for service in services:
        if service not in mine:
            return await call.fail(f"no such service: {service}")
    names = [mine[service] for service in services or mine]
    if verb == "ps":
        return await _compose_ps(call, state, names, everything=bool(options.keys() & {"-a", "--all"}), options=options)
    if not mine:
        return await call.fail(f'service "{project}" has no container to {verb}') if verb == "start" else 0
    changed = await _set(call, state, names, verb == "start")
    for name in changed:
        await call.fail(f" Container {name}  {'Started' if verb == 'start' else 'Stopped'}")
    return 0


async def _compose_ps(
    call: Call, state: dict[str, Any], names: list[str], *, everything: bool, options: dict[str, str]
) -> int:
    if options.get("--format") != "json":
        raise Usage("the lab knows: docker compose ps [-a] --format json")
    for name in names:
        container = state["containers"][name]
        if container["running"] or everything:
            row = {
                "ID": container["id"],
                "Name": name,
                "Service": container["service"],
                "Project": state["project"],
                "Image": container["image"],
                "State": "running" if container["running"] else "exited",
                "Status": _status(container),
                "ExitCode": container.get("exit", 0),
            }
            await call.out(json.dumps(row))
    return 0


TABLE = {"docker": Command(docker, _mutates)}
