"""Events → reasoning and answer, exactly; nothing twice, fences whole."""

import time
from collections.abc import Callable, Sequence

import pytest

from streaming.events import (
    Event,
    Failure,
    Final,
    ModelDelta,
    Note,
    Plan,
    Print,
    Started,
    Stdout,
    Step,
    ToolCall,
)
from streaming.transcript import Transcript


def told(*events: Event) -> str:
    transcript = Transcript()
    return "".join(map(transcript.feed, events))


def deltas(text: str, size: int = 3) -> list[Event]:
    return [ModelDelta(text[at : at + size]) for at in range(0, len(text), size)]


def test_a_whole_step_reads_as_markdown() -> None:
    text = told(
        *deltas("I print.\n<code>\nprint(1)\n2\n"),  # the stop sequence eats </code>
        Print("1\n"),
        Step(number=1, code="print(1)\n2", observation="2", seconds=0.25),
    )
    assert text == (
        "I print.\n```python\nprint(1)\n2\n```\n\n````text\n1\n````\n\n"
        "````text\n2\n````\n\n**Step 1** (0.25 s)\n"
    )


def test_code_that_was_not_streamed_is_shown_by_its_step() -> None:
    assert "```python\nx = 1\n```\n" in told(Step(number=1, code="x = 1"))
    streamed = told(*deltas("<code>\nx = 1\n</code>"), Step(number=1, code="x = 1"))
    assert streamed.count("x = 1") == 1


def test_every_size_of_delta_gives_the_same_text() -> None:
    text = "<think>hm</think>Well.\n<code>\nfor i in x:\n    print('<thinker>')\n</code> done"
    whole = told(*deltas(text, 1000))
    assert all(told(*deltas(text, size)) == whole for size in range(1, 12))
    assert whole.count("```") == 2


def test_prints_are_cleaned_and_cannot_break_out_of_their_fence() -> None:
    text = told(
        Print("<think>a</think>\n"),
        Stdout("╭──────╮\n"),
        Print("```\n````\nplain\n"),
        Print("no line end"),
        Final("x"),
    )
    assert text == "````text\na\n```\n    ````\nplain\nno line end\n````\n"


def test_plans_notes_tool_calls_and_errors_stand_in_blocks_of_their_own() -> None:
    text = told(
        Plan("first this"),
        Note("by the way"),
        ToolCall("1", "search", '{"q": 1}'),
        Step(number=1, error="it broke"),
    )
    assert text == (
        'first this\n\nby the way\n\nTool call: `search({"q": 1})`\n\n'
        "**Error:** it broke\n\n**Step 1** (0.00 s)\n"
    )
    assert told(*deltas("the plan"), Plan("the plan")).count("the plan") == 1


def test_markdown_code_tags_are_left_alone() -> None:
    text = told(Started("a", ("```python", "```")), *deltas("```python\nx\n```\n"))
    assert text == "```python\nx\n```\n"


@pytest.mark.parametrize(
    ("prints", "answer", "expected"),
    [
        (["Final answer: 7\n"], None, "7"),
        (["final answer:  se", "ven \n", "x\n"], "", "seven"),
        (["Final answer: 1\nFinal answer: 2"], None, "2"),
        (["Final answer: 7\n"], "8", "8"),
        (["Final answer:\n"], None, "Done."),
        ([], "  ", "Done."),
        ([], "none", "none"),
        ([], "<think>x</think>y", "xy"),
        ([], "<think></think>", "Done."),
    ],
)
def test_the_answer(prints: Sequence[str], answer: str | None, expected: str) -> None:
    transcript = Transcript()
    for text in prints:
        transcript.feed(Print(text))
    transcript.feed(Final(answer))
    assert transcript.answer == expected


def test_a_failure_leaves_no_answer() -> None:
    transcript = Transcript()
    transcript.feed(Failure("it failed"))
    assert transcript.answer is None
    assert transcript.failure == Failure("it failed")


def seconds_of(work: Callable[[], object]) -> float:
    """The least of three, in seconds of this process."""
    least = float("inf")
    for _ in range(3):
        began = time.process_time()
        work()
        least = min(least, time.process_time() - began)
    return least


@pytest.mark.parametrize(
    "make",
    [
        lambda n: "\n" * n,
        lambda n: "````" + "\n" * n,
        lambda n: "final answer: a" + " " * n + "b",
        lambda n: " " * n,
        lambda n: "`" * n,
        lambda n: "   \n" * (n // 4) + "````",
        lambda n: "│" * n,
        lambda n: "<" * n,
        lambda n: "<code>\n```\n" * (n // 11),
    ],
)
@pytest.mark.parametrize("kind", [Print, ModelDelta, Final])
def test_any_text_is_read_in_linear_time(
    make: Callable[[int], str], kind: Callable[[str], Event]
) -> None:
    def work(size: int) -> Callable[[], object]:
        text = make(size)
        return lambda: told(kind(text), Print("\n"), Final(None))

    few, many = seconds_of(work(20_000)), seconds_of(work(80_000))
    assert many < 8 * few + 0.05


def test_a_line_printed_a_character_at_a_time_is_read_in_no_time() -> None:
    transcript = Transcript()

    def work() -> None:
        for _ in range(50_000):
            transcript.feed(Print("x"))

    assert seconds_of(work) < 2


def test_two_blocks_of_code_in_one_reply_are_shown_once() -> None:
    text = told(
        *deltas("One.\n<code>\na = 1\n</code>\nTwo.\n<code>\nb = 2\n</code>"),
        Step(number=1, code="a = 1\n\nb = 2"),
    )
    assert text == (
        "One.\n```python\na = 1\n```\nTwo.\n```python\nb = 2\n```\n\n**Step 1** (0.00 s)\n"
    )


def test_code_that_smolagents_mends_is_shown_once() -> None:
    text = told(
        *deltas("<code>\nfinal_answer = 5\nfinal_answer(final_answer)\n</code>"),
        Step(number=1, code="final_answer_variable = 5\nfinal_answer(final_answer_variable)"),
    )
    assert text.count("```python") == 1
    assert "variable" not in text


def test_the_next_steps_code_is_shown_where_only_the_first_was_streamed() -> None:
    text = told(
        *deltas("<code>\na = 1\n</code>"),
        Step(number=1, code="a = 1"),
        *deltas("no code"),
        Step(number=2, code="b = 2"),
    )
    assert text.count("a = 1") == text.count("b = 2") == 1


def test_an_open_code_tag_in_a_thought_does_not_swallow_the_codes_fence() -> None:
    text = told(
        ModelDelta("maybe <code>\nwrong()", thinking=True),
        *deltas("Well.\n<code>\nright()\n</code>"),
        Step(number=1, code="right()"),
    )
    assert text == (
        "maybe \n```python\nwrong()\n```\n\nWell.\n```python\nright()\n```\n\n**Step 1** (0.00 s)\n"
    )


def test_code_in_a_thought_does_not_stand_for_the_steps_own() -> None:
    text = told(
        ModelDelta("<code>\nwrong()\n</code>", thinking=True), Step(number=1, code="right()")
    )
    assert "```python\nright()\n```\n" in text


FENCED = "x = '''\n```\n  ````\n```python\n    ```\n'''"


def test_code_that_holds_a_fence_stays_in_one_block() -> None:
    for size in range(1, 9):
        text = told(*deltas(f"<code>\n{FENCED}\n</code>\nafter", size))
        assert text == (
            "```python\nx = '''\n    ```\n      ````\n```python\n    ```\n'''\n```\nafter"
        )


def test_a_steps_own_code_that_holds_a_fence_stays_in_one_block() -> None:
    assert told(Step(number=1, code=FENCED)) == (
        f"`````python\n{FENCED}\n`````\n\n**Step 1** (0.00 s)\n"
    )
