"""Drives a real, headless Chromium over its DevTools protocol: JSON messages through two pipes, without a library."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tests.end_to_end.daemon import TIMEOUT, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_ARGUMENTS = [
    "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
    "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-extensions", "--mute-audio", "--hide-scrollbars", "--password-store=basic", "--no-proxy-server",
    "--lang=en-GB",
]  # fmt: skip
_KEYS = {"Enter": 13, "Escape": 27, "Tab": 9, " ": 32}


class Chromium:
    """The browser's process. It reads commands from its descriptor 3 and writes answers and events to 4.

    ``before`` is a command that starts it, such as ``unshare``.
    """

    def __init__(self, profile: Path, *arguments: str, before: tuple[str, ...] = ()) -> None:
        program = shutil.which("chromium") or shutil.which("chromium-browser")
        assert program, "the Debian package chromium is missing: contrib/dev/setup test installs it"
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        words = [*before, program, *_ARGUMENTS, f"--user-data-dir={profile}", *arguments, "about:blank"]
        self._log = profile.with_suffix(".log")
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                ["bash", "-c", f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', "chromium", *words],
                pass_fds=(theirs_in, theirs_out),
                env={**os.environ, "HOME": str(profile)},
                stderr=log,
                stdout=log,
                start_new_session=True,
            )
        os.close(theirs_in)
        os.close(theirs_out)
        self._number, self._rest = 0, b""
        self._answers: dict[int, dict[str, Any]] = {}
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **parameters: object) -> dict[str, Any]:
        """Send a command; return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        stop = time.monotonic() + TIMEOUT
        while self._number not in self._answers:
            self.read(stop - time.monotonic())
        answer = self._answers.pop(self._number)
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def read(self, seconds: float) -> None:
        """Take what the browser has sent; wait for it for at most so long."""
        ready, _, _ = select.select([self._in], [], [], max(0, seconds))
        assert ready or seconds > 0, "the browser does not answer"
        if not ready:
            return
        data = os.read(self._in, 2**20)
        assert data, f"the browser ended: {self._log.read_text()[-2000:]}"
        *messages, self._rest = (self._rest + data).split(b"\0")
        for message in map(json.loads, messages):
            if "id" in message:
                self._answers[message["id"]] = message
            else:
                self.events.append(message)

    def open(self) -> Page:
        """Open a page; each has cookies and storage of its own."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        return Page(self, self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])

    def close(self) -> None:
        os.close(self._out)
        os.close(self._in)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, 9)
        self.process.wait(TIMEOUT)


class Page:
    """A page. Elements are found as a user finds them: by their role and accessible name."""

    def __init__(self, browser: Chromium, session: str) -> None:
        self._browser, self._session = browser, session
        for domain in ("Page", "Runtime", "Log", "DOM", "Accessibility", "Network"):
            self.call(f"{domain}.enable")
        self.resize(1280, 900)

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        return self._browser.call(method, self._session, **parameters)

    def goto(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && document.querySelector('main h1') !== null")

    def js(self, expression: str) -> Any:
        """Return the value of an expression, or of its promise."""
        done = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, (expression, done["exceptionDetails"])
        return done["result"].get("value")

    def wait(self, expression: str) -> Any:
        """Wait until the expression is true; return it."""
        return until(lambda: self.js(expression), pause=0.05)

    def see(self, text: str) -> None:
        """Wait until the page shows the text."""
        try:
            self.wait(f"document.body.innerText.includes({json.dumps(text)})")
        except AssertionError:
            raise AssertionError(f"{text!r} is not shown, but: {self.text()}\n{self.complaints()}") from None

    def text(self) -> str:
        return self.js("document.body.innerText")

    # --- the accessibility tree ---

    def tree(self) -> list[dict[str, Any]]:
        """Return the nodes that assistive technology sees."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        return [node for node in nodes if not node["ignored"]]

    def names(self, role: str) -> list[str]:
        return [name_of(node) for node in self.tree() if role_of(node) == role]

    def find(self, role: str, name: str) -> str:
        """Wait for the element of that role and name; return its object id."""

        def found() -> int | None:
            fitting = [one for one in self.tree() if role_of(one) == role and name_of(one) == name]
            return fitting[0]["backendDOMNodeId"] if fitting else None

        try:
            node = until(found, pause=0.05)
        except AssertionError:
            raise AssertionError(f"no {role} {name!r} but {self.names(role)}: {self.text()}") from None
        return self.call("DOM.resolveNode", backendNodeId=node)["object"]["objectId"]

    def on(self, role: str, name: str, function: str) -> Any:
        """Call a JavaScript function with the element as ``this``; return what it returns."""
        target = self.find(role, name)
        done = self.call("Runtime.callFunctionOn", objectId=target, functionDeclaration=function, returnByValue=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    # --- what a user does ---

    def click(self, name: str, role: str = "button") -> None:
        """Click the element, which must be what is visible at its middle. Nothing can move in between."""
        self.on(
            role,
            name,
            "function() { this.scrollIntoView({block: 'center'}); const r = this.getBoundingClientRect();"
            " const hit = document.elementFromPoint(r.x + r.width / 2, r.y + r.height / 2);"
            " if (!this.contains(hit)) throw new Error(`covered by ${hit?.outerHTML}`); this.click(); }",
        )

    def fill(self, name: str, text: str, role: str = "textbox") -> None:
        self.on(role, name, "function() { this.focus(); this.select(); }")
        self.call("Input.insertText", text=text)

    def choose(self, name: str, value: str) -> None:
        self.on(
            "combobox",
            name,
            f"function() {{ this.value = {json.dumps(value)}; this.dispatchEvent(new Event('change')); }}",
        )

    def press(self, key: str, **more: object) -> None:
        text = {"Enter": "\r", " ": " "}.get(key)
        extra = {"text": text} if text else {}
        code = {"key": key, "windowsVirtualKeyCode": _KEYS[key], "code": "Space" if key == " " else key}
        self.call("Input.dispatchKeyEvent", type="keyDown", **code, **extra, **more)
        self.call("Input.dispatchKeyEvent", type="keyUp", **code, **more)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def focused(self) -> str:
        """Return the role and the name of the element that has the focus."""
        node = next(
            (
                one
                for one in reversed(self.tree())
                if any(p["name"] == "focused" and p["value"]["value"] for p in one.get("properties", []))
            ),
            None,
        )
        return f"{role_of(node)} {name_of(node)}" if node else ""

    # --- how it looks ---

    def resize(self, width: int, height: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def prefer(self, **features: str) -> None:
        """Set media features, such as ``color_scheme="dark"``."""
        wanted = [{"name": f"prefers-{name.replace('_', '-')}", "value": value} for name, value in features.items()]
        self.call("Emulation.setEmulatedMedia", features=wanted)

    def screenshot(self, file: Path) -> None:
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shot["data"]))

    # --- what went wrong ---

    def complaints(self) -> list[str]:
        """Return errors and warnings of scripts, of the security policy and of requests."""
        self.js("1")  # events that happened before have arrived after it
        found = []
        for event in self.events():
            given = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                found.append(f"exception: {given['exceptionDetails']}")
            elif event["method"] == "Runtime.consoleAPICalled" and given["type"] in {"error", "warning", "assert"}:
                found.append(f"console: {given['args']}")
            elif event["method"] == "Log.entryAdded" and given["entry"]["level"] in {"error", "warning"}:
                entry = given["entry"]
                found.append(f"{entry['source']}: {entry['text']} {entry.get('url', '')}")
        return found

    def events(self, method: str | None = None) -> list[dict[str, Any]]:
        """Return the events of this page so far, or those of one kind."""
        mine = [event for event in self._browser.events if event.get("sessionId") == self._session]
        return mine if method is None else [event for event in mine if event["method"] == method]

    def requested(self) -> list[str]:
        """Return the urls that the page asked for."""
        return [event["params"]["request"]["url"] for event in self.events("Network.requestWillBeSent")]


def role_of(node: dict[str, Any]) -> str:
    return node.get("role", {}).get("value", "")


def name_of(node: dict[str, Any]) -> str:
    return node.get("name", {}).get("value", "")


@contextmanager
def chromium(profile: Path, *arguments: str, before: tuple[str, ...] = ()) -> Iterator[Chromium]:
    browser = Chromium(profile, *arguments, before=before)
    try:
        yield browser
    finally:
        browser.close()
