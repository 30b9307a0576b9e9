"""Takes the pictures of `/runs` in docs/pictures: `make pictures`.

A scripted upstream and slow tools make the same runs each time; only the times differ a little.
"""

import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from browser import DESKTOP, PHONE, Browser, open_browser
from page_pictures import take
from page_upstream import Delta, PageUpstream, page_upstream
from server_process import ServerProcess, server_process
from test_server_api_keys import keys_file
from test_server_runs_page import CHIEF, asked

KEYS = (
    {"name": "on-call", "key": CHIEF, "operator": True},
    {"name": "travel-desk", "key": "alice-key"},
)
TRIP = (
    "for place in ('Whitby', 'Robin Hood Bay'):\n    print(fetch_weather(place))",
    "print(web_search('tide tables'))",
    "print(web_search('harbour hours'))\nprint(web_search('footpaths'))\nprint(fetch_weather('Scarborough'))",
    "print(route_planner(8))",
    "final_answer('By the coast, before noon.')",
)
SECONDS_A_WORD = 0.03


def trip(body: dict[str, Any]) -> Iterator[Delta]:
    """A model that thinks, and then writes at its pace."""
    done = sum(message["role"] == "assistant" for message in body["messages"])
    time.sleep(0.4)
    words = "I look at what there is first and then go on from there , step by step , as far as it goes ."
    for word in words.split():
        time.sleep(SECONDS_A_WORD)
        yield {"content": word + " "}
    yield {"content": f"\n<code>\n{TRIP[min(done, len(TRIP) - 1)]}\n</code>"}


def quick(body: dict[str, Any]) -> Iterator[Delta]:
    time.sleep(0.3)
    yield {"content": "<code>\nfinal_answer(42)\n</code>"}


def wrong(body: dict[str, Any]) -> Iterator[Delta]:
    time.sleep(0.5)  # a heartbeat has begun the stream by then
    yield {"error": {"message": "out of memory", "code": 500}}


def pictures(browser: Browser, server: ServerProcess, upstream: PageUpstream) -> None:
    gate = threading.Event()

    def slow(body: dict[str, Any]) -> Iterator[Delta]:
        yield {"content": "Let me see."}
        gate.wait(60)
        yield from quick(body)

    upstream.says |= {"trip": trip, "invoice": quick, "broken": wrong, "slow": slow}
    for text in ("invoice", "broken", "invoice"):
        with asked(server, "invoice-reader", text, metadata={"invoice": "2026-0417"}):
            pass
    browser.show(size=(DESKTOP[0], 860))
    browser.open(server.base + "/runs")
    browser.run("sessionStorage.setItem('smolgate-key/', arguments[0])", CHIEF)
    browser.open(server.base + "/runs")
    browser.find("#ended tr")
    with asked(server, "trip-planner", "trip", metadata={"order": "A-1043"}):
        browser.wait(lambda: "web_search" in browser.text("#active .doing"))
        with (
            asked(server, "code-writing-agent", "slow"),
            asked(server, "code-writing-agent", "slow"),
        ):
            browser.wait(lambda: "route_planner" in browser.text("#active .doing"))
            row = next(row for row in browser.all("#active tr") if "trip" in row.text)
            browser.run("arguments[0].querySelector('.open').click()", row)
            browser.wait(lambda: browser.all("#timeline .kind-tool.open"))
            time.sleep(2)
            for name, dark, size in (
                ("runs-light.png", False, (DESKTOP[0], 860)),
                ("runs-dark.png", True, (DESKTOP[0], 860)),
                ("runs-phone.png", False, (PHONE[0], 900)),
            ):
                browser.show(dark=dark, size=size, scale=1 if size[0] > PHONE[0] else 2)
                browser.run("document.activeElement.blur()")
                time.sleep(0.3)
                take(browser, name)
            gate.set()


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        page_upstream() as upstream,
        server_process(
            UPSTREAM_OPENAI_BASE=upstream.base,
            AGENT_MODEL="qwen3:8b",
            AGENTS="trip-planner=pictured_agents:trip_planner,invoice-reader=pictured_agents:invoice_reader",
            API_KEYS_FILE=keys_file(Path(folder), *KEYS),
            MAX_RUNNING="2",
            HEARTBEAT_SECONDS="0.2",
        ) as server,
        open_browser() as browser,
    ):
        pictures(browser, server, upstream)


if __name__ == "__main__":
    main()
