"""curl: what a machine fetches over HTTP. It reaches K3s' servers (the lab's own) and what listens on loopback here."""

from __future__ import annotations

import errno
import posixpath
import time
from contextlib import closing
from typing import BinaryIO
from urllib.parse import urljoin, urlsplit

import aiohttp
from yarl import URL

from hybridlab.lab.hosts.call import CHUNK, Call, Command, split_options
from hybridlab.lab.hosts.releases import NAMES

FLAGS = "-f --fail -s --silent -S --show-error -L --location --create-dirs"
VALUED = "-o --output --retry -m --max-time --connect-timeout"
AGENT = "curl/8.5.0"
LOOPBACK = ("127.0.0.1", "localhost")
REDIRECTS_MAX = 50
TRANSIENT = (408, 429, 500, 502, 503, 504)  # what --retry asks again for


class Failed(Exception):
    """How curl ends: its exit status and words; whether --retry asks again."""

    def __init__(self, status: int, words: str, transient: bool = False) -> None:
        super().__init__(words)
        self.status, self.words, self.transient = status, words, transient


async def curl(call: Call) -> int:
    options, urls = split_options(call.args, FLAGS, VALUED)
    if len(urls) != 1:
        return await call.fail("curl: (2) no URL specified" if not urls else "curl: the lab takes one URL", 2)
    given = {_LONG.get(name, name): value for name, value in options.items()}
    tries = 1 + int(given.get("--retry", "0"))
    for number in range(tries):
        try:
            await _fetch(call, urls[0], given)
            return 0
        except Failed as failed:
            if failed.transient and number + 1 < tries:
                await call.host.world.clock.takes(2**number)
                continue
            if "-s" in given and "-S" not in given:
                return failed.status
            return await call.fail(f"curl: ({failed.status}) {failed.words}", failed.status)
    raise AssertionError("the last try ends the loop")


async def _fetch(call: Call, url: str, given: dict[str, str]) -> None:
    limit = float(given.get("-m", "0")) or None
    begun = time.monotonic()
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=limit), auto_decompress=False) as session:
            for _ in range(REDIRECTS_MAX + 1):
                target, name = _reached(call, url)
                headers = {"Host": name, "User-Agent": AGENT, "Accept": "*/*"}
                async with session.get(URL(target, encoded=True), headers=headers, allow_redirects=False) as answer:
                    onward = answer.headers.get("Location")
                    if "-L" in given and onward and 300 <= answer.status < 400:
                        url = urljoin(url, onward)
                        continue
                    if "-f" in given and answer.status >= 400:
                        words = f"The requested URL returned error: {answer.status}"
                        raise Failed(22, words, answer.status in TRANSIENT)
                    await _keep(call, answer, given)
                    return
            raise Failed(47, f"Maximum ({REDIRECTS_MAX}) redirects followed")
    except TimeoutError as error:
        spent = round(1000 * (time.monotonic() - begun))
        raise Failed(28, f"Operation timed out after {spent} milliseconds", True) from error
    except aiohttp.ClientConnectionError as error:
        parts = urlsplit(url)
        port = parts.port or {"https": 443}.get(parts.scheme, 80)
        words = f"Failed to connect to {parts.hostname} port {port} after 0 ms: Couldn't connect to server"
        raise Failed(7, words) from error
    except aiohttp.ClientPayloadError as error:
        raise Failed(18, "transfer closed with outstanding read data remaining", True) from error


def _reached(call: Call, url: str) -> tuple[str, str]:
    """What is really asked for this URL, and under which name."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise Failed(1, f'Protocol "{parts.scheme}" not supported')
    name = parts.hostname or ""
    rest = parts.path + (f"?{parts.query}" if parts.query else "")
    server = call.host.world.endpoints.get("k3s", {}).get("server")
    if name in NAMES and server:
        return f"{server}{rest}", name
    if name in LOOPBACK:
        return url, parts.netloc
    raise Failed(6, f"Could not resolve host: {name}")


async def _keep(call: Call, answer: aiohttp.ClientResponse, given: dict[str, str]) -> None:
    path = given.get("-o")
    if path is None:
        async for piece in answer.content.iter_chunked(CHUNK):
            await call.stdout.write(piece)
        return
    files, full = call.host.files, posixpath.join(call.cwd, path)
    try:
        if "--create-dirs" in given:
            files.makedirs(posixpath.dirname(full), asker=call.user, mode=0o750)
        with closing(_opened(call, full)) as file:
            async for piece in answer.content.iter_chunked(CHUNK):
                file.write(piece)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EACCES, errno.ENOENT, errno.EISDIR, errno.ENOTDIR):
            raise Failed(23, "Failure writing output to destination") from error
        raise


def _opened(call: Call, path: str) -> BinaryIO:
    return call.host.files.open_write(path, asker=call.user)


_LONG = {
    "--fail": "-f",
    "--silent": "-s",
    "--show-error": "-S",
    "--location": "-L",
    "--output": "-o",
    "--max-time": "-m",
}

TABLE = {"curl": Command(curl, lambda args: any(word in ("-o", "--output") for word in args))}
