"""The images of the lab's registries: manifests, configs and layers made from the catalogue, always the same bytes.

The catalogue (data/registry-catalogue.json) maps ``docker.io/library/mariadb:11`` to
``{"platforms": ["linux/amd64", "linux/arm64/v8", …], "config": {…}, "index": true}``, where the config's ExposedPorts
and Volumes may be lists, and its Healthcheck the test alone, and what is empty is left out of the blob as builders do;
"attestations" and "docker" (true or false) may say what is otherwise drawn from the name: whether an index lists
attestations, and whether the media types are Docker's or OCI's.
"""

from __future__ import annotations

import copy
import gzip
import hashlib
import io
import json
import tarfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
IN_TOTO = "application/vnd.in-toto+json"

CREATED = "2026-01-15T08:00:00Z"
REPOSITORIES_KEPT = 64
ELF_MACHINES = {"amd64": 62, "386": 3, "arm": 40, "arm64": 183, "ppc64le": 21, "s390x": 22, "riscv64": 243}
DOCKER_HUB = "docker.io"
HUB_NAMES = (DOCKER_HUB, "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com")


@dataclass(frozen=True)
class Reference:
    """An image's name taken apart: canonical registry host, repository, and tag or digest (the digest wins)."""

    host: str
    repository: str
    tag: str | None
    digest: str | None

    @property
    def name(self) -> str:
        return f"{self.host}/{self.repository}"


def parse_reference(text: str) -> Reference:
    """Take a reference apart as Docker does. Raises ValueError for one that is empty."""
    rest, _, digest = text.partition("@")
    first, slash, tail = rest.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        host, rest = first, tail
    else:
        host = DOCKER_HUB
    repository, colon, tag = rest.rpartition(":")
    if not colon:
        repository, tag = rest, ""
    if not repository:
        raise ValueError(f"not an image reference: {text!r}")
    host = canonical_host(host)
    if host == DOCKER_HUB and "/" not in repository:
        repository = f"library/{repository}"
    return Reference(host, repository, tag or (None if digest else "latest"), digest or None)


def canonical_host(host: str) -> str:
    return DOCKER_HUB if host in HUB_NAMES else host


@dataclass(frozen=True)
class Manifest:
    """A manifest as it is served. ``platforms`` are those it can run on; ``config_digest`` None for an index."""

    media_type: str
    data: bytes
    digest: str
    platforms: tuple[str, ...]
    config_digest: str | None
    children: tuple[str, ...] = ()

    @property
    def is_index(self) -> bool:
        return self.media_type in (OCI_INDEX, DOCKER_LIST)


@dataclass(frozen=True)
class Repository:
    """Everything one repository serves."""

    tags: Mapping[str, str]  # tag → digest
    manifests: Mapping[str, Manifest]
    blobs: Mapping[str, bytes]


class Catalogue:
    """The known images, made on first use; repositories not asked for in a while are forgotten and made again."""

    def __init__(self, entries: Mapping[str, Mapping[str, Any]]) -> None:
        self._entries: dict[str, dict[str, Mapping[str, Any]]] = {}
        for text, entry in entries.items():
            reference = parse_reference(text)
            if reference.tag is None:
                raise ValueError(f"the catalogue has an image without a tag: {text!r}")
            self._entries.setdefault(reference.name, {})[reference.tag] = entry
        self._made: OrderedDict[str, Repository] = OrderedDict()

    @property
    def hosts(self) -> frozenset[str]:
        return frozenset(name.partition("/")[0] for name in self._entries)

    def repository(self, name: str) -> Repository | None:
        """``name`` with its canonical host, as in ``docker.io/library/mariadb``."""
        entries = self._entries.get(name)
        if entries is None:
            return None
        if name not in self._made:
            self._made[name] = _make_repository(name, entries)
            while len(self._made) > REPOSITORIES_KEPT:
                self._made.popitem(last=False)
        self._made.move_to_end(name)
        return self._made[name]

    def find(self, text: str) -> tuple[Repository, Manifest] | None:
        """The manifest a reference in any spelling means."""
        try:
            reference = parse_reference(text)
        except ValueError:
            return None
        repository = self.repository(reference.name)
        if repository is None:
            return None
        digest = reference.digest or repository.tags.get(reference.tag or "")
        manifest = repository.manifests.get(digest or "")
        return (repository, manifest) if manifest else None


def image_config(repository: Repository, manifest: Manifest, platform: str) -> Mapping[str, Any] | None:
    """The configuration blob of an image for a platform ("linux/arm64"; arm64/v8 and amd64/v1 are the plain ones)."""
    candidates = [repository.manifests[digest] for digest in manifest.children] if manifest.is_index else [manifest]
    for candidate in candidates:
        if plain_platform(platform) in map(plain_platform, candidate.platforms) and candidate.config_digest:
            found: Mapping[str, Any] = json.loads(repository.blobs[candidate.config_digest])
            return found
    return None


def plain_platform(platform: str) -> str:
    """The same platform without a variant that says nothing: arm64/v8 is arm64, amd64/v1 is amd64."""
    for suffix in ("arm64/v8", "amd64/v1"):
        if platform.endswith(suffix):
            return platform.rpartition("/")[0]
    return platform


# -- making the bytes --------------------------------------------------------------------------------------------------
class _Maker:
    """Collects what one repository serves."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.manifests: dict[str, Manifest] = {}
        self.blobs: dict[str, bytes] = {}

    def blob(self, data: bytes, media_type: str) -> dict[str, Any]:
        digest = digest_of(data)
        self.blobs[digest] = data
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    def manifest(
        self,
        body: Mapping[str, Any],
        platforms: tuple[str, ...],
        *,
        config: str | None = None,
        children: tuple[str, ...] = (),
    ) -> Manifest:
        data = json.dumps(body, indent=2).encode()
        made = Manifest(body["mediaType"], data, digest_of(data), platforms, config, children)
        self.manifests[made.digest] = made
        return made

    def image(self, tag: str, platform: str, entry: Mapping[str, Any], *, docker: bool) -> Manifest:
        """A single-platform image: a config, one real layer, the manifest that names both."""
        layer = _layer(f"{self.name}:{tag}", platform)
        layer_descriptor = self.blob(gzip.compress(layer, mtime=0), DOCKER_LAYER if docker else OCI_LAYER)
        config = _config(tag, platform, entry.get("config") or {}, digest_of(layer))
        config_descriptor = self.blob(json.dumps(config).encode(), DOCKER_CONFIG if docker else OCI_CONFIG)
        body = {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST if docker else OCI_MANIFEST,
            "config": config_descriptor,
            "layers": [layer_descriptor],
        }
        return self.manifest(body, (platform,), config=config_descriptor["digest"])

    def attestation(self, subject: Manifest) -> dict[str, Any]:
        """What BuildKit adds beside an image: a manifest that no machine can run, for platform unknown/unknown."""
        statement = {
            "_type": "https://in-toto.io/Statement/v0.1",
            "predicateType": "https://slsa.dev/provenance/v0.2",
            "subject": [{"name": f"pkg:docker/{self.name}", "digest": {"sha256": subject.digest.partition(":")[2]}}],
            "predicate": {"buildType": "https://mobyproject.org/buildkit@v1"},
        }
        layer = self.blob(json.dumps(statement).encode(), IN_TOTO)
        config = {
            "architecture": "unknown",
            "os": "unknown",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
        }
        descriptor = self.blob(json.dumps(config).encode(), OCI_CONFIG)
        body = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": descriptor, "layers": [layer]}
        made = self.manifest(body, (), config=descriptor["digest"])
        return {
            "mediaType": OCI_MANIFEST,
            "digest": made.digest,
            "size": len(made.data),
            "annotations": {
                "vnd.docker.reference.digest": subject.digest,
                "vnd.docker.reference.type": "attestation-manifest",
            },
            "platform": {"architecture": "unknown", "os": "unknown"},
        }


def _make_repository(name: str, entries: Mapping[str, Mapping[str, Any]]) -> Repository:
    maker = _Maker(name)
    tags: dict[str, str] = {}
    for tag, entry in entries.items():
        draw = hashlib.sha256(name.encode()).digest()[0]
        docker = bool(entry.get("docker", draw % 3 == 0))
        platforms = tuple(entry["platforms"])
        images = [maker.image(tag, platform, entry, docker=docker) for platform in platforms]
        if not entry.get("index", len(images) != 1):
            tags[tag] = images[0].digest
            continue
        descriptors: list[dict[str, Any]] = [
            {
                "mediaType": image.media_type,
                "digest": image.digest,
                "size": len(image.data),
                "platform": _platform_object(image.platforms[0]),
            }
            for image in images
        ]
        if not docker and entry.get("attestations", draw % 2 == 0):
            descriptors += [maker.attestation(image) for image in images]
        body = {
            "schemaVersion": 2,
            "mediaType": DOCKER_LIST if docker else OCI_INDEX,
            "manifests": descriptors,
        }
        tags[tag] = maker.manifest(body, platforms, children=tuple(image.digest for image in images)).digest
    return Repository(tags, maker.manifests, maker.blobs)


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _platform_object(platform: str) -> dict[str, str]:
    os_name, _, rest = platform.partition("/")
    architecture, _, variant = rest.partition("/")
    found = {"architecture": architecture, "os": os_name}
    if variant:
        found["variant"] = variant
    if os_name == "windows":
        found["os.version"] = "10.0.20348.4648"
    return found


def _config(tag: str, platform: str, config: Mapping[str, Any], diff_id: str) -> dict[str, Any]:
    section = {key: copy.deepcopy(value) for key, value in config.items() if value not in (None, "", [], {})}
    for key in ("ExposedPorts", "Volumes"):
        if isinstance(section.get(key), list):
            section[key] = {name: {} for name in section[key]}
    if isinstance(section.get("Healthcheck"), list):
        section["Healthcheck"] = {"Test": section["Healthcheck"]}
    section["Labels"] = {"org.opencontainers.image.version": tag, **(section.get("Labels") or {})}
    return {
        **_platform_object(platform),
        "created": CREATED,
        "config": section,
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created": CREATED, "created_by": "COPY rootfs / # hybridlab lab", "comment": "buildkit"}],
    }


def _layer(image: str, platform: str) -> bytes:
    """A small file system: who made it, and a /bin/sh whose ELF header names the machine it is for."""
    machine = ELF_MACHINES.get(_platform_object(platform)["architecture"], 0)
    endian: Literal["big", "little"] = "big" if machine == ELF_MACHINES["s390x"] else "little"
    header = bytes([0x7F, *b"ELF", 2, 2 if endian == "big" else 1, 1, *([0] * 9)])
    header += (2).to_bytes(2, endian) + machine.to_bytes(2, endian) + (1).to_bytes(4, endian)
    files = {"bin/sh": header.ljust(64, b"\0"), "etc/hybridlab-image": f"{image} {platform}\n".encode()}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path, data in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(data)
            entry.mode = 0o755 if path.startswith("bin/") else 0o644
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()
