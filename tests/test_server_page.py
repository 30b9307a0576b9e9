"""The page at `/`: what a person does with it in a real Chromium, before real server processes."""

import base64
import json
import os
import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import DESKTOP, PHONE, Browser, browser_or_skip
from nginx_proxy import nginx_before
from page_upstream import Delta, PageUpstream, content, page_upstream, steps
from PIL import Image
from selenium.webdriver.common.keys import Keys
from server_process import ServerProcess, server_process

# Chromium may have to be installed first, which is bounded where it is done.
pytestmark = pytest.mark.timeout(120, func_only=True)

MODEL = "up/model"
AGENT = "code-writing-agent"
LONG_TASK_MS = 100
DELTAS = 10_000
ATTEMPTS = 4
BOMB_CHARACTERS = 16_000


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser_or_skip() as browser:
        yield browser


@pytest.fixture(scope="module")
def upstream() -> Iterator[PageUpstream]:
    with page_upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def server(upstream: PageUpstream) -> Iterator[ServerProcess]:
    with server_process(
        UPSTREAM_OPENAI_BASE=upstream.base, AGENT_MODEL=MODEL, JAIL="auto", HEARTBEAT_SECONDS="0.2"
    ) as server:
        server.line_with("jail: ")  # it is ready
        yield server


@pytest.fixture
def page(chromium: Browser, server: ServerProcess, upstream: PageUpstream) -> Iterator[Browser]:
    """The page as one finds it first; at the end nothing was complained of and nobody else asked."""
    upstream.says.clear()
    upstream.bodies.clear()
    upstream.left.clear()
    fresh(chromium, server.base)
    yield chromium
    assert chromium.console() == []
    assert chromium.asked_elsewhere() == []


def fresh(browser: Browser, base: str) -> None:
    """A browser that was never here."""
    browser.cdp("Storage.clearDataForOrigin", origin=base, storageTypes="all")
    browser.show()
    browser.open("about:blank")
    browser.console()
    browser.open(base)
    browser.run("try { sessionStorage.clear(); } catch {}")
    browser.open(base)
    browser.find("#model:not([disabled]), #key-dialog[open]")


def choose(page: Browser, model: str) -> None:
    page.click(f"#model option[value='{model}']")


def ask(page: Browser, text: str, model: str = MODEL) -> None:
    choose(page, model)
    page.type("#question", text + Keys.ENTER)


def wait_for_end(page: Browser, badge: str = "good") -> None:
    page.find(f".turn:last-child .reply-head .badge.{badge}")


def runs(base: str, path: str = "") -> Any:
    with urllib.request.urlopen(f"{base}/v1/runs{path}", timeout=10) as response:
        return json.load(response)


def held(*pieces: Delta, gate: threading.Event) -> Any:
    """A reply that stops after its first piece until the gate opens."""

    def say(body: dict[str, Any]) -> Iterator[Delta]:
        yield pieces[0]
        assert gate.wait(30)
        yield from pieces[1:]

    return say


def test_a_model_s_words_are_seen_before_it_ends(page: Browser, upstream: PageUpstream) -> None:
    gate = threading.Event()
    upstream.says["Hello"] = held(
        {"reasoning_content": "First a *thought*"},
        {"reasoning_content": ", then"},
        {"content": "The **answer**"},
        gate=gate,
    )
    ask(page, "Hello")
    page.find(".turn .step em")
    page.find(".turn .badge.live")
    assert page.text(".answer") == ""
    gate.set()
    wait_for_end(page)
    assert page.text(".answer strong") == "answer"
    assert page.text(".step .body") == "First a thought, then"
    assert "1,200 tokens read, 34 written, 5 of them thoughts" in page.text(".foot")
    assert re.search(r"\d\.\d s ", page.text(".foot"))
    # It folds with the answer, and unfolds.
    assert not page.all(".work[open]")
    page.click(".work > summary")
    assert page.find(".step em").text == "thought"


def test_an_agent_s_steps_are_seen_as_they_happen(page: Browser, upstream: PageUpstream) -> None:
    upstream.says["rows"] = steps(
        "import time\nfor n in range(3):\n    print('row', n)  # live\ntime.sleep(2)",
        "final_answer('# Done\\n\\n| a | b |\\n|---|---|\\n| 1 | 2 |')",
    )
    ask(page, "Print rows", AGENT)
    page.wait(lambda: "row 2" in page.text(".step .output code"))
    page.find(".turn > .reply > .reply-head .badge.live")
    page.find(".step.live")
    assert page.text(".step .keyword") == "importforin"
    assert page.text(".step .comment") == "# live"
    wait_for_end(page)
    page.click(".work > summary")
    page.find(".step:nth-of-type(2)")
    names = [each.text for each in page.all(".step > summary")]
    assert [re.sub(r" \d+\.\d\d s$", "", name) for name in names] == ["Step 1", "Step 2"]
    assert not page.all(".step.live")
    assert page.text(".answer h1") == "Done"
    assert [each.text for each in page.all(".answer td")] == ["1", "2"]
    page.click(".step > summary")
    assert len([each for each in page.all(".step > .body") if each.is_displayed()]) == 1


@pytest.mark.parametrize("how", ["button", "key"])
def test_stop_ends_the_run_at_the_server(
    page: Browser, server: ServerProcess, upstream: PageUpstream, how: str
) -> None:
    upstream.says["sleep"] = steps("import time\nprint('before')\ntime.sleep(50)")
    ask(page, "Do sleep", AGENT)
    page.wait(lambda: "before" in page.text(".output code"))
    (run,) = runs(server.base)["data"]
    if how == "button":
        page.click("#stop")
    else:
        page.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    wait_for_end(page, "warn")
    page.wait(lambda: not runs(server.base)["data"])
    assert runs(server.base, "/" + run["id"])["outcome"] == "cancelled"
    assert page.driver.switch_to.active_element.get_attribute("id") == "question"
    assert page.text(".reply-head .badge") == "Stopped"
    page.click(".work > summary")
    assert "before" in page.text(".output code")


def test_stop_ends_a_relayed_reply_at_the_upstream(page: Browser, upstream: PageUpstream) -> None:
    def endless(body: dict[str, Any]) -> Iterator[Delta]:
        while not upstream.left.wait(0.01):
            yield {"content": "word "}

    upstream.says["Endless"] = endless
    ask(page, "Endless")
    page.wait(lambda: "word word" in page.text(".answer"))
    page.click("#stop")
    wait_for_end(page, "warn")
    assert upstream.left.wait(20)


def test_a_reload_keeps_the_conversation(page: Browser, upstream: PageUpstream) -> None:
    upstream.says["first"] = content("One **kept** answer.")
    upstream.says["second"] = content("Another.")
    ask(page, "The first question")
    wait_for_end(page)
    ask(page, "The second question")
    page.find(".turn:nth-child(2) .badge.good")
    page.driver.refresh()
    page.find(".turn:nth-child(2) .badge.good")
    page.wait(lambda: page.text(".turn:nth-child(1) .answer strong") == "kept")
    assert page.find("#title").text == "The first question"
    # A question that goes on with it.
    upstream.says["third"] = content("Third.")
    ask(page, "The third question")
    page.find(".turn:nth-child(3) .badge.good")
    told = [(m["role"], m["content"]) for m in upstream.bodies[-1]["messages"]]
    assert told == [
        ("user", "The first question"),
        ("assistant", "One **kept** answer."),
        ("user", "The second question"),
        ("assistant", "Another."),
        ("user", "The third question"),
    ]
    page.click("#new")
    page.find("#welcome")
    assert page.all(".turn") == []
    page.click("#conversations li > :first-child")
    page.find(".turn:nth-child(3) .badge.good")


def test_a_reload_amid_a_reply_keeps_what_was_there(
    page: Browser, server: ServerProcess, upstream: PageUpstream
) -> None:
    upstream.says["sleep"] = steps("import time\nprint('before')\ntime.sleep(50)")
    ask(page, "Do sleep", AGENT)
    page.wait(lambda: "before" in page.text(".output code"))
    page.driver.refresh()
    wait_for_end(page, "warn")
    assert page.text(".reply-head .badge") == "Interrupted"
    page.click(".work > summary")
    page.wait(lambda: "before" in page.text(".output code"))
    page.wait(lambda: not runs(server.base)["data"])
    upstream.says["sleep"] = content("<code>\nfinal_answer('woke')\n</code>")
    page.click(".retry")
    wait_for_end(page)
    page.wait(lambda: page.text(".answer") == "woke")
    assert len(page.all(".turn")) == 1


HOSTILE = (
    "<script>window.hurt = 1; alert(1)</script><img src=x onerror='window.hurt = 1'>\n\n"
    "[a](javascript:window.hurt=1) [b](JaVaScRiPt:alert(1)) [c](data:text/html,<script>alert(1)</script>) "
    "[d](&#106;avascript:alert(1)) [e](java\tscript:alert(1)) [f](vbscript:x) [g](//evil.invalid/x) "
    '[h](https://good.invalid/ "t") <javascript:alert(1)> ![i](http://evil.invalid/i.png)\n\n'
    "<svg onload=alert(1)> <iframe srcdoc='<script>top.hurt=1</script>'> <style>body{display:none}</style>\n\n"
    "| <b onclick=alert(1)>x</b> | [t](javascript:alert(1)) |\n|---|---|\n| <script>alert(1)</script> | y |\n\n"
    "```python'\"><script>alert(1)</script>\nprint('</code></pre><script>alert(1)</script>')\n"
)
BOMBS = {
    "brackets": "[" * 50_000 + "](" * 20_000,
    "links": "[a](" * 25_000 + ")" * 100,
    "stars": "*a **b _c " * 10_000,
    "starred": "**" * 50_000 + "x" + "**" * 50_000,
    "underscores": "_" * 50_001 + "x_" * 20_000,
    "backticks": "".join("`" * (n % 300) + "x" for n in range(1000)),
    "quotes": "> " * 30_000 + "deep",
    "lists": "\n".join("  " * n + "- deep" for n in range(500)),
    "numbers": "1. " * 20_000,
    "table": "|" * 20_000 + "\n" + "|-" * 20_000 + "|\n" + "|x" * 20_000,
    "rules": "- " * 20_000 + "x\n" + "* " * 20_000 + "*",
    "entities": "&#0;&#xffffff;&amp" * 5_000,
    "addresses": "https://a.invalid/" + "(" * 50_000 + " " + "http://" * 10_000,
    "heading": "#" * 7 + " x\n# " + " " * 50_000 + "#" * 100,
    "fences": "````\n```\n~~~\n````\n" * 2_000,
    "one word": "x" * 300_000,
    "controls": "\0\r\u2028\u202e\ufffe" * 5_000,
    "an open fence": "```python\n'''" + "\\" * 50_000 + "\"'" * 20_000,
}


def test_a_hostile_reply_does_no_harm(page: Browser, upstream: PageUpstream) -> None:
    upstream.says["hostile"] = content(*(HOSTILE[n : n + 7] for n in range(0, len(HOSTILE), 7)))
    ask(page, "hostile")
    wait_for_end(page)
    page.wait(lambda: "</code></pre>" in page.text(".answer .code code"))
    assert page.run("return window.hurt") is None
    assert (
        page.all(".turn :is(script, iframe, svg, style, img, [onerror], [onclick], [style])") == []
    )
    links = {
        each.get_attribute("href"): each.get_attribute("rel") for each in page.all(".answer a")
    }
    assert set(links) == {"https://good.invalid/", "http://evil.invalid/i.png"}
    assert all("noopener" in str(rel) for rel in links.values())
    assert "[a](javascript:window.hurt=1)" in page.text(".answer")


def test_markdown_bombs_leave_the_page_as_quick_as_it_was(
    page: Browser, upstream: PageUpstream
) -> None:
    """As the answer, and as thoughts; then what comes after them is shown as ever."""
    upstream.says["bombs"] = lambda body: [
        {name: piece}
        for name in ("reasoning_content", "content")
        for bomb in (*BOMBS.values(), "The last words.")
        for text in (bomb[:BOMB_CHARACTERS] + "\n\n",)
        for piece in (text[n : n + 3000] for n in range(0, len(text), 3000))
    ]
    assert longest_task_ms(page, "bombs", "The last words.") < 3 * LONG_TASK_MS
    assert page.run(DEPTH, ".turn") < 60
    upstream.says["after"] = content("`fine`")
    ask(page, "after")
    page.find(".turn:nth-child(2) .answer p > code")


WATCH_TASKS = """
window.tasks = [];
new PerformanceObserver(list => list.getEntries().forEach(each => window.tasks.push(each.duration)))
  .observe({type: 'longtask', buffered: false});
"""
WIDTH = "return document.documentElement.scrollWidth"
DEPTH = """
const depth = node => 1 + Math.max(0, ...[...node.children].map(depth));
return depth(document.querySelector(arguments[0]));
"""


def longest_task_ms(page: Browser, word: str, last: str) -> float:
    """Of a reply, while it comes and is shown; the best of a few, since a busy machine stretches some."""
    longest: list[float] = []
    while len(longest) < ATTEMPTS and min(longest, default=LONG_TASK_MS) >= LONG_TASK_MS:
        page.click("#new")
        page.find("#welcome")
        page.run(WATCH_TASKS)
        ask(page, word)
        wait_for_end(page)
        page.wait(lambda: page.text(".answer").rstrip().endswith(last))
        longest.append(float(max(page.run("return window.tasks"), default=0.0)))
    print(f"{word}: longest tasks {longest} ms")
    return min(longest)


def test_ten_thousand_deltas_leave_the_page_responsive(
    page: Browser, upstream: PageUpstream
) -> None:
    words = ["Some ", "words ", "of ", "**thought**, ", "and `code`.\n\n", "- item\n", "so on "]
    thoughts = [
        *(words[n % len(words)] for n in range(DELTAS // 2)),
        *("\n\n```python\n", *["print('x', 12)  # look\n"] * (DELTAS // 4 - 2), "```\n"),
        *("\n\n````text\n", *["a row of output\n"] * (DELTAS // 4 - 2), "````\n"),
    ]
    upstream.says["many"] = lambda body: [
        *({"reasoning_content": thought} for thought in thoughts),
        {"content": "The end."},
    ]
    assert longest_task_ms(page, "many", "The end.") < LONG_TASK_MS
    page.click(".work > summary")
    assert page.text(".step .body").count("thought") == DELTAS // 2 // len(words)
    assert page.text(".step .code:not(.output) code").count("print('x', 12)  # look\n") == 2498
    assert page.text(".step .output code") == "a row of output\n" * 2498


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_nothing_serious(
    page: Browser, upstream: PageUpstream, size: tuple[int, int], dark: bool
) -> None:
    page.show(dark=dark, size=size)
    found = {"first": page.axe()}
    assert page.run(WIDTH) <= size[0]
    upstream.says["all"] = steps(
        "# look\nprint(1 + 2, 'x', f'{3}')\ndef f(): pass",
        "final_answer('# H\\n\\n> q\\n\\n- a `b` [c](https://d.invalid/)\\n\\n|a|b|\\n|-|-|\\n|1|2|\\n\\n```python\\nx = 1\\n```')",
    )
    ask(page, "all of it", AGENT)
    wait_for_end(page)
    page.click(".work > summary")
    page.find(".step .output")
    found["turn"] = page.axe()
    upstream.says["broken"] = lambda body: [{"content": "half"}, {"raw": b""}]
    ask(page, "broken")
    page.find(".notice.bad")
    found["failed"] = page.axe()
    assert page.run(WIDTH) <= size[0]
    if size == PHONE:
        assert not page.find("main").find_elements("css selector", "#side")
        page.click("#open-side")
        page.find("#side.open")
        page.wait(lambda: page.run("return document.getAnimations().length") == 0)
        found["drawer"] = page.axe()
    page.click("#open-key")
    found["key"] = page.axe()
    page.type("#key", Keys.ESCAPE)
    assert {state: faults for state, faults in found.items() if faults} == {}


def test_the_keyboard_is_enough(page: Browser, upstream: PageUpstream) -> None:
    upstream.says["keys"] = content("Answered.")

    def press(*keys: str) -> None:
        for key in keys:
            page.driver.switch_to.active_element.send_keys(key)

    def focused() -> str:
        return str(
            page.run(
                "const e = document.activeElement;"
                "return e.id || e.getAttribute('aria-label') || e.textContent.trim()"
            )
        )

    assert focused() == "question"
    press("two", Keys.SHIFT + Keys.ENTER, "keys")
    assert page.run("return document.querySelector('#question').value") == "two\nkeys"
    press(Keys.ENTER)
    wait_for_end(page)
    assert focused() == "question"
    page.run("document.activeElement.blur(); window.getSelection().removeAllRanges()")
    page.run("document.querySelector('.skip').focus()")
    assert page.find(".skip").rect["y"] >= 0
    press(Keys.ENTER)
    assert focused() == "question"
    order = []
    page.run("document.querySelector('.skip').focus()")
    for _ in range(17):
        press(Keys.TAB)
        order.append(focused())
    expected = [
        *(
            "smolgate",
            "new",
            "two",
            "Delete: two",
            "Runs on this server",
            "theme",
            "open-key",
            "clear",
            "model",
        ),
        *(
            "Copy answer",
            "Copy as curl",
            "Copy as Python",
            "Try again",
            "question",
            "attach",
            "send",
        ),
    ]
    assert [each for each in order if each in expected] == expected, "; ".join(order)
    assert page.text("#status").startswith("Answer: Answered.")
    press(Keys.ESCAPE)


def test_a_key_is_asked_for_kept_with_the_tab_and_never_in_the_address(
    chromium: Browser, upstream: PageUpstream, tmp_path: Path
) -> None:
    upstream.says.clear()
    upstream.says["locked"] = content("Opened.")
    with server_process(
        UPSTREAM_OPENAI_BASE=upstream.base, AGENT_MODEL=MODEL, API_KEYS="sk-right"
    ) as server:
        fresh(chromium, server.base)
        field = "#key-dialog[open] #key"
        assert chromium.find(field).get_attribute("type") == "password"
        chromium.type(field, "sk-wrong" + Keys.ENTER)
        chromium.find("#key-refused")
        chromium.type(field, "sk-right" + Keys.ENTER)
        chromium.find("#model:not([disabled])")
        ask(chromium, "locked")
        wait_for_end(chromium)
        chromium.driver.refresh()
        chromium.find("#model:not([disabled])")
        assert chromium.run("return localStorage.getItem('smolgate-key/')") is None
        command = copied(chromium, "Copy as curl")
        assert "sk-right" not in command
        assert "sk-right" not in copied(chromium, "Copy as Python")
        said = shell(command, tmp_path, OPENAI_API_KEY="sk-right")
        assert '"content": "Opened."' in said
        assert all("sk-" not in url for url in chromium.requested())
        # A key that is taken away is asked for again.
        chromium.run("sessionStorage.setItem('smolgate-key/', 'sk-old')")
        chromium.driver.refresh()
        chromium.find("#key-refused")
    refused = [line for line in chromium.console() if "401" not in line]
    assert refused == []


def copied(page: Browser, label: str) -> str:
    """What a button puts on the clipboard."""
    page.run(
        "window.copied = null;"
        "navigator.clipboard.writeText = async text => { window.copied = text; };"
        "[...document.querySelectorAll('.turn:last-child .foot button')]"
        ".find(each => each.textContent === arguments[0]).click()",
        label,
    )
    return str(page.wait(lambda: page.run("return window.copied")))


def shell(command: str, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        ["sh"],
        input=command,
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder)} | environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return done.stdout


def test_an_image_arrives_and_what_is_copied_runs(
    page: Browser, upstream: PageUpstream, tmp_path: Path
) -> None:
    upstream.says["it's"] = content("A dot's there.")
    picture = tmp_path / "dot.png"
    Image.new("RGB", (8, 8), "red").save(picture)
    page.all("#file")[0].send_keys(str(picture))
    page.find("#images img")
    question = "What's \"it\"? it's $HOME `id` \\n"
    ask(page, question)
    wait_for_end(page)
    (message,) = upstream.bodies[-1]["messages"]
    url = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
    expected = [
        {"type": "text", "text": question.strip()},
        {"type": "image_url", "image_url": {"url": url}},
    ]
    assert message["content"] == expected
    assert page.find(".asked img").size["width"] > 0
    said = shell(copied(page, "Copy as curl"), tmp_path)
    assert said.rstrip().endswith("data: [DONE]")
    assert upstream.bodies[-1]["messages"] == [message]
    script = tmp_path / "copied.py"
    script.write_text(copied(page, "Copy as Python"))
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == "A dot's there."
    assert upstream.bodies[-1]["messages"] == [message]


SAMPLE = """# Head *one*
A paragraph with `code`, **bold _both_** and
a second line [link](https://a.invalid/?q=1) https://b.invalid/x.

> quoted
> - item
lazy

1. one
   - two
     still two
2. three

| a | b |
|---|:-:|
| `x` | y |
| 1 |

Under
-----
***
```python
def f(x):  # why
    return '''a
    b''' + "c"

```
````text
``` not closed by this
````
~~gone~~ \\*not\\* &amp; end<br>line <b>tag</b>
"""
MARKDOWN_CUT = """
const [text, sizes] = arguments, done = arguments[arguments.length - 1];
import('./page/markdown.js').then(({Markdown}) => {
  const made = sizes.map(size => {
    const root = document.createElement('div');
    const markdown = new Markdown(root, {outputFence: '````'});
    for (let at = 0; at < text.length; at += size) {
      markdown.feed(text.slice(at, at + size));
      markdown.flush();
    }
    markdown.end();
    root.normalize();
    return root.innerHTML;
  });
  done(made);
}).catch(error => done([String(error)]));
"""
EVENTS_CUT = """
const [text, sizes] = arguments, done = arguments[arguments.length - 1];
import('./page/sse.js').then(({SseParser}) => done(sizes.map(size => {
  const parser = new SseParser(), events = [];
  for (let at = 0; at < text.length; at += size) events.push(...parser.feed(text.slice(at, at + size)));
  return [...events, ...parser.end()];
}))).catch(error => done([String(error)]));
"""
THOUGHTS_CUT = """
const [text, sizes] = arguments, done = arguments[arguments.length - 1];
import('./page/leading_thoughts.js').then(({LeadingThoughts}) => done(sizes.map(size => {
  const thoughts = new LeadingThoughts(), parts = [];
  for (let at = 0; at < text.length; at += size) parts.push(thoughts.feed(text.slice(at, at + size)));
  parts.push(thoughts.flush());
  return [parts.map(part => part.thought).join('').trim(), parts.map(part => part.said).join('').trim()];
}))).catch(error => done([String(error)]));
"""


def cut(page: Browser, script: str, text: str) -> Any:
    """What comes of a text however it is cut; each time the same."""
    sizes = [len(text), *range(1, 12), 50]
    made = page.driver.execute_async_script(script, text, sizes)
    assert len(made) == len(sizes), made
    for size, each in zip(sizes, made, strict=True):
        assert each == made[0], f"in pieces of {size}"
    return made[0]


def test_markdown_is_the_same_however_it_is_cut(page: Browser) -> None:
    html = cut(page, MARKDOWN_CUT, SAMPLE)
    for part in (
        "<h1>Head <em>one</em></h1>",
        "<strong>bold <em>both</em></strong> and\na second line",
        ">https://b.invalid/x</a>.</p>",
        "<blockquote><p>quoted</p><ul><li><p>item\nlazy</p></li></ul></blockquote>",
        "<ol><li><p>one</p><ul><li><p>two\nstill two</p></li></ul></li><li><p>three</p></li></ol>",
        "<tr><td><code>x</code></td><td>y</td></tr><tr><td>1</td><td></td></tr>",
        "<h2>Under</h2><hr>",
        "<span class=\"string\">'''a</span>",
        "``` not closed by this\n",
        "<del>gone</del> *not* &amp; end<br>line &lt;b&gt;tag&lt;/b&gt;",
    ):
        assert part in html


def test_events_are_the_same_however_they_are_cut(page: Browser) -> None:
    text = ": ping\n\ndata: one\r\n\r\ndata:two\rdata:  three\r\revent: x\nid: 1\n\n\n\ndata: \u00e9\u2028\n\ndata: last"
    assert cut(page, EVENTS_CUT, text) == ["one", "two\n three", "\u00e9\u2028", "last"]


def test_thoughts_left_in_the_content_are_found_however_they_are_cut(page: Browser) -> None:
    cases = {
        "\n<think>\nhm < </thin</think>\n\nSo.": ["hm < </thin", "So."],
        "<think>never closed": ["never closed", ""],
        "a <think>no</think>": ["", "a <think>no</think>"],
        "<thi": ["", "<thi"],
    }
    for text, expected in cases.items():
        assert cut(page, THOUGHTS_CUT, text) == expected


def test_how_a_reply_ends_is_said(page: Browser, upstream: PageUpstream) -> None:
    tool = {"index": 0, "id": "c", "function": {"name": "weather", "arguments": "{}"}}
    ways = {
        "limit": ([{"content": "half"}, {"finish": "length"}], "reached the limit"),
        "tools": ([{"tool_calls": [tool]}, {"finish": "tool_calls"}], "weather"),
        "fails": ([{"content": "x"}, {"error": {"message": "out of it"}}], "out of it"),
        "breaks": ([{"content": "x"}, {"raw": b'data: {"choi'}], "before it was complete"),
        "garbage": ([{"content": "x"}, {"raw": b"data: {]\n\ndata: [DONE]\n\n"}], "no JSON"),
    }
    for word, (deltas, _) in ways.items():
        upstream.says[word] = lambda body, deltas=deltas: deltas  # type: ignore[misc]
    for number, (word, (_, told)) in enumerate(ways.items(), 1):
        ask(page, word)
        notice = page.find(f".turn:nth-child({number}) .notice")
        assert told in notice.text, word
    upstream.says["agent fails"] = lambda body: [{"error": {"message": "gone"}}]
    ask(page, "agent fails", AGENT)
    wait_for_end(page, "bad")
    assert [line for line in page.console() if "500 (Internal" not in line] == []


def test_it_works_below_a_path_of_a_proxy(
    chromium: Browser, server: ServerProcess, upstream: PageUpstream
) -> None:
    upstream.says.clear()
    upstream.says["below"] = content("Served below.")
    rewrite = "rewrite ^/smol/(.*)$ /$1 break; if ($request_uri = /) { return 404; }"
    with nginx_before(server.base, read_timeout="20s", more=rewrite) as base:
        fresh(chromium, f"{base}/smol/")
        ask(chromium, "below")
        wait_for_end(chromium)
        assert f"{base}/smol/v1/chat/completions" in copied(chromium, "Copy as curl")
    assert chromium.console() == []


def test_two_tabs_lose_nothing_of_each_other_s(page: Browser, upstream: PageUpstream) -> None:
    upstream.says["one"] = content("Answer one.")
    upstream.says["two"] = content("Answer two.")
    ask(page, "one")
    wait_for_end(page)
    first = page.driver.current_window_handle
    address = page.driver.current_url
    page.driver.switch_to.new_window("tab")
    try:
        page.show()
        page.open(address)
        page.find(".turn .badge.good")
        ask(page, "two")
        page.find(".turn:nth-child(2) .badge.good")
    finally:
        page.driver.close()
        page.driver.switch_to.window(first)
    page.wait(lambda: page.text(".turn:nth-child(2) .answer") == "Answer two.")


def test_what_is_deleted_is_gone_and_the_theme_stays(page: Browser, upstream: PageUpstream) -> None:
    for word in ("first", "second", "third"):
        upstream.says[word] = content(f"It was {word}.")
        ask(page, word)
        wait_for_end(page)
        page.click("#new")
        page.find("#welcome")
    page.click("#theme option[value='dark']")
    dark = page.run("return getComputedStyle(document.body).backgroundColor")
    page.wait(lambda: len(page.all("#conversations li")) == 3)
    page.run("arguments[0].click()", page.all("[aria-label='Delete: second']")[0])
    page.driver.switch_to.alert.accept()
    page.wait(lambda: "second" not in page.text("#conversations"))
    assert len(page.all("#conversations li")) == 2
    page.click("#clear")
    page.driver.switch_to.alert.dismiss()
    page.click("#clear")
    page.driver.switch_to.alert.accept()
    page.wait(lambda: not page.all("#conversations li"))
    page.driver.refresh()
    page.find("#welcome")
    assert page.all("#conversations li") == []
    assert page.run("return getComputedStyle(document.body).backgroundColor") == dark
    assert page.run("return document.documentElement.dataset.theme") == "dark"
    page.click("#theme option[value='system']")
    assert page.run("return getComputedStyle(document.body).backgroundColor") != dark


def test_a_server_that_is_gone_is_said_and_found_again(
    chromium: Browser, server: ServerProcess
) -> None:
    fresh(chromium, server.base)
    chromium.cdp("Network.enable")
    chromium.cdp("Network.setBlockedURLs", urls=["*/v1/*"])
    try:
        chromium.driver.refresh()
        assert "cannot be listed" in chromium.find("#notice-models").text
    finally:
        chromium.cdp("Network.setBlockedURLs", urls=[])
    chromium.click("#notice-models button")
    chromium.find("#model:not([disabled])")
    assert chromium.all("#notice-models") == []
    assert chromium.driver.switch_to.active_element.get_attribute("id") == "question"
    chromium.console()


def test_the_embedded_model_answers_on_the_page(chromium: Browser) -> None:
    with server_process(UPSTREAM_OPENAI_BASE="", JAIL="auto") as server:
        fresh(chromium, server.base)
        chromium.click("#examples button")
        wait_for_end(chromium)
        assert chromium.text(".answer") == "391"
        assert "17 * 23" in chromium.text(".step .code code").replace("*", " * ").replace("  ", " ")
    assert chromium.console() == []
