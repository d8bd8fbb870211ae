"""A real headless browser, driven by the WebDriver protocol over plain HTTP: chromium and its driver, nothing else."""

import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
MISSING = "no chromium with its chromedriver on this machine"

_OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1200,900",
)


ENTER, TAB = "\ue007", "\ue004"


class Browser:
    """One session: `get` a page, `run` a script in it, `press` keys, read the console's `errors`."""

    def __init__(self, address: str, session: str):
        self._address = f"{address}/session/{session}"

    def get(self, url: str) -> None:
        _request(f"{self._address}/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        return _request(f"{self._address}/execute/sync", {"script": script, "args": list(arguments)})

    def press(self, *keys: str) -> None:
        """Type keys of the keyboard into whatever has the focus."""
        strokes = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        _request(f"{self._address}/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": strokes}]})

    def errors(self) -> list[str]:
        entries = _request(f"{self._address}/se/log", {"type": "browser"})
        return [e["message"] for e in entries if e["level"] in ("SEVERE", "WARNING")]


def _request(url: str, body: dict[str, Any] | None = None, method: str | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return json.load(response)["value"]
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{url}: {json.load(error)['value']['message']}") from error


@contextmanager
def open_browser() -> Iterator[Browser]:
    """A browser with a profile of its own, closed at the end."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, open(os.devnull, "w") as nowhere:
        log = os.path.join(profile, "driver.log")
        driver = subprocess.Popen(
            [str(DRIVER), "--port=0", f"--log-path={log}"], stdout=subprocess.PIPE, stderr=nowhere
        )
        try:
            assert driver.stdout is not None
            port = ""
            while not port:  # the driver names the port that it chose
                line = driver.stdout.readline().decode()
                assert line, "chromedriver ended before it named its port"
                if "on port " in line and "successfully" in line:
                    port = line.rsplit("port ", 1)[1].strip().rstrip(".")
            address = f"http://127.0.0.1:{port}"
            options = {"args": [*_OPTIONS, f"--user-data-dir={profile}/profile"], "binary": CHROMIUM}
            wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
            session = _request(f"{address}/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
            try:
                yield Browser(address, session)
            finally:
                _request(f"{address}/session/{session}", method="DELETE")
                time.sleep(0.1)
        finally:
            driver.terminate()
            driver.wait(timeout=20)
            if driver.stdout is not None:
                driver.stdout.close()
