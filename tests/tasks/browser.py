"""A headless Chromium driven over its own protocol."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = "chromium"
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--remote-debugging-port=0", "--window-size=1600,1000",
)  # fmt: skip
_START_S = 60.0


class RefusedError(Exception):
    """A command came to nothing, because the page was just reloading perhaps."""


class Page:
    """One tab."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the DevTools protocol."""
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": params})
        while True:
            answer = await self._socket.receive_json(timeout=_START_S)
            if answer.get("id") == number:
                if "error" in answer:
                    raise RefusedError(answer["error"])
                result: dict[str, Any] = answer["result"]
                return result

    async def run(self, script: str) -> Any:
        """The value of a script; a promise is awaited."""
        told = await self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    async def open(self, url: str) -> None:
        """Go to a page."""
        await self.call("Page.navigate", url=url)

    async def wait_for(self, *texts: str, without: str = "", timeout_s: float = 60.0) -> str:
        """Wait until all texts are visible and one is not; returns everything that is."""
        seen = ""
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    with contextlib.suppress(RefusedError):
                        seen = await self.run("document.body ? document.body.innerText : ''") or ""
                    if all(text in seen for text in texts) and not (without and without in seen):
                        return seen
                    await asyncio.sleep(0.25)
        except TimeoutError:
            missing = [text for text in texts if text not in seen]
            raise AssertionError(f"not on the page: {missing}; it shows:\n{seen}") from None

    async def type_into(self, selector: str, text: str) -> None:
        """Type into an input field."""
        await self.run(f"document.querySelector({json.dumps(selector)}).focus()")
        await self.call("Input.insertText", text=text)

    async def press(self, label: str) -> None:
        """Click the button of a label."""
        await self.run(
            "[...document.querySelectorAll('button')]"
            f".find(button => button.innerText.toLowerCase() === {json.dumps(label)}).click()"
        )

    async def screenshot(self, path: Path) -> None:
        """Keep a picture of the page."""
        shot = await self.call("Page.captureScreenshot", format="png")
        await asyncio.to_thread(path.parent.mkdir, parents=True, exist_ok=True)
        await asyncio.to_thread(path.write_bytes, base64.b64decode(shot["data"]))


@asynccontextmanager
async def browser(profile: Path) -> AsyncIterator[Page]:
    """A browser with an empty profile and one tab; ended with the block."""
    process = subprocess.Popen(  # noqa: ASYNC220 - started at once
        [CHROMIUM, *_FLAGS, f"--user-data-dir={profile}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        port = await _port(profile / "DevToolsActivePort")
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json") as answer:
                tabs = await answer.json(content_type=None)
            (url,) = [tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page"]
            async with session.ws_connect(url, max_msg_size=0) as socket:
                yield Page(socket)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def _port(told_in: Path) -> int:
    async with asyncio.timeout(_START_S):
        while True:
            if told_in.exists() and (lines := told_in.read_text().splitlines()):  # noqa: ASYNC240
                return int(lines[0])
            await asyncio.sleep(0.1)
