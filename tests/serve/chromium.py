"""Drives a headless Chromium by the DevTools protocol over two pipes: no driver, no WebSocket; no test in here."""
import base64
import json
import os
import select
import shutil
import signal
import time
from fcntl import F_DUPFD_CLOEXEC, fcntl

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
         "--disable-default-apps", "--mute-audio", "--hide-scrollbars", "--no-proxy-server", "--remote-debugging-pipe")


def find():
    """The path of a Chromium, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Chromium:
    """One page in a fresh profile; `language` is what the page sees as the user's."""

    def __init__(self, directory, language="en"):
        to_us, from_it = os.pipe()
        to_it, from_us = os.pipe()
        theirs = [fcntl(fd, F_DUPFD_CLOEXEC, 10) for fd in (to_it, from_it)]  # clear of 3 and 4
        arguments = [find(), *FLAGS, f"--user-data-dir={directory}", f"--lang={language}", "about:blank"]
        quiet = os.open(os.devnull, os.O_RDWR)
        descriptors = [(os.POSIX_SPAWN_DUP2, fd, wanted) for wanted, fd in enumerate((quiet, quiet, *theirs), 1)]
        self._pid = os.posix_spawn(arguments[0], arguments, os.environ | {"LANGUAGE": language}, setpgroup=0,
                                   file_actions=descriptors)
        for fd in (quiet, to_it, from_it, *theirs):
            os.close(fd)
        self._in, self._out, self._held, self._count = to_us, from_us, b"", 0
        self.events = []
        target = self._send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        self.send("Emulation.setLocaleOverride", locale=language)
        self.send("Emulation.setUserAgentOverride", userAgent="test", acceptLanguage=language)

    def close(self):
        try:
            os.killpg(self._pid, signal.SIGKILL)
        finally:
            os.waitpid(self._pid, 0)
            os.close(self._in)
            os.close(self._out)

    def send(self, method, **params):
        return self._send(method, self._session, **params)

    def open(self, url, width=1280, height=800, dark=False):
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.send("Emulation.setEmulatedMedia", features=[
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self.run("window.old = true")
        self.send("Page.navigate", url=url)
        self.wait("!window.old && document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, script):
        """The value of a JavaScript expression."""
        made = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, userGesture=True)
        assert "exceptionDetails" not in made, made["exceptionDetails"]
        return made["result"].get("value")

    def wait(self, script, seconds=30):
        """Until the expression is true."""
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"never true: {script}"
            time.sleep(0.03)
        return value

    def type(self, text):
        self.send("Input.insertText", text=text)

    def press(self, key, code=0, shift=False, text=""):
        more = dict(key=key, code=key, windowsVirtualKeyCode=code, modifiers=8 if shift else 0)
        self.send("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **more)
        self.send("Input.dispatchKeyEvent", type="keyUp", **more)

    def enter(self, shift=False):
        self.press("Enter", 13, shift, "\r")

    def screenshot(self, path):
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))

    def _send(self, method, session=None, **params):
        self._count += 1
        message = {"id": self._count, "method": method, "params": params} | ({"sessionId": session} if session else {})
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._count:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self.events.append(answer)

    def _receive(self):
        end = time.monotonic() + 60
        while b"\0" not in self._held:
            assert select.select([self._in], [], [], max(0, end - time.monotonic()))[0], "the browser does not answer"
            got = os.read(self._in, 1 << 20)
            assert got, "the browser has ended"
            self._held += got
        message, _, self._held = self._held.partition(b"\0")
        return json.loads(message)
