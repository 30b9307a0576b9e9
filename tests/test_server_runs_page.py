"""`/runs` in a real Chromium: what an operator sees of runs as they go, and how one ends them."""

import json
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from browser import DESKTOP, PHONE, Browser, browser_or_skip
from page_upstream import PageUpstream, page_upstream, steps
from selenium.webdriver.common.keys import Keys
from server_process import ServerProcess, server_process, wait_for
from test_server_api_keys import keys_file
from test_server_page import held

CHIEF, ALICE = "chief-key", "alice-key"
HOSTILE = '"><img src=x onerror=alert(1)><script>alert(2)</script>\u202eevil'
MODEL = "<img src=x onerror=alert(3)>"
SECRET = "nobody else may read this"
ENTER_KEY = "#key-form button.primary"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser_or_skip() as browser:
        yield browser


@pytest.fixture(scope="module")
def upstream() -> Iterator[PageUpstream]:
    with page_upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def server(
    upstream: PageUpstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    keys = keys_file(
        tmp_path_factory.mktemp("keys"),
        {"name": "chief", "key": CHIEF, "operator": True},
        {"name": "alice", "key": ALICE},
    )
    with server_process(
        UPSTREAM_OPENAI_BASE=upstream.base,
        AGENT_MODEL=MODEL,
        AGENTS="able=runner_agents:able,doubler=runner_agents:doubler",
        API_KEYS_FILE=keys,
        HEARTBEAT_SECONDS="0.2",
    ) as server:
        yield server


@pytest.fixture
def page(chromium: Browser, server: ServerProcess, upstream: PageUpstream) -> Iterator[Browser]:
    """The page with an operator's key; at the end nothing was complained of and nobody else asked."""
    upstream.says.clear()
    upstream.left.clear()
    fresh(chromium, server.base)
    chromium.run("sessionStorage.setItem('smolgate-key/', arguments[0])", CHIEF)
    chromium.open(server.base + "/runs")
    chromium.find("#feed.live")
    yield chromium
    assert chromium.console() == []
    assert chromium.asked_elsewhere() == []


def fresh(browser: Browser, base: str) -> None:
    """A browser that was never here, on the page."""
    browser.open("about:blank")
    browser.cdp("Storage.clearDataForOrigin", origin=base, storageTypes="all")
    browser.show()
    browser.open(base + "/runs")
    browser.run("sessionStorage.clear()")
    browser.open(base + "/runs")
    browser.find("#key-dialog[open], #feed.live")
    browser.console()


@contextmanager
def asked(
    server: ServerProcess, model: str, text: str, **fields: Any
) -> Iterator[threading.Thread]:
    """A client that asks an agent and reads to the end."""
    body = {
        "model": model,
        "stream": True,
        "messages": [{"role": "user", "content": text}],
        **fields,
    }
    request = urllib.request.Request(
        server.base + "/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {ALICE}", "Content-Type": "application/json"},
    )

    def read() -> None:
        with urllib.request.urlopen(request, timeout=60) as response:
            response.read()

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield thread
    finally:
        thread.join(60)


def test_it_asks_for_a_key_and_shows_nothing_to_one_that_may_not(
    chromium: Browser, server: ServerProcess
) -> None:
    fresh(chromium, server.base)
    chromium.requested()
    chromium.open(server.base + "/runs")
    for key, said in (("", "asks for"), ("wrong", "does not take"), (ALICE, "operator's key")):
        if key:
            chromium.type("#key", key)
            chromium.click(ENTER_KEY)
        chromium.wait(lambda said=said: said in chromium.text("#notices"), said)  # type: ignore[misc]
        chromium.find("#key-dialog[open]")
        assert chromium.text("#feed") == "No access"
        assert not chromium.all("#runs tbody tr")
    assert chromium.axe() == []
    chromium.type("#key", CHIEF)
    chromium.click(ENTER_KEY)
    chromium.find("#feed.live")
    assert chromium.text("#notices") == ""
    chromium.open(server.base + "/runs")  # it is kept with the tab
    chromium.find("#feed.live")
    urls = chromium.requested()
    assert urls
    assert not any(key in url for url in urls for key in (CHIEF, ALICE, "wrong"))
    assert all("401" in line or "403" in line for line in chromium.console())


def test_a_run_is_seen_as_it_goes_and_its_timeline_at_the_end(
    page: Browser, server: ServerProcess, upstream: PageUpstream, tmp_path: Path
) -> None:
    gate = tmp_path / "go"
    model = threading.Event()
    code = f"wait_for_file({str(gate)!r})"
    first = steps(code, "final_answer('done')")
    upstream.says[SECRET] = lambda body: held(*first(body), {"content": ""}, gate=model)(body)
    with asked(server, "able", SECRET, metadata={"order": "A-1"}):
        page.find("#active tr")
        page.wait(lambda: MODEL in page.text("#active .doing"))
        assert page.text("#active .badge") == "Running"
        assert page.text("#active .metadata") == "order A-1"
        assert "alice" in page.text("#active tr")
        assert page.text("[data-sum=running]") == "1"
        page.click("#active .open")
        page.find("#timeline .bar.kind-model.open")
        page.run("window.row = document.querySelector('#active .open'); row.focus()")
        model.set()
        page.wait(lambda: "tool wait_for_file" in page.text("#active .doing"))
        page.find("#timeline .bar.kind-tool.open")
        since = page.text("#active .doing")
        page.wait(lambda: page.text("#active .doing") != since, "time goes by")
        assert page.run("return document.activeElement === row")
        gate.touch()
    page.find("#ended tr")
    page.wait(lambda: page.text("#detail-state") == "Done")
    # The same row, moved, and still in the same hands.
    assert page.run("return document.activeElement === row && row.closest('tbody').id === 'ended'")
    page.wait(lambda: not page.all("#timeline .open"))
    kinds = [str(bar.get_attribute("class")).split()[1] for bar in page.all("#timeline .bar")]
    assert sorted(kinds) == sorted(
        f"kind-{kind}" for kind in ("queue", "setup", *("step", "model", "code") * 2, "tool")
    )
    assert "Tool" in page.text("#legend")
    assert SECRET not in page.run("return document.documentElement.outerHTML")
    assert "wait_for_file('" not in page.run("return document.documentElement.outerHTML")


def test_a_timeline_is_for_the_keyboard_and_for_those_who_hear_it(
    page: Browser, server: ServerProcess, upstream: PageUpstream
) -> None:
    upstream.says["double it"] = steps("double(2)", "double(999)", "final_answer('4')")
    with asked(server, "doubler", "double it"):
        pass
    page.wait(lambda: "doubler" in page.text("#ended tr:first-child .agent"))
    page.click("#ended tr:first-child .open")
    bars = page.wait(lambda: page.all("#timeline .bar.kind-tool"))
    assert "failed" in str(bars[1].get_attribute("aria-label"))
    page.find("#spans summary").send_keys(Keys.SHIFT + Keys.TAB)
    wait_for(lambda: page.run("return document.activeElement.closest('.bar') !== null"))
    label = page.run("return document.activeElement.getAttribute('aria-label')")
    assert label.startswith("Waited for a place")
    page.driver.switch_to.active_element.send_keys(Keys.ARROW_RIGHT + Keys.END)
    wait_for(lambda: page.run("return document.activeElement.getAttribute('aria-label')") != label)
    assert "final" not in page.text("#tip")
    assert page.find("#tip").is_displayed()
    assert page.run("return document.activeElement.getAttribute('aria-label')").split(",")[
        0
    ] in page.text("#tip")
    page.click("#spans summary")
    rows = page.wait(lambda: page.all("#span-rows tr"))
    assert len(rows) == len(page.all("#timeline .bar"))
    assert "double" in page.text("#span-rows")
    for dark in (False, True):
        for size in (DESKTOP, PHONE):
            page.show(dark=dark, size=size)
            assert page.axe() == [], (dark, size)
            assert page.run("return document.documentElement.scrollWidth <= innerWidth")
    page.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    wait_for(
        lambda: (
            not page.find("#runs").get_attribute("hidden") and not page.all("#detail:not([hidden])")
        )
    )
    page.show()
    first, second = page.all("#runs .open")[:2]
    first.send_keys(Keys.ARROW_DOWN)
    assert page.driver.switch_to.active_element == second


def test_a_run_is_cancelled_once_one_is_sure(
    page: Browser, server: ServerProcess, upstream: PageUpstream
) -> None:
    gate = threading.Event()
    upstream.says["for ever"] = held(
        {"content": "I"}, *({"content": " am"} for _ in range(99)), gate=gate
    )
    with asked(server, "doubler", "for ever"):
        page.click("#active .danger")
        page.find("#cancel-dialog[open]")
        assert "doubler of alice, at work for" in page.text("#cancel-what")
        assert page.driver.switch_to.active_element.text == "Let it go on"
        page.driver.switch_to.active_element.send_keys(Keys.ENTER)
        page.wait(lambda: not page.all("#cancel-dialog[open]"))
        assert page.text("#active .badge") == "Running"
        page.click("#active .danger")
        page.click("#cancel-yes")
        page.wait(lambda: not page.all("#active tr"))
    gate.set()
    assert upstream.left.wait(20)
    page.wait(lambda: page.text("#ended tr:first-child .badge") == "Cancelled")
    page.click("#state option[value=failed]")
    assert page.text("#runs tbody .badge") == "Cancelled"
    page.click("#state option[value=all]")
    page.click("#ended tr:first-child .open")
    page.find("#timeline .bar.kind-model.cut")


def test_what_callers_and_models_call_themselves_does_no_harm(
    page: Browser, server: ServerProcess, upstream: PageUpstream
) -> None:
    with asked(server, "doubler", "hello", metadata={HOSTILE[:60]: HOSTILE, "long": "x" * 500}):
        pass
    page.wait(lambda: HOSTILE in page.text("#ended .metadata"))
    page.click("#ended tr:first-child .open")
    page.wait(lambda: page.all("#timeline .bar.kind-model"))
    page.click("#spans summary")
    page.wait(lambda: MODEL in page.text("#span-rows"))
    assert HOSTILE in page.text("#facts")
    assert not page.all("img, main script, #detail script")
    page.show(size=PHONE)
    assert page.run("return document.documentElement.scrollWidth <= innerWidth")
    page.click("#detail-close")
    page.type("#filter", "ONERROR")
    page.wait(lambda: len(page.all("#runs tbody tr")) == 1)
    page.type("#filter", "nobody has this")
    page.wait(lambda: page.text("#empty") == "No run is like that.")


def test_it_says_that_the_server_is_gone_and_goes_on_when_it_is_back(
    chromium: Browser, upstream: PageUpstream
) -> None:
    with server_process(UPSTREAM_OPENAI_BASE=upstream.base, HEARTBEAT_SECONDS="0.2") as first:
        fresh(chromium, first.base)
        chromium.open(first.base + "/runs")
        chromium.find("#feed.live")
        assert first.stop() == 0
        chromium.wait(lambda: chromium.text("#feed") == "Reconnecting")
        assert "may be old" in chromium.text("#notices")
    port = first.base.rpartition(":")[2]
    with server_process("--port", port, UPSTREAM_OPENAI_BASE=upstream.base):
        chromium.find("#feed.live")
        assert chromium.text("#notices") == ""
    chromium.open("about:blank")
    chromium.console()
