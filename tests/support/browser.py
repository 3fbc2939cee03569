"""A headless Chromium, driven by its own protocol over two pipes: standard library only."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium")
#: What it needs as root, and what keeps it from asking the Internet.
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --no-proxy-server"
    " --disable-background-networking --disable-component-update --disable-sync"
    " --disable-dev-shm-usage --hide-scrollbars --remote-debugging-pipe"
)
#: Seconds for an answer, and for something to show on a page: the machine may be busy.
ANSWER, SHOWS = 120.0, 120.0


class Browser:
    """One page of it."""

    def __init__(self, to: int, back: int) -> None:
        self._to, self._back = to, back
        self._rest = b""
        self._count = 0
        #: What the page complained of: errors of scripts, what its policy refused.
        self.complaints: list[str] = []
        target = self.send("Target.createTarget", {"url": "about:blank"}, "")["targetId"]
        attach = {"targetId": target, "flatten": True}
        self._session = self.send("Target.attachToTarget", attach, "")["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, given: Any = None, session: str | None = None) -> dict[str, Any]:
        """Call a method; its result."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": given or {}}
        if session is None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + ANSWER
        while True:
            found = self._next(end)
            if found.get("id") == self._count:
                assert "error" not in found, found
                result: dict[str, Any] = found["result"]
                return result
            self._hear(found)

    def _next(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._back], [], [], max(0.0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            chunk = os.read(self._back, 1 << 20)
            assert chunk, "the browser ended"
            self._rest += chunk
        text, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(text)
        return found

    def _hear(self, event: dict[str, Any]) -> None:
        if event.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(str(event["params"]["exceptionDetails"]))
        elif event.get("method") == "Log.entryAdded":
            entry = event["params"]["entry"]
            if entry["source"] in ("security", "javascript"):
                self.complaints.append(entry["text"])

    def open(self, url: str) -> None:
        self.send("Page.navigate", {"url": url})

    def value(self, expression: str) -> Any:
        """What an expression is there."""
        result = self.send("Runtime.evaluate", {"expression": expression, "returnByValue": True})
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def text(self, part: str = "body") -> str:
        """What a reader sees of an element; empty while it is not there."""
        return str(self.value(f"document.querySelector({json.dumps(part)})?.innerText ?? ''"))

    def shows(self, words: str, part: str = "body") -> str:
        """Wait until an element shows these words; all that it shows then."""
        end = time.monotonic() + SHOWS
        while words not in (seen := self.text(part)):
            assert time.monotonic() < end, f"{words!r} never came in {part}: {seen}"
            time.sleep(0.2)
        return seen

    def looks(self, width: int, height: int, *, dark: bool = False) -> None:
        """Take this size, and the reader's choice of colours."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.send("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", {"features": [scheme]})

    def picture(self, path: Path) -> None:
        """A picture of the whole page."""
        found = self.send("Page.captureScreenshot", {"captureBeyondViewport": True})
        path.write_bytes(base64.b64decode(found["data"]))


@contextmanager
def browser(home: Path) -> Iterator[Browser]:
    """A browser for the body."""
    assert CHROMIUM, "tools/setup.sh --tests installs chromium"
    there, to = os.pipe()
    back, here = os.pipe()
    # The browser takes commands on its descriptor 3, and answers on 4. Not sh: dash knows nine.
    start = ["bash", "-c", f'exec "$0" "$@" 3<&{there} 4>&{here}', CHROMIUM]
    process = subprocess.Popen(
        [*start, *FLAGS.split(), f"--user-data-dir={home}"],
        pass_fds=(there, here), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(there)
    os.close(here)
    try:
        yield Browser(to, back)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(to)
        os.close(back)
