"""Headless Chromium, driven over its DevTools pipe, and what every report must show in it."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from probes.reporting.records import Report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


class Browser:
    """One page in headless Chromium, driven over its DevTools pipe."""

    def __init__(self, profile: Path) -> None:
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()

        # Chromium reads commands from descriptor 3 and answers on 4.
        def connect() -> None:
            low, high = os.dup(commands), os.dup(answers)
            os.dup2(low, 3)
            os.dup2(high, 4)

        self._process = subprocess.Popen(
            [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(3, 4, commands, answers),
            preexec_fn=connect,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        self._buffer = b""
        self._number = 0
        self._session = ""
        self.events: list[dict[str, Any]] = []
        pages = [
            target for target in self.call("Target.getTargets")["targetInfos"] if target["type"] == "page"
        ]
        target = (
            pages[0]["targetId"] if pages else self.call("Target.createTarget", url="about:blank")["targetId"]
        )
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result; events met on the way are kept."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            part = os.read(self._answers, 1 << 16)
            assert part, "Chromium went away"
            self._buffer += part
        message, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(message)

    def open(self, page: Path, *, width: int = 1200, scheme: str = "light", script: bool = True) -> None:
        """Open a file at a window width, colour scheme, and with or without its own JavaScript."""
        self.events.clear()
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.call("Emulation.setScriptExecutionDisabled", value=not script)
        self.call("Page.navigate", url=page.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())

    def ask(self, expression: str) -> Any:
        """Return the value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def picture(self, file: Path) -> None:
        """Save the whole page as PNG."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        file.write_bytes(base64.b64decode(data))

    def requests(self) -> list[str]:
        """Return the addresses the open page asked for."""
        return [
            event["params"]["request"]["url"]
            for event in self.events
            if event.get("method") == "Network.requestWillBeSent"
        ]

    def close(self) -> None:
        """End the browser and wait for it."""
        os.close(self._commands)
        os.close(self._answers)
        self._process.terminate()
        self._process.wait(30)


def check_everything_is_shown(browser: Browser, page: Path, expected: Report) -> None:
    """Open ``page`` without script and find every picture, table and gap of ``expected`` in it."""
    browser.open(page, script=False)
    assert browser.requests() == [page.resolve().as_uri()]
    assert not [event for event in browser.events if event.get("method") == "Log.entryAdded"]
    boxes = browser.ask(
        "[...document.querySelectorAll('.panel svg')].map(s => [s.getBoundingClientRect().width, "
        "s.querySelectorAll('path, use').length, s.querySelector('title').textContent.length, "
        "s.querySelector('desc').textContent.length])"
    )
    assert len(boxes) == sum(len(figure.panels) for figure in expected.figures)
    assert all(width > 200 and marks > 5 and title and text > 20 for width, marks, title, text in boxes)
    titles = browser.ask("[...document.querySelectorAll('main .scroll')].map(e => e.ariaLabel)")
    assert sorted(titles) == sorted(
        table.title
        for table in [
            *expected.tables,
            *(values for figure in expected.figures for values in figure.values()),
        ]
    )
    gaps = browser.ask("[...document.querySelectorAll('.gap code')].map(e => e.textContent)")
    assert gaps == [gap.command for gap in expected.gaps]
    assert browser.ask("[...document.querySelectorAll('tbody tr')].every(r => r.textContent.trim())")
