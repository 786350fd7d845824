"""A gigabyte from the Docker host into a claim: streamed, never whole in memory, on our side or in the lab."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "lab"))
from life import PARAMS, ROOT, Life

SIZE = 1 << 30
MOST = 200 << 20
COMPOSE = """
name: big
services:
  web: {image: "matomo:5", volumes: ["site:/var/www/html"]}
volumes: {site: {}}
"""
MIGRATE = "migrate: {compose: services/compose.yaml, claim_gb: 4, docker_host: {address: 192.168.1.10}}\n"
COPY = """
import resource, sys
from hybridlab.cluster import open_cluster
cluster = open_cluster("params/lab.yaml", approve="all")
stage = cluster.stage("migrate")
stage.gate(); stage.apply()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc, and ru_maxrss in KiB")
def test_a_gigabyte_passes_in_under_200_megabytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    life = Life(tmp_path / "home")
    (life.home / "params" / "services" / "compose.yaml").write_text(COMPOSE, encoding="utf-8")
    path = life.home / PARAMS
    text = path.read_text(encoding="utf-8").split("migrate:")[0]
    path.write_text(text + MIGRATE + "storage: {engine: local-path, test_mb: 1}\n", encoding="utf-8")
    life.start()
    try:
        life.make("provision", "bootstrap", "storage")
        folder = life.lab_dir / "hosts" / "docker-1" / "var/lib/docker/volumes/big_site/_data"
        with (folder / "video.mkv").open("wb") as file:
            for _ in range(SIZE >> 20):
                file.write(os.urandom(1 << 20))
        began = time.monotonic()
        env = os.environ | {"HYBRIDLAB_HOME": str(life.home), "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", COPY],
            cwd=life.home,
            env=env,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        took, ours = time.monotonic() - began, int(done.stdout) * 1024
        status = Path(f"/proc/{life.lab.pid}/status").read_text(encoding="utf-8")
        lab = int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024
        copied = [r.detail for r in life.ledger() if r.step == "copy:site" and r.event == "done"]
        assert copied[0]["bytes"] > SIZE
        with capsys.disabled():
            print(f"\n1 GiB in {took:.0f} s; at most {ours >> 20} MiB here, {lab >> 20} MiB in the lab")
        assert ours < MOST
        assert lab < MOST
    finally:
        life.stop()
