"""Logins for registries that docker and podman keep: looked up when asked for, never stored, never logged."""

from __future__ import annotations

import base64
import binascii
import json
import logging
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hybridlab.models import Json
from hybridlab.references import HUB

log = logging.getLogger(__name__)

HELPER_TIMEOUT_S = 10
HUB_KEY = "https://index.docker.io/v1/"
_IDENTITY = "<token>"  # how a helper marks an identity token


@dataclass(frozen=True)
class Login:
    """A user and password, or an identity token that is exchanged at the realm."""

    user: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    @property
    def basic(self) -> str:
        """The Authorization header's value."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


def find_login(host: str, repository: str) -> Login | None:
    """The first login that docker's or podman's files and helpers have for a registry (or a part of it)."""
    for path in _files():
        config = _read(path)
        if config is not None:
            found = _from_config(config, host, repository)
            if found:
                return found
    return None


def _files() -> tuple[Path, ...]:
    environment = os.environ
    docker = Path(environment.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"
    podman = [Path.home() / ".config" / "containers" / "auth.json"]
    if environment.get("XDG_RUNTIME_DIR"):
        podman.insert(0, Path(environment["XDG_RUNTIME_DIR"]) / "containers" / "auth.json")
    if environment.get("REGISTRY_AUTH_FILE"):
        podman.insert(0, Path(environment["REGISTRY_AUTH_FILE"]))
    return (docker, *podman)


def _read(path: Path) -> Mapping[str, Json] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("credentials in %s can't be read: %s", path, type(error).__name__)
        return None
    return found if isinstance(found, dict) else None


def _from_config(config: Mapping[str, Json], host: str, repository: str) -> Login | None:
    names = [HUB_KEY, "docker.io", "index.docker.io", HUB] if host == HUB else [host]
    helpers = config.get("credHelpers") or {}
    for name in names:
        if name in helpers:
            return _ask_helper(str(helpers[name]), name)
    if config.get("credsStore"):
        for name in names[:1] if host == HUB else [host, f"https://{host}"]:
            found = _ask_helper(str(config["credsStore"]), name)
            if found:
                return found
    auths = {_plain(key): value for key, value in (config.get("auths") or {}).items()}
    for name in names:
        plain = _plain(name)
        parts = repository.split("/")
        # podman may keep a login for a part of a registry: the longest name wins
        scopes = [f"{plain}/{'/'.join(parts[:n])}" for n in range(len(parts), 0, -1)]
        for key in (*scopes, plain):
            login = _from_entry(auths.get(key) or {})
            if login:
                return login
    return None


def _plain(key: str) -> str:
    bare = key.removeprefix("https://").removeprefix("http://").rstrip("/")
    return bare.removesuffix("/v1").removesuffix("/v2")


def _from_entry(entry: Mapping[str, Json]) -> Login | None:
    if entry.get("identitytoken"):
        return Login(identity_token=str(entry["identitytoken"]))
    if entry.get("auth"):
        try:
            user, colon, password = base64.b64decode(str(entry["auth"])).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return None
        return Login(user, password.rstrip("\0")) if colon else None
    if entry.get("username"):
        return Login(str(entry["username"]), str(entry.get("password", "")))
    return None


def _ask_helper(name: str, server: str) -> Login | None:
    """What ``docker-credential-NAME get`` says; its answer that it has none is no error."""
    if "/" in name or name.startswith("."):
        return None
    try:
        answer = subprocess.run(
            [f"docker-credential-{name}", "get"],
            input=server.encode(),
            capture_output=True,
            timeout=HELPER_TIMEOUT_S,
            check=False,
        )
        found = json.loads(answer.stdout) if answer.returncode == 0 else {}
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        log.warning("the credential helper %s gave no answer: %s", name, type(error).__name__)
        return None
    user, secret = str(found.get("Username", "")), str(found.get("Secret", ""))
    if user == _IDENTITY:
        return Login(identity_token=secret)
    return Login(user, secret) if user else None
