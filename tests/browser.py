"""A headless Chromium for tests of the pages that medsynth writes: what they do, log and request, and how accessible they are."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

CHROMIUM, CHROMEDRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
INSIDE = ("file:", "data:", "blob:", "about:", "chrome:")


@dataclass(frozen=True, kw_only=True)
class Browser:
    """A browser with its own profile; `driver` is Selenium's, files are saved into `downloads`."""

    driver: Any
    downloads: Path

    def open(self, page: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Show a file at a size in CSS pixels, which may be narrower than a window can be, in a light or dark scheme."""
        self.resize(width, height)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.driver.get(page.resolve().as_uri())

    def resize(self, width: int, height: int) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def console(self) -> list[str]:
        """Return what the console has said since the last call."""
        return [f"{entry['level']}: {entry['message']}" for entry in self.driver.get_log("browser")]

    def outside_requests(self) -> list[str]:
        """Return the addresses, other than files and data of the page itself, that were asked for since the last call."""
        found = []
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                found.append(message["params"]["request"]["url"])
            if message["method"] == "Network.webSocketCreated":
                found.append(message["params"]["url"])
        return [address for address in found if not address.startswith(INSIDE)]

    def overflows(self) -> bool:
        """Return whether the page is wider than the window, so that it scrolls sideways."""
        script = "return document.documentElement.scrollWidth > document.documentElement.clientWidth"
        return bool(self.driver.execute_script(script))

    def findings(self, *, impacts: tuple[str, ...] = ("serious", "critical")) -> list[str]:
        """Return what axe-core finds wrong with the page as it is now, by impact; skips the test without axe-core."""
        source = axe_file()
        if source is None:
            pytest.skip("need axe-core, got none; try npm install axe-core, or AXE_CORE=.../axe.min.js")
        self.driver.execute_cdp_cmd("Runtime.evaluate", {"expression": source.read_text(encoding="utf-8")})
        found = self.driver.execute_async_script(
            "const done = arguments[0]; axe.run(document).then((found) => done(found.violations), (error) => done(String(error)))"
        )
        assert isinstance(found, list), found
        return [
            f"{one['impact']}: {one['id']}: {node['html'][:120]}: {node['failureSummary']}"
            for one in found
            if one["impact"] in impacts
            for node in one["nodes"]
        ]


def axe_file() -> Path | None:
    """Return axe-core's one file, from AXE_CORE or `node_modules` at the project's root; None without."""
    places = [os.environ.get("AXE_CORE"), Path(__file__).parents[1] / "node_modules" / "axe-core" / "axe.min.js"]
    return next((Path(place) for place in places if place and Path(place).is_file()), None)


@contextmanager
def start_browser(folder: Path, *, flags: tuple[str, ...] = FLAGS) -> Iterator[Browser]:
    """Yield a browser whose profile and downloads lie below `folder`; skips the test where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="need selenium, got none; try the extra dev")
    for file in (CHROMIUM, CHROMEDRIVER):
        if not file.is_file():
            pytest.skip(f"need {file}, got none; try apt-get install chromium chromium-driver")
    downloads = folder / "downloads"
    downloads.mkdir()
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*flags, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    options.add_experimental_option(
        "prefs", {"download.default_directory": str(downloads), "download.prompt_for_download": False}
    )
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=str(CHROMEDRIVER)))
    try:
        driver.set_script_timeout(60)
        yield Browser(driver=driver, downloads=downloads)
    finally:
        driver.quit()
