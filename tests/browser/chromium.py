"""A headless Chromium, driven over its DevTools protocol: pages are loaded, looked at, photographed and printed."""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless=new",
    "--disable-gpu",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)
TIMEOUT_S = 60.0


def find_chromium() -> str | None:
    """HYBRIDLAB_CHROMIUM, else the first Chromium or Chrome on PATH."""
    given = os.environ.get("HYBRIDLAB_CHROMIUM")
    return given or next((path for name in NAMES if (path := shutil.which(name))), None)


class Chromium:
    """One browser with one page, offline. Use as a context manager."""

    def __init__(self, program: str) -> None:
        self._program = program
        self._loop = asyncio.new_event_loop()
        self._profile = Path(tempfile.mkdtemp(prefix="hl-chromium-"))
        self._count = 0
        self._session = ""
        self.requested: list[str] = []
        """Every address the page asked for since it was opened."""
        self.problems: list[str] = []
        """Exceptions and errors that the page's console told since it was opened."""

    def __enter__(self) -> Chromium:
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        words = [self._program, *FLAGS, *sandbox, f"--user-data-dir={self._profile}", "about:blank"]
        self._process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            self._loop.run_until_complete(self._connect())
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._loop.run_until_complete(self._client.close())
        self._stop()

    def _stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        self._loop.close()
        shutil.rmtree(self._profile, ignore_errors=True)

    async def _connect(self) -> None:
        port_file = self._profile / "DevToolsActivePort"
        ends = time.monotonic() + TIMEOUT_S
        while not port_file.exists() or port_file.read_text().count("\n") < 1:
            if self._process.poll() is not None or time.monotonic() > ends:
                raise RuntimeError(f"{self._program} did not start: {self._process.poll()}")
            await asyncio.sleep(0.05)
        port, path = port_file.read_text().split("\n")[:2]
        self._client = aiohttp.ClientSession()
        self._socket = await self._client.ws_connect(f"ws://127.0.0.1:{port}{path}", max_msg_size=0)
        target = (await self._say("Target.createTarget", url="about:blank"))["targetId"]
        self._session = (await self._say("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            await self._say(f"{domain}.enable")
        # a page that needs a network shows it: everything but files and data fails
        await self._say(
            "Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0
        )

    async def _say(self, method: str, **params: Any) -> dict[str, Any]:
        self._count += 1
        number = self._count
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        await self._socket.send_json(message)
        while True:
            answer = await self._next()
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return dict(answer["result"])

    async def _next(self) -> dict[str, Any]:
        """The next message; what concerns the page's requests and problems is remembered."""
        message: dict[str, Any] = await self._socket.receive_json(timeout=TIMEOUT_S)
        match message.get("method"), message.get("params", {}):
            case "Network.requestWillBeSent", params:
                self.requested.append(params["request"]["url"])
            case "Runtime.exceptionThrown", params:
                details = params["exceptionDetails"]
                self.problems.append(details.get("exception", {}).get("description") or details["text"])
            case "Log.entryAdded", params if params["entry"]["level"] == "error":
                self.problems.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        return message

    async def _open(self, url: str) -> None:
        self.requested, self.problems = [], []
        await self._say("Page.navigate", url=url)
        ends = time.monotonic() + TIMEOUT_S
        while not await self._value("document.readyState === 'complete' && location.href !== 'about:blank'"):
            if time.monotonic() > ends:
                raise RuntimeError(f"{url} does not come to its end")
            await asyncio.sleep(0.05)

    async def _value(self, script: str) -> Any:
        done = await self._say("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in done:
            raise RuntimeError(str(done["exceptionDetails"])[:2000])
        return done["result"].get("value")

    # -- for tests -------------------------------------------------------------------------------------------------
    def say(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the DevTools protocol to the page."""
        return self._loop.run_until_complete(self._say(method, **params))

    def open(self, page: Path, *, width: int = 1100, height: int = 900, dark: bool = False) -> None:
        """Load a file into a window of that size; returns when everything it wants is loaded."""
        self.resize(width, height)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.say("Emulation.setEmulatedMedia", features=[scheme])
        self._loop.run_until_complete(self._open(page.resolve().as_uri()))

    def resize(self, width: int, height: int = 900) -> None:
        self.say("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def value(self, script: str) -> Any:
        """What an expression (or a promise) comes to in the page, as JSON."""
        return self._loop.run_until_complete(self._value(script))

    def shot(self, path: Path) -> None:
        """The whole page as PNG, not only what the window shows."""
        size = self.say("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 12_000), "scale": 1}
        taken = self.say("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(taken["data"]))

    def pdf(self, path: Path) -> None:
        """The page as it is printed on A4."""
        made = self.say("Page.printToPDF", paperWidth=8.27, paperHeight=11.69, printBackground=True)
        path.write_bytes(base64.b64decode(made["data"]))
