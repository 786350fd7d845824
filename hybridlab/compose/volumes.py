"""Volumes of the whole project: one claim for each piece of shared state, and how every service mounts what it has.

A claim shared by several services is ReadWriteMany where a class can do it, else its sharers run on one node.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from hybridlab.compose.binds import Bind, classify, local_path, normal
from hybridlab.compose.fidelity import Record
from hybridlab.compose.files import FileBook
from hybridlab.compose.model import ClaimKind, ClaimSource, Obj, Options, Project
from hybridlab.compose.mounts import Mount, with_options
from hybridlab.compose.names import NameBook, label
from hybridlab.compose.units import memory_quantity, size_bytes
from hybridlab.models import Json

_THROWAWAY = ("node_modules", "/tmp", "/cache", "/.cache", "/run", "/var/run")


@dataclass
class VolumePlan:
    """``groups``: service → the name of its co-located group, for those that share a claim."""

    mounts: dict[str, list[Mount]] = field(default_factory=dict)
    claims: tuple[ClaimSource, ...] = ()
    groups: dict[str, str] = field(default_factory=dict)


@dataclass
class _Claim:
    name: str
    kind: ClaimKind
    source: str
    services: list[str]
    file: str = ""


class _Planner:
    def __init__(self, project: Project, options: Options, files: FileBook, record: Record) -> None:
        self.project, self.options, self.files, self.record = project, options, files, record
        self.names = NameBook()
        self.claims: dict[str, _Claim] = {}
        self.binds: dict[tuple[str, str], Bind] = {}
        self.roots: list[str] = []

    def claim(self, service: str, identity: str, kind: ClaimKind, wanted: str, source: str) -> str:
        if identity not in self.claims:
            name = self.names.name(wanted.strip("./~") or "project", identity=identity)
            self.claims[identity] = _Claim(name, kind, source, [])
        if service not in self.claims[identity].services:
            self.claims[identity].services.append(service)
        return self.claims[identity].name

    def bind_source(self, entry: Mapping[str, Json]) -> str | None:
        """The host path behind a mount: a bind, or a local volume whose driver options make it one."""
        if entry.get("type") == "bind":
            return str(entry.get("source") or "")
        if entry.get("type") == "volume" and entry.get("source"):
            options = (self.project.volumes.get(entry["source"]) or {}).get("driver_opts") or {}
            if "bind" in str(options.get("o", "")).split(",") and options.get("device"):
                return str(options["device"])
        return None

    def survey(self) -> None:
        """Classify all binds first: what one service writes is state for everyone who mounts it."""
        state: set[str] = set()
        for service, spec in self.project.services.items():
            context = (spec.get("build") or {}).get("context")
            for _, entry in entries(self.project, service):
                source = self.bind_source(entry)
                if source is None:
                    continue
                here = local_path(source, self.project.directory)
                bind = classify(
                    source,
                    str(entry.get("target")),
                    read_only=bool(entry.get("read_only")),
                    here=here,
                    build_context=str(context) if context else None,
                )
                if bind.kind == "config-dir" and not self.files.fits(here):
                    why = "not here to be read" if here is None else "empty, too large or not plain files"
                    bind = Bind("state", f"{bind.reason}, {why}: a claim to be filled from the Docker host")
                if bind.kind == "config-file" and self.files.too_big(here):
                    bind = Bind("state-file", f"{bind.reason}, larger than a ConfigMap may be (1 MiB)")
                self.binds[(service, str(entry.get("target")))] = bind
                if bind.kind == "state":
                    state.add(normal(source))
        self.roots = sorted(state, key=lambda path: (path.count("/"), path))

    def root_of(self, path: str) -> str | None:
        for root in self.roots:
            if (
                path == root
                or path.startswith(f"{root.rstrip('/')}/")
                or (root == "." and not path.startswith(("/", "~", "..")))
            ):
                return root
        return None

    def mount(self, service: str, origin: str, entry: Mapping[str, Json]) -> Mount | None:
        kind, target = str(entry.get("type")), posixpath.normpath(str(entry.get("target") or "/"))
        key = f"volumes.{target}"
        read_only = bool(entry.get("read_only"))
        if ":" in target:
            self.record.refused(service, key, "Kubernetes has no mount path with a colon")
            return None
        if not target.startswith("/"):
            note = "not an absolute path; Compose reads a one-letter volume name as a Windows drive: use a longer one"
            self.record.refused(service, key, note)
            return None
        if self.bind_source(entry) is not None:
            return self._bind(service, key, entry, target, read_only)
        if kind == "volume":
            return self._volume(service, origin, key, entry, target, read_only)
        if kind == "tmpfs":
            body: Obj = {"medium": "Memory"}
            size = size_bytes((entry.get("tmpfs") or {}).get("size"))
            if size:
                body["sizeLimit"] = memory_quantity(size)
            self.record.mapped(service, key, "emptyDir in memory")
            return Mount(target, label(f"tmp-{target}"), {"emptyDir": body})
        if kind == "image":
            self.record.approximated(service, key, "image volume; needs Kubernetes 1.33 or later, read-only")
            sub_path = str((entry.get("image") or {}).get("subpath") or "")
            return Mount(
                target, label(f"image-{target}"), {"image": {"reference": str(entry.get("source"))}}, True, sub_path
            )
        self.record.refused(service, key, f"a mount of type {kind} has no equivalent")
        return None

    def _volume(
        self, service: str, origin: str, key: str, entry: Mapping[str, Json], target: str, read_only: bool
    ) -> Mount | None:
        options = entry.get("volume") or {}
        sub_path = str(options.get("subpath") or "")
        if not entry.get("source"):
            return self._anonymous(service, origin, key, target, read_only)
        name = str(entry["source"])
        spec = self.project.volumes.get(name) or {}
        special = self._driver(service, key, name, spec, target, read_only)
        if special is not None:
            return special
        real = str(spec.get("name") or f"{self.project.name}_{name}")
        claim = self.claim(service, f"volume {name}", "volume", name, real)
        self.record.mapped(service, key, f"claim {claim}")
        seed = not options.get("nocopy") and not sub_path and not read_only
        return _claimed(target, claim, read_only, sub_path, seed=seed)

    def _anonymous(self, service: str, origin: str, key: str, target: str, read_only: bool) -> Mount:
        if any(word in f"{target}/" for word in _THROWAWAY):
            self.record.approximated(service, key, "anonymous volume of throw-away files: emptyDir, gone with the pod")
            return Mount(target, label(f"scratch-{target}"), {"emptyDir": {}}, seed=not read_only)
        claim = self.claim(
            service, f"anonymous {origin} {target}", "anonymous", f"{origin}{target}", f"{origin}:{target}"
        )
        self.record.mapped(service, key, f"anonymous volume: claim {claim}")
        return _claimed(target, claim, read_only, "", seed=not read_only)

    def _driver(
        self, service: str, key: str, name: str, spec: Mapping[str, Json], target: str, read_only: bool
    ) -> Mount | None:
        """Volumes whose driver says that they live elsewhere: NFS and tmpfs; others become claims all the same."""
        options = spec.get("driver_opts") or {}
        words = dict(word.partition("=")[::2] for word in str(options.get("o", "")).split(","))
        if str(options.get("type", "")).startswith("nfs") and words.get("addr"):
            server, path = words["addr"], str(options.get("device", "")).lstrip(":")
            self.record.mapped("", f"volumes.{name}", "NFS volume in the pod; every node needs nfs-common")
            self.record.mapped(service, key, f"NFS {server}:{path}")
            nfs: Obj = {"server": server, "path": path if path.startswith("/") else f"/{path}"}
            if read_only:
                nfs["readOnly"] = True
            return Mount(target, label(name), {"nfs": nfs}, read_only)
        if options.get("type") == "tmpfs":
            self.record.mapped("", f"volumes.{name}", "emptyDir in memory")
            self.record.mapped(service, key, "emptyDir in memory")
            return Mount(target, label(name), {"emptyDir": {"medium": "Memory"}}, read_only)
        driver = spec.get("driver")
        if (driver and driver != "local") or options:
            what = (
                f"driver {driver}" if driver and driver != "local" else f"driver options {', '.join(sorted(options))}"
            )
            self.record.approximated("", f"volumes.{name}", f"a claim of the cluster's storage class instead of {what}")
        elif spec.get("external"):
            self.record.approximated(
                "", f"volumes.{name}", "external in Compose; here a claim of its own, to be filled"
            )
        return None

    def _bind(self, service: str, key: str, entry: Mapping[str, Json], target: str, read_only: bool) -> Mount | None:
        source = self.bind_source(entry) or ""
        bind = self.binds[(service, str(entry.get("target")))]
        plain = normal(source)
        self.record.why(service, f"{target}: {bind.reason}")
        if bind.kind == "refuse":
            self.record.refused(service, key, bind.reason)
            return None
        if bind.kind == "leave-out":
            self.record.approximated(service, key, f"left out: {bind.reason}")
            return None
        if bind.kind == "host":
            body: Obj = {"path": plain}
            if plain == "/etc/localtime":
                body["type"] = "File"
            self.record.approximated(service, key, f"hostPath: {bind.reason}, so it differs from node to node")
            return Mount(target, label(f"host-{plain}", fallback="host"), {"hostPath": body}, read_only)
        root = self.root_of(plain)
        unseen = local_path(source, self.project.directory) is None
        if bind.kind == "config-file" and not (unseen and root is not None):
            volume = self.files.file(service, source)
            note = f"ConfigMap or Secret {volume.name}: {bind.reason}"
            if volume.missing:
                self.record.approximated(
                    service, key, f"{note}; not beside the compose file, so its key is empty: fill it in"
                )
            else:
                self.record.mapped(service, key, note if read_only else f"{note} (mounted read-only)")
            return Mount(target, volume.name, volume.source, True, volume.key)
        here = local_path(source, self.project.directory)
        if bind.kind == "config-dir" and root is None and here is not None:
            volume = self.files.folder(service, source, here)
            self.record.mapped(service, key, f"ConfigMap or Secret {volume.name}: {bind.reason}")
            return Mount(target, volume.name, volume.source, True)
        return self._state(service, key, bind, plain, target, read_only, root)

    def _state(
        self, service: str, key: str, bind: Bind, plain: str, target: str, read_only: bool, root: str | None
    ) -> Mount:
        owner = root or plain
        sub_path = "" if owner == plain else posixpath.relpath(plain, owner)
        if bind.kind == "state-file" and root is None:
            sub_path = posixpath.basename(plain)
        claim = self.claim(
            service, f"bind {owner}", "bind", owner, owner if owner.startswith(("/", "~", ".")) else f"./{owner}"
        )
        if bind.kind == "state-file" and root is None:
            self.claims[f"bind {owner}"].file = sub_path
        self.record.mapped(
            service, key, f"claim {claim}" + (f", its {sub_path}" if sub_path else "") + f": {bind.reason}"
        )
        return _claimed(target, claim, read_only, sub_path)


def _claimed(target: str, claim: str, read_only: bool, sub_path: str, *, seed: bool = False) -> Mount:
    return Mount(target, claim, {"persistentVolumeClaim": {"claimName": claim}}, read_only, sub_path, claim, seed)


def entries(
    project: Project, service: str, seen: frozenset[str] = frozenset()
) -> Iterator[tuple[str, Mapping[str, Json]]]:
    """A service's volume entries with those of ``volumes_from``, each with the service it belongs to."""
    spec = project.services[service]
    for entry in spec.get("volumes") or []:
        if isinstance(entry, Mapping):
            yield service, entry
    for text in spec.get("volumes_from") or []:
        words = str(text).split(":")
        other = words[0]
        if other == "container" or other not in project.services or other in seen | {service}:
            continue
        for origin, entry in entries(project, other, seen | {service}):
            yield origin, {**entry, "read_only": bool(entry.get("read_only")) or words[-1] == "ro"}


def plan_volumes(project: Project, options: Options, files: FileBook, record: Record) -> VolumePlan:
    """All mounts and claims of the project; sharers are grouped unless the class is ReadWriteMany."""
    planner = _Planner(project, options, files, record)
    planner.survey()
    plan = VolumePlan()
    for service, spec in project.services.items():
        mounts: dict[str, Mount] = {}
        for origin, entry in entries(project, service):
            mount = planner.mount(service, origin, entry)
            if mount is not None:
                mount = with_options(service, entry, mount, record, privileged=bool(spec.get("privileged")))
                mounts.setdefault(mount.target, mount)
        plan.mounts[service] = list(mounts.values())
        for text in spec.get("volumes_from") or []:
            if str(text).startswith("container:") or str(text).split(":")[0] not in project.services:
                record.refused(service, "volumes_from", f"{text}: a container outside this project")
        if "volumes" in spec and not spec["volumes"]:
            record.mapped(service, "volumes", "none")
    _finish(plan, planner, record)
    return plan


def _finish(plan: VolumePlan, planner: _Planner, record: Record) -> None:
    options = planner.options
    claims = []
    for claim in planner.claims.values():
        shared = len(claim.services) > 1
        many = shared and bool(options.shared_storage_class)
        reason = f"{claim.kind} {claim.source}"
        if shared:
            names = ", ".join(claim.services)
            reason += f", shared by {names}: " + ("ReadWriteMany" if many else "one claim, its sharers on one node")
        size = options.claim_sizes.get(claim.name, options.claim_size)
        mode = "ReadWriteMany" if many else "ReadWriteOnce"
        claims.append(
            ClaimSource(claim.name, claim.kind, claim.source, tuple(claim.services), size, mode, reason, claim.file)
        )
        for name in claim.services:
            record.why(name, f"claim {claim.name}: {reason}")
    plan.claims = tuple(claims)
    plan.groups = _groups(plan.claims)
    for name in planner.project.volumes:
        if f"volume {name}" in planner.claims:
            record.mapped("", f"volumes.{name}", "a claim")


def _groups(claims: tuple[ClaimSource, ...]) -> dict[str, str]:
    """Services that share ReadWriteOnce claims, directly or through others, are one group."""
    leader: dict[str, str] = {}

    def find(service: str) -> str:
        while leader.setdefault(service, service) != service:
            service = leader[service]
        return service

    shared = [claim for claim in claims if len(claim.services) > 1 and claim.access_mode == "ReadWriteOnce"]
    for claim in shared:
        first = find(claim.services[0])
        for other in claim.services[1:]:
            leader[find(other)] = first
    return {service: label(find(service)) for service in leader}
