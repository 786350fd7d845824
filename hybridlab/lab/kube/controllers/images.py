"""Images on nodes: pulled once a node, one at a time, and refused with containerd's words."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hybridlab.lab.kube.controllers.objects import NODE, Obj, status_of
from hybridlab.lab.kube.controllers.work import Context

PULL_S = 0.5

# What containerd runs on an architecture besides its own (platforms.Only): 32-bit arm on arm64, 386 on amd64.
_ALSO_RUNS: Mapping[str, tuple[str, ...]] = {"arm64": ("arm64", "arm"), "amd64": ("amd64", "386")}


class PullFailed(Exception):
    """The pull failed; the text is the runtime's error."""


@dataclass(frozen=True)
class Image:
    """A pulled image as one node sees it: ``runs`` is False where its binaries are for another architecture."""

    name: str
    runs: bool
    config: Mapping[str, Any]

    def argv(self, command: list[str] | None, args: list[str] | None) -> list[str]:
        """What a container runs: its command replaces the entrypoint and drops Cmd, its args replace Cmd."""
        inner = self.config.get("config") or {}
        entrypoint = list(inner.get("Entrypoint") or [])
        default = list(inner.get("Cmd") or [])
        if command:
            return [*command, *(args or [])]
        return [*entrypoint, *(args if args else default)]


def normalised(image: str) -> str:
    """The reference with registry and tag written out: ``busybox`` is ``docker.io/library/busybox:latest``."""
    first, slash, rest = image.partition("/")
    if not slash or not ("." in first or ":" in first or first == "localhost"):
        image = "docker.io/" + (image if slash else f"library/{image}")
    elif first == "index.docker.io":
        image = f"docker.io/{rest}"
    last = image.rpartition("/")[2]
    return image if ":" in last or "@" in last else f"{image}:latest"


def architecture_of(platform: str) -> str:
    """``linux/arm64/v8`` is arm64."""
    parts = platform.split("/")
    return parts[1] if len(parts) > 1 else parts[0]


class Images:
    """Pulls images to nodes; what a node has is in its Node's status.images, so it survives the lab."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._pulling: dict[str, asyncio.Lock] = {}

    def present(self, node: str, image: str) -> bool:
        found = self._context.get(NODE, node)
        images = status_of(found).get("images") or [] if found else []
        return any(normalised(image) in (entry.get("names") or []) for entry in images)

    async def pull(self, node: str, arch: str, image: str) -> float:
        """Bring an image to a node; returns the seconds it took (0 where it was there). Raises PullFailed."""
        full = normalised(image)
        started = self._context.now()
        async with self._pulling.setdefault(node, asyncio.Lock()):  # K3s' kubelet pulls one image at a time
            if self.present(node, image):
                return 0.0
            platforms = self._context.world.registry.platforms(image)
            await self._context.takes(PULL_S if platforms is not None else PULL_S / 5)
            if platforms is None:
                raise PullFailed(
                    f'rpc error: code = NotFound desc = failed to pull and unpack image "{full}": failed to resolve '
                    f'reference "{full}": {full}: not found'
                )
            if self._is_index(image) and not _fits(platforms, arch):
                raise PullFailed(
                    f'rpc error: code = NotFound desc = failed to pull and unpack image "{full}": no match for '
                    "platform in manifest: not found"
                )
            self._record(node, full)
        return self._context.now() - started

    def describe(self, arch: str, image: str) -> Image:
        """An image that is on a node of this architecture. Raises PullFailed where the registry lost it."""
        platforms = self._context.world.registry.platforms(image)
        if platforms is None:
            return Image(normalised(image), True, {})  # pulled earlier: it runs without the registry
        mine = _best(platforms, arch)
        platform = mine or (platforms[0] if platforms else "")
        config = self._context.world.registry.config(image, platform) if platform else {}
        return Image(normalised(image), mine is not None, config)

    def _is_index(self, image: str) -> bool:
        ask = getattr(self._context.world.registry, "is_index", None)
        if ask is None:
            return len(self._context.world.registry.platforms(image) or ()) > 1
        return bool(ask(image))

    def _record(self, node: str, full: str) -> None:
        found = self._context.get(NODE, node)
        if found is None:
            return
        status: Obj = status_of(found)
        status.setdefault("images", []).append({"names": [full], "sizeBytes": 0})
        self._context.set_status(NODE, found, status)


def _fits(platforms: tuple[str, ...], arch: str) -> bool:
    return _best(platforms, arch) is not None


def _best(platforms: tuple[str, ...], arch: str) -> str | None:
    for runnable in _ALSO_RUNS[arch]:
        for platform in platforms:
            if platform.startswith("linux/") and architecture_of(platform) == runnable:
                return platform
    return None
