"""Opens a page in headless Chromium, through its debugging pipe: no driver and no further package."""

import base64
import fcntl
import json
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

from benchmarks.pictures import find_chromium

_TOLD = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded", "Network.requestWillBeSent")
_REACHED = "a[href], select, summary, [tabindex='0']"
_FOCUSABLE = f'[...document.querySelectorAll("{_REACHED}")].filter(each => each.checkVisibility())'

NO_CHROMIUM = (
    "no Chromium: none of chromium, chromium-browser and google-chrome is installed (apt-get install chromium)"
)


class Tab:
    """One page."""

    def __init__(self, browser, session):
        self._browser, self._session = browser, session

    def call(self, method, **parameters):
        return self._browser.call(method, parameters, self._session)

    def evaluate(self, expression):
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def open(self, page: Path, width=360, theme="light"):
        """Open a file; returns what the console, the log and the network heard of."""
        self._browser.heard.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=True)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
        self.call("Page.navigate", url=page.resolve().as_uri())
        loaded = "new Promise(done => document.readyState === 'complete' ? done() : addEventListener('load', done))"
        self.evaluate(loaded)
        return self._browser.heard

    def press_tab(self):
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)

    def focusable(self):
        """Count what the keyboard reaches."""
        return self.evaluate(f"{_FOCUSABLE}.length")

    def focused(self):
        """Number of what has the focus, in the order of the page."""
        return self.evaluate(f"{_FOCUSABLE}.indexOf(document.activeElement)")

    def missing_images(self):
        return self.evaluate("[...document.images].filter(each => !each.complete || !each.naturalWidth).length")

    def figures_outside(self):
        """Figures that are too small to see, or reach beyond the window."""
        return self.evaluate("""[...document.querySelectorAll('svg.figure')].filter(figure => {
            const box = figure.getBoundingClientRect();
            return box.width < 100 || box.height < 40 || box.right > innerWidth;
        }).map(figure => figure.id)""")

    def texts_outside(self):
        """Texts that reach beyond their figure."""
        return self.evaluate("""[...document.querySelectorAll('svg.figure text')].filter(text => {
            const box = text.getBoundingClientRect(), all = text.ownerSVGElement.getBoundingClientRect();
            const across = box.left < all.left - 2 || box.right > all.right + 2;
            return across || box.top < all.top - 2 || box.bottom > all.bottom + 2;
        }).map(text => text.ownerSVGElement.id + ': ' + text.textContent)""")

    def picture(self, file: Path):
        """Save what the whole page looks like."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        file.write_bytes(base64.b64decode(found["data"]))


class _Browser:
    def __init__(self, write, read):
        self._write, self._read = write, read
        self._kept = b""
        self._number = 0
        self.heard = []

    def call(self, method, parameters=None, session=None):
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters or {}}
        if session:
            message["sessionId"] = session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            if answer.get("method") in _TOLD:
                self.heard.append(answer)

    def _next(self):
        while b"\0" not in self._kept:
            part = os.read(self._read, 1 << 16)
            assert part, "Chromium ended"
            self._kept += part
        message, self._kept = self._kept.split(b"\0", 1)
        return json.loads(message)


_START = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Chromium reads commands from its descriptor 3 and answers on 4."""


def _pipe():
    """Make a pipe whose descriptors are not those that Chromium uses."""
    ends = os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 20) for end in ends]
    for end in ends:
        os.close(end)
    return high


@contextmanager
def open_tab():
    """Start Chromium with one empty tab; ends both."""
    (theirs_in, ours_out), (ours_in, theirs_out) = _pipe(), _pipe()
    with tempfile.TemporaryDirectory(prefix="sieve-edge-chromium-", ignore_cleanup_errors=True) as home:
        options = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")
        chromium = [find_chromium(), *options, "--remote-debugging-pipe", f"--user-data-dir={home}", "about:blank"]
        process = subprocess.Popen(
            [sys.executable, "-c", _START, str(theirs_in), str(theirs_out), *chromium],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(theirs_in, theirs_out),
        )
        os.close(theirs_in)
        os.close(theirs_out)
        try:
            browser = _Browser(ours_out, ours_in)
            target = browser.call("Target.createTarget", {"url": "about:blank"})["targetId"]
            session = browser.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
            tab = Tab(browser, session)
            for domain in ("Page", "Runtime", "Log", "Network"):
                tab.call(f"{domain}.enable")
            yield tab
        finally:
            process.kill()
            process.wait()
            os.close(ours_in)
            os.close(ours_out)
