"""A real Chromium for tests and pictures: started headless, driven by selenium, quiet on the network.

`open_browser()` yields a `Browser`; `browser` in a test module is made of it once (see `browser_or_skip`).
Nothing leaves loopback: names resolve to nothing, and the tests look at what was asked for.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from selenium.common.exceptions import TimeoutException
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from bench.debian_packages import Unavailable, program_path

T = TypeVar("T")

ROOT = Path(__file__).parent.parent
AXE = ROOT / ".venv-clients" / "node" / "node_modules" / "axe-core" / "axe.min.js"
FLAGS = (
    "--headless=new",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-domain-reliability",
    "--disable-extensions",
    "--disable-features=OptimizationHints,MediaRouter,Translate",
    "--disable-sync",
    "--metrics-recording-only",
    "--no-default-browser-check",
    "--no-first-run",
    "--no-pings",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    # No name but this machine's leads anywhere.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
)
DESKTOP, PHONE = (1200, 800), (360, 740)
_AXE_RUN = """
const done = arguments[arguments.length - 1];
axe.run(document, {resultTypes: ['violations']}).then(
  found => done(found.violations
    .filter(each => ['serious', 'critical'].includes(each.impact))
    .map(each => each.id + ': ' + each.nodes.map(node => node.html + ' ' + node.failureSummary).join('; '))),
  error => done(['axe failed: ' + error]));
"""


class Browser:
    """One window. Selectors are CSS; waits fail after `seconds` with what the console said."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        self.driver.get(url)

    def find(self, selector: str) -> WebElement:
        """The first shown element, as soon as there is one."""

        def shown() -> WebElement | None:
            found = self.driver.find_elements(By.CSS_SELECTOR, selector)
            return next((each for each in found if each.is_displayed()), None)

        return self.wait(shown, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def click(self, selector: str) -> None:
        self.find(selector).click()

    def type(self, selector: str, text: str) -> None:
        self.find(selector).send_keys(text)

    def text(self, selector: str) -> str:
        """What is written there, folded parts too; of all that match, joined."""
        return str(
            self.run(
                "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent).join('')",
                selector,
            )
        )

    def run(self, script: str, *arguments: Any) -> Any:
        """The result of a script in the page."""
        return self.driver.execute_script(script, *arguments)

    def cdp(self, command: str, **parameters: Any) -> Any:
        """The result of a command of Chrome's own protocol."""
        return self.driver.execute_cdp_cmd(command, parameters)

    def wait(self, condition: Callable[[], T | None], what: str = "", seconds: float = 60) -> T:
        """Wait until it holds; returns what it gave."""

        def said(_: object) -> T | None:
            return condition()

        waiting = WebDriverWait(self.driver, seconds, poll_frequency=0.02)
        try:
            found = waiting.until(said)
        except TimeoutException:
            seen = f"{self.text('body')[-1500:]}\n{self.console()}"
            raise AssertionError(f"{what} did not come\n{seen}") from None
        assert found is not None
        return found

    def show(
        self, *, dark: bool = False, size: tuple[int, int] = DESKTOP, scale: float = 1
    ) -> None:
        """The system's colours, and a window of this size; narrow ones are phones."""
        width, height = size
        self.cdp(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}],
        )
        self.cdp(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=False,
        )

    def console(self) -> list[str]:
        """Warnings and errors since the last look: scripts', and of loading."""
        return [str(entry["message"]) for entry in self.driver.get_log("browser")]  # type: ignore[no-untyped-call]

    def requested(self) -> list[str]:
        """The address of every request since the last look."""
        entries = self.driver.get_log("performance")  # type: ignore[no-untyped-call]
        messages = [json.loads(entry["message"])["message"] for entry in entries]
        return [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]

    def asked_elsewhere(self) -> list[str]:
        """Those of them that went beyond this machine."""
        here = ("http://127.0.0.1:", "data:", "blob:", "about:", "chrome:")
        return [url for url in self.requested() if not url.startswith(here)]

    def axe(self) -> list[str]:
        """What axe-core finds serious or critical in the page as it stands."""
        self.run(AXE.read_text())
        found = self.driver.execute_async_script(_AXE_RUN)
        return [str(each) for each in found]


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Raises Unavailable where there is no Chromium and none can be installed."""
    driver_path = program_path("chromedriver", "chromium-driver")  # brings the browser, too
    binary = program_path("chromium", "chromium")
    options = ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS, *(["--no-sandbox"] if os.geteuid() == 0 else [])):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "WARNING", "performance": "ALL"})
    # A dialog that a page opens stays there for the test to see.
    options.set_capability("unhandledPromptBehavior", "ignore")
    driver = Chrome(options, ChromeService(driver_path))
    try:
        driver.set_page_load_timeout(30)
        driver.set_script_timeout(30)
        yield Browser(driver)
    finally:
        driver.quit()


@contextmanager
def browser_or_skip() -> Iterator[Browser]:
    """A browser; where there can be none the tests are skipped, which in CI is a failure."""
    try:
        with open_browser() as browser:
            yield browser
    except Unavailable as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
