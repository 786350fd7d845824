"""What a bind mount is: state, configuration, or a piece of the host; each with its reason."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


BindKind = Literal["state", "state-file", "config-file", "config-dir", "host", "leave-out", "refuse"]

_ENGINE_SOCKET = re.compile(r"(docker|podman|containerd|crio|cri-dockerd)[^/]*\.sock$")
_ENGINE_FOLDERS = ("/var/lib/docker", "/var/lib/containers", "/run/docker", "/var/run/docker", "/etc/docker")
_HOST_FOLDERS = (
    "/proc",
    "/sys",
    "/dev",
    "/run",
    "/var/run",
    "/lib/modules",
    "/lib",
    "/usr/src",
    "/boot",
    "/var/log",
    "/cgroup",
    "/usr/lib/modules",
    "/usr/share/zoneinfo",
    "/etc/ssl/certs",
    "/usr/share/ca-certificates",
    "/var/lib/systemd",
)
_HOST_FILES = (
    "/etc/localtime",
    "/etc/os-release",
    "/etc/machine-id",
    "/etc/passwd",
    "/etc/group",
    "/etc/hostname",
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/shadow",
    "/etc/fstab",
    "/usr/lib/os-release",
)
_CONFIG_EXTENSIONS = _words(
    "conf cnf cfg cf ini yml yaml json toml xml env properties sh bash py rb js ts mjs php sql lua template tmpl tpl "
    "j2 htpasswd crt cert cer pem key pub txt md html htm css svg png ico jpg rules list map hcl local override "
    "service crontab cron policy acl inc pl vcl lst dist default sample example config settings plist gz cue license"
)
_CONFIG_NAMES = _words(
    "caddyfile corefile dockerfile passwd group hosts crontab htpasswd makefile procfile config shadow vimrc"
)
_STATE_EXTENSIONS = _words("db sqlite sqlite3 sqlite-wal log lock dat rdb aof pid mdb h5 bolt")
_STATE_NAMES = ("acme.json",)
_CONFIG_TARGETS = (
    "/etc/",
    "/usr/local/etc/",
    "/docker-entrypoint",
    "/usr/share/nginx/html",
    "/usr/share/logstash/config",
    "/usr/share/logstash/pipeline",
)


@dataclass(frozen=True)
class Bind:
    kind: BindKind
    reason: str


def normal(path: str) -> str:
    """One spelling per path: ``./data/`` and ``data`` are the same; ``~`` stays."""
    cleaned = posixpath.normpath(path.replace("\\", "/"))
    if cleaned.startswith("//"):
        cleaned = cleaned[1:]
    return cleaned


def local_path(source: str, directory: Path | None) -> Path | None:
    """Where a bind's source is on this machine, if it is here and belongs to the project's folder."""
    if directory is None or source.startswith(("/", "~")) or re.match(r"[A-Za-z]:[\\/]", source):
        return None
    path = directory / source
    return path if path.exists() else None


def classify(source: str, target: str, *, read_only: bool, here: Path | None, build_context: str | None = None) -> Bind:
    """Decide by the path, by what is there if it can be seen, by the target, and by whether it is writable."""
    plain = normal(source)
    if _ENGINE_SOCKET.search(plain):
        return Bind(
            "refuse", f"{source}: nodes run containerd under K3s, no container engine's socket may be handed out"
        )
    if any(plain == folder or plain.startswith(f"{folder}/") for folder in _ENGINE_FOLDERS):
        return Bind("refuse", f"{source}: Docker's own folder does not exist on the nodes")
    if plain == "/etc/timezone":
        return Bind("leave-out", f"{source}: not on every distribution; set TZ in the environment")
    if plain == "/" or plain in _HOST_FILES or _is_host_folder(plain):
        return Bind("host", f"{source} is a part of the host: the node's own")
    if build_context is not None and plain == normal(build_context):
        return Bind("leave-out", f"{source} is the build context: a development mount over what the image holds")
    return _by_content(source, target, read_only, here)


def _is_host_folder(path: str) -> bool:
    return any(path == folder or path.startswith(f"{folder}/") for folder in _HOST_FOLDERS)


def _by_content(source: str, target: str, read_only: bool, here: Path | None) -> Bind:
    is_file = here.is_file() if here is not None else looks_like_file(source, target)
    if is_file:
        name = posixpath.basename(normal(source)).lower()
        extension = name.rpartition(".")[2]
        if name in _STATE_NAMES or extension in _STATE_EXTENSIONS:
            return Bind("state-file", f"{source} is a file the service writes to")
        if read_only or extension in _CONFIG_EXTENSIONS or name in _CONFIG_NAMES or target.startswith(_CONFIG_TARGETS):
            return Bind("config-file", f"{source} is a configuration file" + (", read-only" if read_only else ""))
        return Bind("state-file", f"{source} is a writable file")
    if read_only:
        return Bind("config-dir", f"{source} is a read-only folder")
    if here is not None and target.startswith(_CONFIG_TARGETS):
        return Bind("config-dir", f"{source} goes to {target}, where configuration lives")
    return Bind("state", f"{source} is a writable folder: state")


def looks_like_file(source: str, target: str) -> bool:
    """A guess for a path that cannot be seen: a known extension or name on the source, and none against it."""
    if target.endswith("/") or source.endswith("/"):
        return False
    name = posixpath.basename(normal(source)).lower()
    inner = posixpath.basename(normal(target)).lower()
    if name in _CONFIG_NAMES and inner in (name, *_CONFIG_NAMES):
        return inner != "config" or posixpath.dirname(target) not in ("", "/")
    known = _CONFIG_EXTENSIONS | _STATE_EXTENSIONS
    for word in (name, inner):
        stem, dot, extension = word.rpartition(".")
        if dot and stem and extension in known:
            return True
    stem, dot, extension = name.rpartition(".")
    return bool(dot and stem and not extension.isdigit() and extension != "d" and name == inner)
