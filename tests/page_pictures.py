"""Takes the pictures of the page in docs/pictures: `make pictures`.

A scripted upstream writes what the agent does, so that each picture shows the same.
"""

import io
import os
import subprocess
from pathlib import Path

from browser import DESKTOP, PHONE, Browser, open_browser
from page_upstream import Delta, page_upstream
from PIL import Image
from selenium.webdriver.common.keys import Keys
from server_process import server_process

FOLDER = Path(__file__).parent.parent / "docs" / "pictures"
FONTS = ("fonts-inter", "fonts-jetbrains-mono")
QUESTION = "A loan of 12,000 at 4.5 % a year, paid back in 36 months: what is due each month?"
THINKING = "An annuity: the payment is fixed, so I solve for it, then check it month by month."
STEPS = (
    f"""{THINKING}
<code>
loan, months, rate = 12_000, 36, 0.045 / 12
payment = loan * rate / (1 - (1 + rate) ** -months)  # the annuity formula
left = loan
for month in range(1, months + 1):
    left = left * (1 + rate) - payment
    if month % 12 == 0:
        print(f"after {{month}} months: {{abs(left):9.2f}} left")
print(f"payment {{payment:.2f}}, paid in all {{payment * months:.2f}}")
</code>""",
    '''<code>
final_answer("""**356.96 a month.** That is 12,850.67 in all, of which 850.67 is interest.

| after | still owed |
|---|---|
| 12 months | 8,178.26 |
| 24 months | 4,180.95 |
| 36 months | 0.00 |
""")
</code>''',
)


def say(body: dict[str, object]) -> list[Delta]:
    messages = body["messages"]
    assert isinstance(messages, list)
    done = sum(message["role"] == "assistant" for message in messages)
    return [{"content": STEPS[min(done, 1)]}]


def take(browser: Browser, name: str) -> None:
    """As a PNG of few colours, which is small."""
    picture = Image.open(io.BytesIO(browser.driver.get_screenshot_as_png())).convert("RGB")
    FOLDER.mkdir(exist_ok=True)
    picture.quantize(255, dither=Image.Dither.NONE).save(FOLDER / name, optimize=True)
    print(FOLDER / name, (FOLDER / name).stat().st_size, "bytes")


def pictures(browser: Browser, base: str) -> None:
    browser.show()
    browser.open(base)
    browser.find("#model:not([disabled])")
    browser.type("#question", QUESTION + Keys.ENTER)
    browser.find(".turn .badge.good")
    browser.click(".work > summary")
    browser.find(".step:nth-child(2)")
    browser.click(".step:nth-child(2) > summary")
    browser.run("document.activeElement.blur()")
    for name, dark, size in (
        ("page-light.png", False, (DESKTOP[0], 940)),
        ("page-dark.png", True, (DESKTOP[0], 940)),
        ("page-phone.png", False, PHONE),
    ):
        browser.show(dark=dark, size=size, scale=1 if size[0] > PHONE[0] else 2)
        browser.run("document.querySelector('#scroll').scrollTop = 0")
        browser.wait(lambda: not browser.run("return document.getAnimations().length"))
        take(browser, name)


def main() -> None:
    if os.geteuid() == 0:  # the page asks for them first, and a bare machine has no good ones
        command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *FONTS]
        subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
    with page_upstream() as upstream:
        upstream.says["loan"] = say
        with (
            server_process(UPSTREAM_OPENAI_BASE=upstream.base, AGENT_MODEL="qwen3:8b") as server,
            open_browser() as browser,
        ):
            pictures(browser, server.base)


if __name__ == "__main__":
    main()
