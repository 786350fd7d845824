"""What converting a project takes beyond Compose's own time, with a warm image cache.

    HYBRIDLAB_TEST_COMPOSE_CORPUS=FOLDER python tests/bench/bench_convert.py [--runs 3] [--latency-ms 0]

FOLDER has an ``index.csv`` whose column ``file`` names compose files; without it the repository's own project under
params/services is measured. Each project is read, looked up in the lab's registry, placed and written as ``hybridlab
convert`` does it, in this process; Compose alone is run right before with the same arguments, so that a busy moment
hits both. Images that the lab's registry does not have are asked for each time, as nothing of them can be kept.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).resolve().parent), str(ROOT)]

from slow_registry import slow_registry  # noqa: E402 - found by the line above

from hybridlab.compose import convert, read_project, references, write  # noqa: E402
from hybridlab.drivers.registry import RegistryDriver  # noqa: E402
from hybridlab.models import NodeCapacity  # noqa: E402

GI = 1 << 30
NODES = (NodeCapacity("arm-1", "arm64", 1800, 10 * GI), NodeCapacity("amd-1", "amd64", 900, GI))


@dataclass(frozen=True)
class Times:
    """Seconds of one project; ``compose`` is Compose run on its own."""

    compose: float
    read: float
    lookup: float
    convert: float
    write: float

    @property
    def beyond(self) -> float:
        return self.read - self.compose + self.lookup + self.convert + self.write


def projects() -> list[tuple[Path, list[Path]]]:
    """Compose files, each with its env files."""
    folder = os.environ.get("HYBRIDLAB_TEST_COMPOSE_CORPUS", "")
    if not folder:
        own = ROOT / "params" / "services"
        return [(own / "compose.yaml", [own / ".env.example"])]
    rows = csv.DictReader((Path(folder) / "index.csv").read_text(encoding="utf-8").splitlines())
    return [(Path(folder) / row["file"], []) for row in rows]


def compose_words() -> list[str]:
    """The Compose that read_project would take."""
    docker = shutil.which("docker")
    if docker and not subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        return [docker, "compose"]
    packaged = Path(sysconfig.get_path("scripts")) / "docker-compose"
    return [shutil.which("docker-compose") or str(packaged)]


def measure(path: Path, env_files: list[Path], words: list[str], driver: RegistryDriver, folder: Path) -> Times:
    given = [word for env_file in env_files for word in ("--env-file", str(env_file))]
    command = [*words, "-f", str(path), *given, "--profile", "*", "config", "--format", "json", "--no-path-resolution"]
    marks = [time.perf_counter()]
    subprocess.run(command, cwd=path.parent, capture_output=True, check=True, stdin=subprocess.DEVNULL)
    marks.append(time.perf_counter())
    project = read_project([path], env_files=env_files)
    marks.append(time.perf_counter())
    images = driver.lookup(sorted(set(references(project).values())))
    marks.append(time.perf_counter())
    manifests = convert(project, images, NODES)
    marks.append(time.perf_counter())
    write(manifests, folder)
    marks.append(time.perf_counter())
    return Times(*(after - before for before, after in itertools.pairwise(marks)))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--runs", type=int, default=3, help="how often each project is converted, after a first time")
    options.add_argument("--latency-ms", type=float, default=0, help="what every request to the registry waits")
    given = options.parse_args()
    words, found = compose_words(), projects()
    with tempfile.TemporaryDirectory() as name, slow_registry(Path(name), given.latency_ms / 1000) as base:
        cache = Path(name) / "cache"
        driver = RegistryDriver(cache=cache, endpoint_for=lambda host: base, login_for=lambda host, repository: None)
        runs: list[list[Times]] = []
        for index, (path, env_files) in enumerate(found):
            folder = Path(name) / f"out-{index}"
            measure(path, env_files, words, driver, folder)
            runs.append([measure(path, env_files, words, driver, folder) for _ in range(given.runs)])
    print(f"{len(found)} projects, {os.cpu_count()} cores here, median of {given.runs} runs each, milliseconds\n")
    print(f"{'':24}{'median':>10}{'most':>10}")
    for what in ("compose", "read", "lookup", "convert", "write", "beyond"):
        each = [statistics.median(getattr(times, what) for times in one) for one in runs]
        name = "beyond Compose" if what == "beyond" else what
        print(f"{name:24}{1000 * statistics.median(each):10.1f}{1000 * max(each):10.1f}")


if __name__ == "__main__":
    main()
