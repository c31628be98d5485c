"""A headless Chromium that tests drive by the DevTools protocol: open, click, type, read, look.

with Browser() as browser:
    browser.open(path.as_uri())
    browser.click("#on")
    browser.value("document.body.dataset.chunk")
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--mute-audio"),
    *("--hide-scrollbars", "--remote-debugging-port=0", "--remote-allow-origins=*"),
    "--disable-features=IsolateSandboxedIframes",  # frames in the page's own process can be read
)


class Browser:
    """One tab. Every error that a page throws is kept in `errors`, every request in `requests`."""

    def __init__(self, width: int = 1280, height: int = 1000, dark: bool = False) -> None:
        self.size, self.dark, self.number = (width, height), dark, 0
        self.errors: list[str] = []
        self.requests: list[str] = []

    def __enter__(self) -> Browser:
        import websocket

        self.folder = Path(tempfile.mkdtemp(prefix="browser_"))
        self.process = subprocess.Popen(
            [CHROMIUM, *FLAGS, f"--user-data-dir={self.folder}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        port = self.folder / "DevToolsActivePort"
        wait(lambda: port.exists() and "\n" in port.read_text(), "Chromium to start")
        where = f"http://127.0.0.1:{port.read_text().splitlines()[0]}/json"
        (tab,) = [t for t in json.load(urllib.request.urlopen(where)) if t["type"] == "page"]
        self.socket = websocket.create_connection(tab["webSocketDebuggerUrl"], timeout=60)
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")
        scheme = {"name": "prefers-color-scheme", "value": "dark" if self.dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        size = {"width": self.size[0], "height": self.size[1]}
        self.send("Emulation.setDeviceMetricsOverride", **size, deviceScaleFactor=1, mobile=False)
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of one command of the protocol; events that come before it are kept."""
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": params}))
        while True:
            message = json.loads(self.socket.recv())
            self._keep(message)
            if message.get("id") == self.number:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]

    def _keep(self, message: dict[str, Any]) -> None:
        match message.get("method"), message.get("params", {}):
            case "Runtime.exceptionThrown", {"exceptionDetails": found}:
                self.errors.append(str(found.get("exception", found).get("description", found)))
            case "Log.entryAdded", {"entry": {"level": "error", "text": text}}:
                self.errors.append(text)
            case "Network.requestWillBeSent", {"request": {"url": url}}:
                self.requests.append(url)

    def open(self, url: str, ready: str = "true") -> None:
        """Goes to an address and waits until it is loaded and `ready` is true there."""
        self.send("Page.navigate", url=url)
        done = (
            f"location.href !== 'about:blank' && document.readyState === 'complete' && !!({ready})"
        )
        wait(lambda: self.value(done), f"{url[:80]}: {ready}")

    def value(self, code: str, context: int | None = None) -> Any:
        """What an expression gives in the page, as JSON."""
        where = {} if context is None else {"contextId": context}
        result = self.send("Runtime.evaluate", expression=code, returnByValue=True, **where)
        assert "exceptionDetails" not in result, f"{code}: {result['exceptionDetails']}"
        return result["result"].get("value")

    def texts(self, selector: str) -> list[str]:
        """The text of every element, as it stands in the document."""
        every = f"[...document.querySelectorAll({json.dumps(selector)})]"
        return self.value(f"{every}.map((node) => node.textContent)")

    def click(self, selector: str, number: int = 0) -> None:
        """A real click in the middle of an element, scrolled to first."""
        found = f"document.querySelectorAll({json.dumps(selector)})[{number}]"
        box = self.value(
            f"(() => {{ const node = {found}; node.scrollIntoView({{block: 'center'}}); "
            "const b = node.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]"
            " })()"
        )
        self.click_at(*box)

    def frame(self, ready: str) -> int:
        """The context of the first frame, for `value`, once `ready` is true."""

        def context() -> int | None:
            tree = self.send("Page.getFrameTree")["frameTree"]
            inner = [
                c["frame"] for c in tree.get("childFrames", ()) if "srcdoc" in c["frame"]["url"]
            ]
            for frame in inner:
                world = self.send("Page.createIsolatedWorld", frameId=frame["id"])
                if self.value(f"!!document.body && ({ready})", world["executionContextId"]):
                    return world["executionContextId"]
            return None

        return wait(context, "the frame")

    def click_in_frame(self, selector: str, context: int) -> None:
        """A real click in the middle of an element of a frame."""
        rect = "const b = node.getBoundingClientRect(); return [b.x, b.y, b.width, b.height]"
        outer = "document.querySelector(\"iframe[title='explorer']\")"
        scroll = "node.scrollIntoView({block: 'start'})"
        x, y, *_ = self.value(f"(() => {{ const node = {outer}; {scroll}; {rect} }})()")
        inner = f"document.querySelector({json.dumps(selector)})"
        left, top, width, height = self.value(
            f"(() => {{ const node = {inner}; {rect} }})()", context
        )
        self.click_at(x + left + width / 2, y + top + height / 2)

    def click_at(self, x: float, y: float) -> None:
        """A real click at a place of the window."""
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str) -> None:
        """A key, pressed and let go."""
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key)

    def choose(self, selector: str, value: str | float) -> None:
        """A value for a slider or a list, with the events that a hand would cause."""
        self.value(
            f"(() => {{ const node = document.querySelector({json.dumps(selector)}); "
            f"node.value = {json.dumps(str(value))}; "
            "for (const kind of ['input', 'change']) node.dispatchEvent(new Event(kind)); })()"
        )

    def screenshot(self, path: Path, height: int | None = None) -> None:
        """What is seen, or the top of the page down to `height` pixels, as PNG."""
        area = {"x": 0, "y": 0, "width": self.size[0], "height": height or self.size[1], "scale": 1}
        shot = self.send("Page.captureScreenshot", clip=area, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))


def wait(ready: Any, what: str, seconds: float = 60) -> Any:
    """What `ready` returns once that is true."""
    end = time.monotonic() + seconds
    while not (found := ready()):
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.05)
    return found
