"""Files that become ConfigMaps and Secrets: configuration bind mounts, and Compose's configs and secrets."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hybridlab.compose.binds import local_path, normal
from hybridlab.compose.env import encode
from hybridlab.compose.fidelity import Record
from hybridlab.compose.model import Obj, Project
from hybridlab.compose.names import NameBook, config_key
from hybridlab.models import Json

# A ConfigMap or Secret holds 1 MiB; etcd's own limit leaves less for everything around it.
MAX_BYTES = 1_000_000
_SECRET_FILE = re.compile(
    r"\.(?:key|htpasswd|p12|pfx|jks)$|secret|passw|token|credential|privkey|id_(?:rsa|ed25519)", re.IGNORECASE
)
Meta = Callable[[str, str, Mapping[str, str]], Obj]  # name, service, annotations → metadata


@dataclass(frozen=True)
class FileVolume:
    """A pod volume that holds files; ``key`` empty: the whole folder is mounted, else this one by subPath."""

    name: str
    source: Obj
    key: str = ""
    missing: bool = False


class FileBook:
    """One ConfigMap or Secret for every distinct source, shared by all services that mount it."""

    def __init__(self, project: Project, meta: Meta, record: Record) -> None:
        self._project = project
        self._meta = meta
        self._record = record
        self._names = NameBook()
        self.objects: dict[str, Obj] = {}
        self.users: dict[str, list[str]] = {}

    def fits(self, here: Path | None) -> bool:
        """Whether a folder on this machine can be a ConfigMap: plain files, few, under 1 MB together."""
        if here is None or not here.is_dir():
            return False
        total = 0
        for index, path in enumerate(here.rglob("*")):
            if index > 200 or path.is_symlink():
                return False
            total += path.stat().st_size if path.is_file() else 0
            if total > MAX_BYTES:
                return False
        return total > 0

    def too_big(self, here: Path | None) -> bool:
        return here is not None and here.is_file() and here.stat().st_size > MAX_BYTES

    def file(self, service: str, source: str) -> FileVolume:
        """A bind-mounted configuration file."""
        here = local_path(source, self._project.directory)
        key = config_key(posixpath.basename(normal(source)))
        content = here.read_bytes() if here is not None and here.is_file() else None
        executable = bool(here and here.stat().st_mode & 0o111) or key.endswith((".sh", ".bash"))
        return self._volume(
            service,
            f"bind {normal(source)}",
            normal(source),
            {key: content},
            key,
            secret=bool(_SECRET_FILE.search(source)),
            mode=0o755 if executable else None,
        )

    def folder(self, service: str, source: str, here: Path) -> FileVolume:
        """A bind-mounted configuration folder; keys hold the relative path with ``__`` for ``/``."""
        paths = sorted(path for path in here.rglob("*") if path.is_file())
        relative = {config_key(path.relative_to(here).as_posix().replace("/", "__")): path for path in paths}
        executable = any(path.stat().st_mode & 0o111 or path.suffix == ".sh" for path in paths)
        volume = self._volume(
            service,
            f"bind {normal(source)}",
            normal(source),
            {key: path.read_bytes() for key, path in relative.items()},
            "",
            secret=bool(_SECRET_FILE.search(source)),
            mode=0o755 if executable else None,
        )
        items = [{"key": key, "path": path.relative_to(here).as_posix()} for key, path in relative.items()]
        body = next(iter(volume.source.values()))
        return FileVolume(volume.name, {next(iter(volume.source)): {**body, "items": items}})

    def top_level(self, service: str, kind: str, used: Mapping[str, Json]) -> FileVolume | None:
        """An entry of Compose's ``configs`` or ``secrets`` as a service uses it; None when nobody defines it."""
        name = str(used.get("source", ""))
        spec = getattr(self._project, kind).get(name)
        if spec is None:
            return None
        secret = kind == "secrets"
        key = config_key(posixpath.basename(str(used.get("target") or name)) or name)
        mode = _mode(used.get("mode"))
        if spec.get("external"):
            outside = self._names.name(str(spec.get("name") or name), identity=f"external {kind} {name}")
            self._record.approximated("", f"{kind}.{name}", f"must exist already as {outside} with the key {key}")
            return FileVolume(outside, _source(outside, secret=secret, mode=mode), key)
        content, origin = self._content(spec)
        line = "Secret" if secret else "ConfigMap"
        if content is None:
            self._record.approximated("", f"{kind}.{name}", f"{line} with an empty value: {origin}; fill it in")
        else:
            self._record.mapped("", f"{kind}.{name}", f"{line} from {origin}")
        return self._volume(service, f"{kind} {name}", name, {key: content}, key, secret=secret, mode=mode)

    def _content(self, spec: Mapping[str, Json]) -> tuple[bytes | None, str]:
        if "content" in spec:
            return str(spec["content"]).encode(), "its content"
        if spec.get("environment"):
            value = self._project.environment.get(str(spec["environment"]))
            return (None if value is None else value.encode()), f"variable {spec['environment']}"
        source = str(spec.get("file") or "")
        here = local_path(source, self._project.directory)
        if here is None and source.startswith("/") and Path(source).is_file():
            here = Path(source)
        if here is not None and here.is_file():
            return here.read_bytes(), source
        return None, f"{source or 'its source'} is not here"

    def _volume(
        self,
        service: str,
        identity: str,
        wanted: str,
        files: Mapping[str, bytes | None],
        key: str,
        *,
        secret: bool,
        mode: int | None,
    ) -> FileVolume:
        name = self._names.name(wanted.strip("./~") or "files", identity=identity)
        missing = any(content is None for content in files.values())
        kind = "Secret" if secret else "ConfigMap"
        if name in self.objects:
            _merge(self.objects[name], files)
        else:
            notes = {"hybridlab.io/source": identity}
            if missing:
                notes["hybridlab.io/missing"] = "the file was not beside the compose file: fill it in before applying"
            self.objects[name] = {"apiVersion": "v1", "kind": kind, "metadata": self._meta(name, "", notes)}
            if secret:
                self.objects[name]["type"] = "Opaque"
            _merge(self.objects[name], files)
        users = self.users.setdefault(name, [])
        if service not in users:
            users.append(service)
        return FileVolume(name, _source(name, secret=secret, mode=mode), key, missing)


def _merge(obj: Obj, files: Mapping[str, bytes | None]) -> None:
    for key, content in files.items():
        raw = content or b""
        if obj["kind"] == "Secret":
            obj.setdefault("data", {})[key] = encode(raw)
            continue
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            obj.setdefault("binaryData", {})[key] = encode(raw)
        else:
            obj.setdefault("data", {})[key] = text


def _source(name: str, *, secret: bool, mode: int | None) -> Obj:
    body: Obj = {"secretName": name} if secret else {"name": name}
    if mode is not None:
        body["defaultMode"] = mode
    return {"secret" if secret else "configMap": body}


def _mode(value: Json) -> int | None:
    """Compose prints modes as octal text (``"0440"``) or as a number that already is one."""
    if value is None or value == "":
        return None
    try:
        return (int(value, 8) if isinstance(value, str) else int(value)) & 0o777
    except ValueError:
        return None
