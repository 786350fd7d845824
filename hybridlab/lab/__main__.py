"""``python -m hybridlab.lab --dir DIR``: the lab in the foreground. ``hybridlab lab start`` hides it."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from pathlib import Path

from hybridlab.errors import HybridlabError
from hybridlab.lab.directory import LabDirectory
from hybridlab.lab.process import ALL_PARTS

LOG_MAX_BYTES = 5_000_000


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m hybridlab.lab", description="Run the lab in the foreground.")
    parser.add_argument("--dir", type=Path, required=True, help="the lab's folder")
    parser.add_argument("--speed", type=float, default=1.0, help="10: what takes ten seconds takes one")
    parser.add_argument("--allowance", help="the tenancy's allowance, by its name in data/allowances.json")
    parser.add_argument("--compose", type=Path, help="the services on a new lab's Docker host")
    parser.add_argument("--parts", default=",".join(ALL_PARTS), help="only these parts, in this order")
    given = parser.parse_args(arguments)
    folder = LabDirectory(given.dir.resolve())
    try:
        folder.prepare()
        folder.hold()  # never let go of: whoever gets the lock can be sure that this process is gone
        _log_to(folder)
        from hybridlab.lab.server import serve  # after the lock, so that a second lab is refused at once

        parts = given.parts.split(",")
        return asyncio.run(
            serve(folder, speed=given.speed, allowance=given.allowance, compose=given.compose, parts=parts)
        )
    except HybridlabError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code


def _log_to(folder: LabDirectory) -> None:
    if folder.log_file.exists() and folder.log_file.stat().st_size > LOG_MAX_BYTES:
        # cut rather than renamed: this process' own stdout may already be this file
        with folder.log_file.open("r+b") as file:
            file.truncate(0)
    folder.log_file.touch(mode=0o600)
    logging.basicConfig(
        filename=folder.log_file, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    for noisy in ("asyncssh", "aiohttp.access"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())
