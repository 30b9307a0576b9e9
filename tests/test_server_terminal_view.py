"""What a reply looks like while it comes, and that its cost does not grow with what is there already."""

import io
import re

from rich.console import Console

from server.terminal_client import Usage
from server.terminal_view import LiveView

SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Screen(io.StringIO):
    """Counts its writes."""

    writes = 0

    def write(self, text: str) -> int:
        self.writes += 1
        return super().write(text)


def console(screen: io.StringIO, **options: object) -> Console:
    settings: dict[str, object] = {"width": 40, "force_terminal": True, "legacy_windows": False}
    return Console(file=screen, highlight=False, markup=False, **settings | options)  # type: ignore[arg-type]


def drawn(deltas: int, per_tick: int = 50) -> Screen:
    """A reply of so many deltas, a tick for every so many of them."""
    screen = Screen()
    with LiveView(console(screen), reasoning=True) as view:
        for number in range(deltas):
            view.reasoning(f"word{number} " if number % 10 else "\n")
            if number % per_tick == 0:
                view.tick()
        view.answer("the end")
    return screen


def test_ten_thousand_deltas_cost_ten_times_a_thousand() -> None:
    """In bytes and writes to the terminal, which do not depend on the machine's mood."""
    few, many = drawn(1000), drawn(10_000)
    assert many.tell() < 12 * few.tell()
    assert many.writes < 12 * few.writes
    assert many.writes < 10_000 / 50 * 4 + 20
    words = re.findall(r"word\d+", SEQUENCE.sub("", many.getvalue()))
    assert len(set(words)) == 9000


def test_what_is_drawn_between_two_ticks_does_not_depend_on_the_deltas() -> None:
    screen = Screen()
    with LiveView(console(screen), reasoning=True) as view:
        view.tick()
        before = screen.writes
        for _ in range(10_000):
            view.reasoning("x")
        assert screen.writes == before
        view.tick()
        assert screen.writes - before < 5


def test_reasoning_code_output_and_answer_in_their_places() -> None:
    screen = Screen()
    with LiveView(console(screen), reasoning=True) as view:
        view.reasoning(
            "I add.\n```python\nprint(1)\n```\n\n````text\n1\n````\n\n**Step 1** (0.1 s)\n"
        )
        view.answer("It is **1**.\n\n- a\n- b")
    view.end(Usage(10, 5))
    lines = [line.rstrip() for line in SEQUENCE.sub("", screen.getvalue()).split("\n")]
    begin = next(at for at, line in enumerate(lines) if line.endswith("I add."))
    assert [line.rpartition("\r")[2] for line in lines[begin + 1 :]][:12] == [
        "print(1)",
        "",
        "╭─ output ──────────────────────────────",
        "│ 1",
        "╰───────────────────────────────────────",
        "",
        "Step 1, 0.1 s",
        "",
        "It is 1.",
        "",
        " • a",
        " • b",
    ]
    assert "1 step, 10 + 5 tokens, " in lines[-3]


def test_without_reasoning_steps_are_still_counted() -> None:
    screen = Screen()
    with LiveView(console(screen), reasoning=False) as view:
        view.reasoning("secret thoughts\n**Step 1** (0.1 s)\n")
        view.answer("yes")
    view.end(None)
    assert "secret" not in screen.getvalue()
    assert "1 step, " in screen.getvalue()


def test_a_terminal_without_box_characters_gets_none() -> None:
    screen = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="replace")
    with LiveView(console(screen), reasoning=True) as view:  # type: ignore[arg-type]
        view.reasoning("````text\nprinted\n````\n")
    screen.seek(0)
    shown = SEQUENCE.sub("", screen.read())
    assert "+- output" in shown
    assert "| printed" in shown
    assert "?" not in shown
