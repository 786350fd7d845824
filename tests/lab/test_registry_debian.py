"""Debian's docker-registry, filled by skopeo: our client and skopeo say the same of what is in it.

docker-registry is the distribution project's own server (2.8.2 in Debian 12), with the rules of a real one. Both
programs are Debian packages of the same names.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from test_registry import IMAGES, with_registry

from hybridlab.drivers.registry import RegistryDriver
from hybridlab.lab.registry import RegistryPart
from hybridlab.lab.world import World
from hybridlab.models import ImageInfo
from hybridlab.wait import SystemClock

MISSING = [name for name in ("docker-registry", "skopeo") if shutil.which(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (Debian packages)")
DEADLINE_S = 60.0
# One reference of each repository: OCI and Docker, one platform and several, with attestations, a private host's.
COPIED = tuple({name.rpartition(":")[0]: name for name in IMAGES}.values())


@contextmanager
def docker_registry(folder: Path) -> Iterator[str]:
    """An empty registry on the loopback interface; gives its host and port."""
    config = {
        "version": 0.1,
        "storage": {"filesystem": {"rootdirectory": str(folder / "registry")}},
        "http": {"addr": "127.0.0.1:0"},
        "log": {"level": "info", "formatter": "text"},
    }
    path = folder / "config.json"
    path.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    with subprocess.Popen(
        ["docker-registry", "serve", path], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stderr is not None
        watchdog = threading.Timer(DEADLINE_S, server.kill)
        watchdog.start()
        try:
            lines = iter(server.stderr.readline, "")
            found = next(
                (match for line in lines if (match := re.search(r"listening on (127\.0\.0\.1:\d+)", line))), None
            )
            watchdog.cancel()
            assert found, "docker-registry did not start"
            drain = threading.Thread(target=server.stderr.read, daemon=True)
            drain.start()
            yield found[1]
        finally:
            watchdog.cancel()
            server.kill()


def skopeo(*words: str) -> str:
    done = subprocess.run(["skopeo", *words], capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def as_skopeo_says(image: str) -> tuple[str, set[str]]:
    """Digest and platforms, from the raw manifest and, for a single image, its configuration."""
    raw = skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{image}")
    document: dict[str, Any] = json.loads(raw)
    if "manifests" in document:
        found = [entry["platform"] for entry in document["manifests"]]
    else:
        found = [json.loads(skopeo("inspect", "--config", "--tls-verify=false", f"docker://{image}"))]
    platforms = {
        "/".join(filter(None, (entry["os"], entry["architecture"], entry.get("variant"))))
        for entry in found
        if entry["os"] != "unknown"
    }
    return f"sha256:{hashlib.sha256(raw.encode()).hexdigest()}", {plain(platform) for platform in platforms}


def plain(platform: str) -> str:
    """Every arm64 is v8: containerd's platforms package takes the two for the same."""
    return platform.removesuffix("/v8") if platform.startswith("linux/arm64/") else platform


def test_our_client_and_skopeo_agree_about_every_kind_of_image(tmp_path: Path) -> None:
    def use(base: str, _world: World, _part: RegistryPart) -> None:
        source = base.removeprefix("http://")
        with docker_registry(tmp_path) as address:
            names = {}
            for image in COPIED:
                names[image] = f"{address}/{image.partition('/')[2]}"
                tls = ("--src-tls-verify=false", "--dest-tls-verify=false")
                skopeo("copy", "--all", *tls, f"docker://{source}/{image}", f"docker://{names[image]}")
            driver = RegistryDriver(
                cache=tmp_path / "cache",
                endpoint_for=lambda host: None,  # 127.0.0.1 is asked over http, as Docker does
                login_for=lambda host, repository: None,
                clock=SystemClock(),
            )
            ours = driver.lookup(list(names.values()))
            for image, name in names.items():
                digest, platforms = as_skopeo_says(name)
                assert shown(ours[name]) == (digest, platforms), image
                declared = {plain(platform) for platform in IMAGES[image]["platforms"]}
                assert platforms == declared, f"{image}: the copy has other platforms than what was copied"

    with_registry(tmp_path, use)


def shown(info: ImageInfo) -> tuple[str, set[str]]:
    assert info.known, info.problem
    assert not info.problem
    return info.digest, {str(platform) for platform in info.platforms}
