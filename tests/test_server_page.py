"""The page at `/`: its files over HTTP, and what a person does with it in a real Chromium."""

from collections.abc import Iterator

import pytest
from browser import Browser, browser_or_skip
from server_process import ServerProcess, server_process


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser_or_skip() as browser:
        yield browser


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with server_process() as server:
        yield server


def test_the_page_loads_and_asks_nobody_else(chromium: Browser, server: ServerProcess) -> None:
    chromium.open(server.base)
    chromium.find("#question")
    assert chromium.console() == []
    assert all(url.startswith(server.base) for url in chromium.requested())
