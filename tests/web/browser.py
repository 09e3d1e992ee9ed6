"""A headless Chromium that is told what to do through a pipe, in its own protocol (CDP), without a library for that."""

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

PROGRAM = shutil.which("chromium")
_SECONDS = 60.0


class Browser:
    """One page in it. `complaints` is what the console and the log have said that is no mere information."""

    def __init__(self, to: int, came: int) -> None:
        self._to, self._from = to, came
        self._number = 0
        self._buffer = b""
        self._session: str | None = None
        self.complaints: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
            self._call(f"{domain}.enable")

    def show(self, url: str, *, width: int, dark: bool, height: int = 900, token: str | None = None) -> None:
        """Load a page at a width of so many pixels, as somebody sees it who likes light or dark."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        phone = width < 600
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        if token is not None:
            credentials = base64.b64encode(f"x:{token}".encode()).decode()
            self._call("Network.setExtraHTTPHeaders", headers={"Authorization": f"Basic {credentials}"})
        self._call("Page.navigate", url=url)

    def leave(self) -> None:
        """Show nothing."""
        self._call("Page.navigate", url="about:blank")

    def evaluate(self, expression: str) -> Any:  # noqa: ANN401
        """Return the value of an expression of JavaScript; a promise is waited for."""
        told = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Wait until an expression is true, looked at with each frame that is drawn."""
        deadline = time.monotonic() + _SECONDS
        while not self.evaluate(f"new Promise((done) => setTimeout(() => done(Boolean({condition})), 50))"):
            assert time.monotonic() < deadline, f"{condition} has not become true: {self.text()}"

    def text(self) -> str:
        """What is to be read."""
        return str(self.evaluate("document.body.innerText"))

    def accessible_names(self, role: str) -> list[str]:
        """What a screen reader calls the things of a role."""
        nodes = self._call("Accessibility.getFullAXTree")["nodes"]
        return [
            node.get("name", {}).get("value", "")
            for node in nodes
            if not node["ignored"] and node["role"]["value"] == role
        ]

    def press(self, key: str, code: int) -> None:
        """Press a key and let it go."""
        text = {"Enter": "\r"}.get(key)
        more = {} if text is None else {"text": text}
        self._call("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **more)
        self._call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def picture(self, path: Path, *, whole: bool = True) -> None:
        """Write what is to be seen as PNG."""
        told = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(told["data"]))

    def _call(self, method: str, **parameters: object) -> dict[str, Any]:
        self._number += 1
        number = self._number
        message: dict[str, object] = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            told = self._receive()
            if told.get("id") == number:
                assert "error" not in told, f"{method}: {told['error']}"
                result: dict[str, Any] = told["result"]
                return result
            self._note(told)

    def _note(self, told: dict[str, Any]) -> None:
        match told.get("method"):
            case "Log.entryAdded":
                self.complaints.append(json.dumps(told["params"]["entry"]))
            case "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(told["params"]["exceptionDetails"]))
            case "Runtime.consoleAPICalled":
                self.complaints.append(json.dumps(told["params"]["args"]))

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from], [], [], _SECONDS)
            assert ready, "the browser does not answer"
            data = os.read(self._from, 1 << 20)
            assert data, "the browser has ended"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\0")
        value: dict[str, Any] = json.loads(line)
        return value


@contextmanager
def running_browser(directory: Path) -> Iterator[Browser]:
    """Run one with its files in `directory`."""
    assert PROGRAM is not None
    its_input, to = os.pipe()
    came, its_output = os.pipe()
    # It reads from descriptor 3 and writes to 4. A shell puts them there, whatever numbers they have here.
    arguments = [
        *(PROGRAM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *("--disable-background-networking", "--disable-component-update", "--no-first-run", "--hide-scrollbars"),
        *("--remote-debugging-pipe", f"--user-data-dir={directory}"),
    ]
    moved = ["/bin/bash", "-c", f'exec 3<&{its_input} 4>&{its_output}; exec "$@"', "bash", *arguments]
    process = subprocess.Popen(
        moved,
        pass_fds=(its_input, its_output),
        env={**os.environ, "HOME": str(directory), "TMPDIR": str(directory)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(its_input)
    os.close(its_output)
    try:
        yield Browser(to, came)
    finally:
        os.killpg(process.pid, 9)
        process.wait()
        os.close(to)
        os.close(came)
