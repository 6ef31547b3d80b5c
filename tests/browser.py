"""A real browser for tests, over the pipe of Chromium's DevTools: what a page shows, once it is there."""

import base64
import contextlib
import io
import itertools
import json
import os
import select
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.float32]

PATIENCE = 60.0
"""Seconds that a browser on a busy machine may take for a step; it is never waited for longer than it takes."""

_FLAGS = (
    "--headless --no-sandbox --disable-gpu --hide-scrollbars --disable-background-networking --no-first-run "
    # In one process a frame is painted with its page.
    "--disable-features=IsolateSandboxedIframes,IsolateOrigins,site-per-process --disable-site-isolation-trials"
)
_PAINTED = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))"


class Browser:
    """A browser, and the pipe that it is spoken to by: one JSON message a null byte."""

    def __init__(self, process: "subprocess.Popen[bytes]", *, to: int, of: int) -> None:
        self._process, self._to, self._of = process, to, of
        self._numbers, self._rest = itertools.count(1), b""

    def call(self, method: str, session: str = "", **given: Any) -> dict[str, Any]:
        """Return what a method of the DevTools protocol answers; RuntimeError with its reason where it refuses."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": given} | ({"sessionId": session} if session else {})
        os.write(self._to, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + PATIENCE
        while (answer := self._next(until, method)).get("id") != number:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        result: dict[str, Any] = answer["result"]
        return result

    def _next(self, until: float, method: str) -> dict[str, Any]:
        while b"\0" not in self._rest:
            if not select.select([self._of], [], [], max(until - time.monotonic(), 0.0))[0]:
                raise TimeoutError(f"the browser did not answer {method} within {PATIENCE:g} s")
            if not (read := os.read(self._of, 1 << 20)):
                raise RuntimeError(f"the browser ended with code {self._process.wait()} before it answered {method}")
            self._rest += read
        message, self._rest = self._rest.split(b"\0", 1)
        found: dict[str, Any] = json.loads(message)
        return found

    @contextlib.contextmanager
    def page(self, address: str | Path, *, width: int, height: int = 900) -> Iterator["Page"]:
        """Open a file or an address in a window of a size, until all of it is loaded."""
        url = address.as_uri() if isinstance(address, Path) else address
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        page.call("Emulation.setDeviceMetricsOverride", **size)
        page.call("Page.navigate", url=url)
        page.wait(f"location.href !== 'about:blank' && document.readyState === 'complete' && {_PAINTED}")
        try:
            yield page
        finally:
            self.call("Target.closeTarget", targetId=target)


@dataclass(frozen=True)
class Page:
    """A page that is open."""

    browser: Browser
    session: str

    def call(self, method: str, **given: Any) -> dict[str, Any]:
        """As `Browser.call`, to this page."""
        return self.browser.call(method, self.session, **given)

    def ask(self, script: str, *, frame: str = "") -> Any:
        """Return the value of an expression, in the page or in one of its frames (even a sandboxed one)."""
        where = {}
        if frame:
            made = self.call("Page.createIsolatedWorld", frameId=frame)
            where["contextId"] = made["executionContextId"]
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, **where)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait(self, script: str, *, frame: str = "") -> None:
        """Wait until an expression is true; a page that is just being replaced is asked again."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            with contextlib.suppress(RuntimeError):
                if self.ask(script, frame=frame):
                    return
            time.sleep(0.05)
        raise TimeoutError(f"not true within {PATIENCE:g} s: {script}")

    def frame(self) -> str:
        """Return the first frame within the page, once it is loaded and painted."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            tree = self.call("Page.getFrameTree")["frameTree"]
            for child in tree.get("childFrames", []):
                name: str = child["frame"]["id"]
                self.wait(f"document.readyState === 'complete' && {_PAINTED}", frame=name)
                return name
            time.sleep(0.05)
        raise TimeoutError(f"the page has no frame after {PATIENCE:g} s")

    def picture(self) -> Pixels:
        """Return what the window shows (height, width, 3)."""
        shot = self.call("Page.captureScreenshot", format="png")["data"]
        picture: Pixels = matplotlib.image.imread(io.BytesIO(base64.b64decode(shot)))[..., :3]
        return picture


@contextlib.contextmanager
def started(chromium: str, folder: Path) -> Iterator[Browser]:
    """Run a browser that keeps its profile in a folder, and end it."""
    reads, tells = os.pipe()
    hears, says = os.pipe()
    # The browser reads from its descriptor 3 and writes to its 4.
    words = ["bash", "-c", f'exec "$0" "$@" 3<&{reads} 4>&{says}', chromium, *_FLAGS.split()]
    words += ["--remote-debugging-pipe", f"--user-data-dir={folder / 'profile'}"]
    with subprocess.Popen(words, pass_fds=(reads, says), stderr=subprocess.DEVNULL) as process:
        os.close(reads)
        os.close(says)
        browser = Browser(process, to=tells, of=hears)
        try:
            yield browser
        finally:
            with contextlib.suppress(OSError, RuntimeError, TimeoutError):
                browser.call("Browser.close")
            os.close(tells)
            os.close(hears)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE)
            process.kill()
