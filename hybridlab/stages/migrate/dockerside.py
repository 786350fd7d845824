"""The project as it runs on the Docker host: its containers, where its data lie, and stopping and starting it."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from hybridlab.compose import ClaimSource
from hybridlab.errors import NotFound, Refused
from hybridlab.models import Json
from hybridlab.ports import Context

LABEL = "com.docker.compose"
STOP_AIR_S = 60.0  # for Docker itself, beyond the grace that the containers get


@dataclass(frozen=True)
class Container:
    """A container of the project. ``mounts``: (type, where it is on the Docker host, where the container sees it)."""

    name: str
    service: str
    image: str
    running: bool
    folder: str
    mounts: tuple[tuple[str, str, str], ...] = ()


def containers(ctx: Context, project: str) -> tuple[Container, ...]:
    """Every container of a Compose project, running or not, by the labels that Compose gives them."""
    host = ctx.site.docker_host()
    # "json" alone is no format to Docker before 23.0, which Debian 12 has: it would print that very word
    argv = ["docker", "ps", "-a", "--filter", f"label={LABEL}.project={project}", "--format", "{{json .}}"]
    names = [json.loads(line)["Names"] for line in ctx.docker_hosts.run(host, argv).stdout.splitlines()]
    if not names:
        return ()
    rows = json.loads(ctx.docker_hosts.run(host, ["docker", "inspect", *names]).stdout)
    return tuple(_container(row) for row in rows)


def _container(row: Mapping[str, Json]) -> Container:
    labels = row["Config"]["Labels"]
    return Container(
        str(row["Name"]).lstrip("/"),
        str(labels.get(f"{LABEL}.service", "")),
        str(row["Config"].get("Image", "")),
        bool(row.get("State", {}).get("Running")),
        str(labels.get(f"{LABEL}.project.working_dir", "")),
        tuple((m["Type"], m["Source"], m["Destination"]) for m in row.get("Mounts", ())),
    )


def source_path(ctx: Context, claim: ClaimSource, project: str) -> str:
    """Where a claim's data lie on the Docker host. Raises NotFound where Docker knows no such volume."""
    host = ctx.site.docker_host()
    if claim.kind == "volume":
        result = ctx.docker_hosts.run(host, ["docker", "volume", "inspect", claim.source], check=False)
        if result.exit_status != 0:
            raise NotFound(
                f"the Docker host has no volume {claim.source}",
                where=host.address,
                why=result.stderr.strip(),
                next_move="check migrate.project (docker volume ls shows the names)",
            )
        return str(json.loads(result.stdout)[0]["Mountpoint"])
    there = containers(ctx, project)
    if claim.kind == "anonymous":
        return _anonymous(there, claim, host.address)
    if claim.source.startswith("/"):
        return posixpath.normpath(claim.source)
    folder = next((c.folder for c in there if c.folder), "")
    if not folder:
        raise _no_project(project, host.address)
    return posixpath.normpath(posixpath.join(folder, _at_home(claim.source, host.user)))


def _at_home(source: str, user: str) -> str:
    home = "/root" if user == "root" else f"/home/{user}"
    return home + source[1:] if source == "~" or source.startswith("~/") else source


def _anonymous(there: Sequence[Container], claim: ClaimSource, address: str) -> str:
    """A volume without a name is found through the container that has it: ``service:path``."""
    service, _, target = claim.source.partition(":")
    for container in there:
        for kind, source, seen in container.mounts:
            if container.service == service and kind == "volume" and posixpath.normpath(seen) == target:
                return source
    raise NotFound(
        f"no container of service {service} has a volume at {target}",
        where=address,
        next_move="an anonymous volume goes with its container: start the service there, or leave the claim empty",
    )


def _no_project(project: str, address: str) -> NotFound:
    return NotFound(
        f"the Docker host runs no container of project {project}",
        where=address,
        next_move="set migrate.project to the project's name there (docker compose ls)",
    )


# -- stopping and starting ---------------------------------------------------------------------------------------------
def stop(ctx: Context, names: Iterable[str], *, grace_s: int) -> tuple[str, ...]:
    """Stop containers and look that they are; returns those that ran. Raises Refused for one that goes on."""
    wanted = list(names)
    if not wanted:
        return ()
    host = ctx.site.docker_host()
    ctx.docker_hosts.run(host, ["docker", "stop", "-t", str(grace_s), *wanted], timeout_s=grace_s + STOP_AIR_S)
    _expect(ctx, wanted, running=False)
    return tuple(wanted)


def start(ctx: Context, names: Iterable[str]) -> tuple[str, ...]:
    """Start containers and look that they run. Raises Refused for one that does not."""
    wanted = list(names)
    if not wanted:
        return ()
    ctx.docker_hosts.run(ctx.site.docker_host(), ["docker", "start", *wanted], timeout_s=STOP_AIR_S)
    _expect(ctx, wanted, running=True)
    return tuple(wanted)


def _expect(ctx: Context, names: Sequence[str], *, running: bool) -> None:
    host = ctx.site.docker_host()
    rows = json.loads(ctx.docker_hosts.run(host, ["docker", "inspect", *names]).stdout)
    wrong = [c.name for c in map(_container, rows) if c.running != running]
    if wrong:
        raise Refused(
            f"{', '.join(wrong)} {'does not run' if running else 'still runs'} on the Docker host",
            where=host.address,
            next_move=f"look at: docker logs {wrong[0]}" if running else "raise cut_over.stop_timeout_s",
        )


@contextmanager
def stopped(ctx: Context, services: Sequence[str], project: str, *, grace_s: int) -> Iterator[None]:
    """Stop services for as long as the block lasts; what ran before runs again afterwards, whatever happens."""
    names = [c.name for c in containers(ctx, project) if c.service in services and c.running]
    try:
        stop(ctx, names, grace_s=grace_s)
        yield
    finally:
        start(ctx, names)
