"""A hundred images against a slow registry: ours, and one ``skopeo inspect`` after another.

    python tests/bench/bench_registry.py [--images 100] [--latency-ms 50]

The registry is the lab's, with its tokens, behind a pause before every request (slow_registry.py); all runs meet the
same one. Without skopeo only ours is measured. ``one image``: a client that knows nothing asks for a single image with
several platforms, which is the longest chain of requests there is.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import resources
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[2])]

from slow_registry import slow_registry  # noqa: E402 - found by the line above

from hybridlab.drivers.registry import THREADS, RegistryDriver  # noqa: E402

SEVERAL = "docker.io/library/mariadb:11"  # an index, so asking for it takes every request there is
INSPECTIONS: tuple[tuple[str, list[str]], ...] = (
    ("skopeo inspect", []),
    ("skopeo inspect --no-tags", ["--no-tags"]),
    ("skopeo inspect --raw", ["--raw"]),
)


def references(count: int) -> list[str]:
    """As many images as asked for, as few of one repository as there can be."""
    text = resources.files("hybridlab.data").joinpath("registry-catalogue.json").read_text(encoding="utf-8")
    by_repository: dict[str, list[str]] = {}
    for reference in sorted(json.loads(text), key=lambda name: name != SEVERAL):
        by_repository.setdefault(reference.rpartition(":")[0], []).append(reference)
    rounds = max(map(len, by_repository.values()))
    ordered = [tags[index] for index in range(rounds) for tags in by_repository.values() if index < len(tags)]
    if count > len(ordered):
        raise SystemExit(f"the lab's registry has {len(ordered)} images")
    return ordered[:count]


def time_ours(base: str, cache: Path, wanted: list[str]) -> float:
    began = time.perf_counter()
    driver = RegistryDriver(cache=cache, endpoint_for=lambda host: base, login_for=lambda host, repository: None)
    found = driver.lookup(wanted)
    took = time.perf_counter() - began
    unknown = [f"{name}: {info.problem}" for name, info in found.items() if not info.known or not info.platforms]
    if unknown:
        raise SystemExit("not looked up: " + "; ".join(unknown))
    return took


def time_skopeo(program: str, base: str, wanted: list[str], words: list[str]) -> float:
    address = base.removeprefix("http://")
    began = time.perf_counter()
    for reference in wanted:
        name = f"docker://{address}/{reference}"
        command = [program, "--override-os", "linux", "--override-arch", "amd64", "inspect", "--tls-verify=false"]
        done = subprocess.run([*command, *words, name], capture_output=True, check=False, text=True)
        if done.returncode:
            raise SystemExit(f"{reference}: {done.stderr}")
    return time.perf_counter() - began


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--images", type=int, default=100)
    options.add_argument("--latency-ms", type=float, default=50)
    given = options.parse_args()
    wanted = references(given.images)
    program = shutil.which("skopeo")
    with tempfile.TemporaryDirectory() as name, slow_registry(Path(name), given.latency_ms / 1000) as base:
        folder = Path(name)
        chain = statistics.median(time_ours(base, folder / f"one-{i}", [wanted[0]]) for i in range(5))
        ours = [time_ours(base, folder / f"all-{i}", wanted) for i in range(3)]
        again = [time_ours(base, folder / "all-0", wanted) for _ in range(3)]
        theirs = [(what, time_skopeo(program, base, wanted, words)) for what, words in INSPECTIONS] if program else []
    mine = statistics.median(ours)
    print(f"{len(wanted)} images, {given.latency_ms:g} ms a request, {os.cpu_count()} cores here, seconds\n")
    for what, took in theirs:
        print(f"{what + ', one after another':44}{took:8.2f}{took / mine:8.1f}×")
    print(f"{f'hybridlab, {THREADS} at a time':44}{mine:8.2f}")
    print(f"{'  again, from the cache':44}{statistics.median(again):8.2f}")
    bound = chain * len(wanted) / THREADS
    print(f"{f'one image {chain:.2f} × {len(wanted)} / {THREADS}':44}{bound:8.2f}{mine / bound:8.2f} of it (at most 2)")
    if not theirs:
        print("skopeo is not installed: no comparison")


if __name__ == "__main__":
    main()
