"""A headless Chromium, as Debian packages it, and what the tests ask of a page."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
MISSING = "needs Chromium: apt-get install chromium chromium-driver" if CHROMIUM is None or DRIVER is None else None
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--force-color-profile=srgb",
)  # fmt: skip


class Browser:
    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, path: Path, width: int = 1280, height: int = 900, scheme: str = "light", hash: str = "") -> None:
        """Waits until the page and the curves of its first run are there. `scheme`: light or dark."""
        command = self.driver.execute_cdp_cmd
        command("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
        command(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        self.driver.get("about:blank")
        self.logs()
        self.driver.get(path.as_uri() + hash)

    def all(self, selector: str) -> list[Any]:
        return list(self.driver.find_elements("css selector", selector))

    def one(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def texts(self, selector: str) -> list[str]:
        """Of the elements that are shown, in the order of the document."""
        shown = "[...document.querySelectorAll(arguments[0])].filter(e => e.checkVisibility())"
        return list(self.run(f"return {shown}.map(e => e.textContent)", selector))

    def run(self, script: str, *values: Any) -> Any:
        return self.driver.execute_script(script, *values)

    def show(self, selector: str) -> Any:
        """Scrolls to the element and waits for what is drawn when it comes into view."""
        element = self.one(selector)
        self.run("arguments[0].scrollIntoView({block: 'center'})", element)
        self.driver.execute_async_script("const done = arguments[0]; setTimeout(done, 150)")
        return element

    def click(self, element: Any) -> None:
        """Clear of the header that stays at the top of the table."""
        self.run("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def logs(self) -> tuple[list[str], list[str]]:
        """Console messages, and the addresses of all requests, since the last call."""
        console = [entry["message"] for entry in self.driver.get_log("browser")]
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        return console, sent


@contextmanager
def chromium() -> Iterator[Browser]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        try:
            yield Browser(driver)
        finally:
            driver.quit()
