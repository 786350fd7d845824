"""Where K3s is fetched from, as far as the lab's machines can tell: GitHub's downloads, K3s' channels, and a mirror.

One server on loopback answers for all of them. A machine's curl reaches it under the real names; the mirror by its own
address. What GitHub answers with a redirect, this does too; install.sh is at the tag, not among a release's files.
"""

from __future__ import annotations

import re

from aiohttp import web

from hybridlab.lab.hosts.k3s_release import FILE_NAMES, archive_bytes, images_archive, offer_release
from hybridlab.lab.net import remember_port, remembered_port, serve_on_loopback
from hybridlab.lab.world import World

NAMES = frozenset(["github.com", "release-assets.githubusercontent.com", "raw.githubusercontent.com", "update.k3s.io"])
"""Names that a machine's curl finds here."""
VERSION = re.compile(r"v\d+\.\d+\.\d+[\w.+-]*")
SUMS = {f"sha256sum-{arch}.txt" for arch in FILE_NAMES}
BINARIES = set(FILE_NAMES.values())
FAULTS = {
    "release-missing": "a file of a K3s release is not there (404)",
    "release-damaged": "one byte of a file of a K3s release is another",
    "release-busy": "a file of a K3s release is not given out now (503)",
}


class ReleaseServer:
    """Gives out the releases in ``<lab>/k3s-release/``; a folder put there beside the lab's own is one more."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._folder = world.directory / "k3s-release"
        self._runner: web.AppRunner | None = None
        for name, description in FAULTS.items():
            world.faults.register(name, f'{description}; matches "VERSION/FILE"')

    async def start(self) -> None:
        """Write the lab's own release, serve, and tell where."""
        offer_release(self._world)
        app = web.Application()
        app.add_routes(
            [
                web.get("/k3s-io/k3s/releases/download/{tag}/{file}", self._download),
                web.get("/github-production-release-asset/{tag}/{file}", self._asset),
                web.get("/k3s-io/k3s/{tag}/install.sh", self._installer),
                web.get("/v1-release/channels/{channel}", self._channel),
                web.get("/k3s/{tag}/{file}", self._mirrored),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        port = await serve_on_loopback(self._runner, preferred=remembered_port(self._world, "k3s-releases"))
        remember_port(self._world, "k3s-releases", port)
        base = f"http://127.0.0.1:{port}"
        self._world.endpoints["k3s"] |= {
            "server": base,
            "mirror": f"{base}/k3s",
            "channels": f"{base}/v1-release/channels",
        }

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _download(self, request: web.Request) -> web.StreamResponse:
        tag, file = request.match_info["tag"], request.match_info["file"]
        if file == "install.sh" or self._content(tag, file) is None:
            return self._logged(request, web.Response(status=404, text="Not Found"))
        where = f"https://release-assets.githubusercontent.com/github-production-release-asset/{tag}/{file}"
        return self._logged(request, web.Response(status=302, headers={"Location": where.replace("+", "%2B")}))

    async def _asset(self, request: web.Request) -> web.StreamResponse:
        return self._file(request, request.match_info["file"])

    async def _installer(self, request: web.Request) -> web.StreamResponse:
        return self._file(request, "install.sh")

    async def _mirrored(self, request: web.Request) -> web.StreamResponse:
        return self._file(request, request.match_info["file"])

    def _file(self, request: web.Request, file: str) -> web.StreamResponse:
        tag = request.match_info["tag"]
        content, faults, subject = self._content(tag, file), self._world.faults, f"{tag}/{file}"
        if faults.fires("release-busy", subject):
            return self._logged(request, web.Response(status=503, text="Service Unavailable"))
        if content is None or faults.fires("release-missing", subject):
            return self._logged(request, web.Response(status=404, text="Not Found"))
        if faults.fires("release-damaged", subject):
            content = content[:-1] + bytes([content[-1] ^ 1])
        return self._logged(request, web.Response(body=content, content_type="application/octet-stream"))

    def _content(self, tag: str, file: str) -> bytes | None:
        """A file of a release, or None; the archives of images are made as they are asked for."""
        if not VERSION.fullmatch(tag) or not (self._folder / tag).is_dir():
            return None
        arch = next((arch for arch in FILE_NAMES if file == images_archive(arch)), None)
        if arch is not None:
            return archive_bytes(tag, arch)
        path = self._folder / tag / file
        return path.read_bytes() if file in {*BINARIES, *SUMS, "install.sh"} and path.is_file() else None

    async def _channel(self, request: web.Request) -> web.StreamResponse:
        """Channels lead to the newest release: of all (stable, latest), or of a minor version (v1.34)."""
        channel = request.match_info["channel"]
        prefix = "v" if channel in ("stable", "latest") else f"{channel}."
        known = [p.name for p in self._folder.iterdir() if VERSION.fullmatch(p.name) and p.name.startswith(prefix)]
        if not known:
            return self._logged(request, web.Response(status=404, text="Not Found"))
        newest = max(known, key=lambda name: [int(n) for n in re.findall(r"\d+", name)])
        where = f"https://github.com/k3s-io/k3s/releases/tag/{newest.replace('+', '%2B')}"
        return self._logged(request, web.Response(status=302, headers={"Location": where}))

    def _logged(self, request: web.Request, answer: web.Response) -> web.Response:
        actor = request.headers.get("User-Agent", "")
        target = f"{request.headers.get('Host', '')}{request.rel_url.raw_path}"
        self._world.log.add("hosts", "GET", target, answer.status, mutating=False, actor=actor)
        return answer
