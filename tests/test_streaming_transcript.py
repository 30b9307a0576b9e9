"""Events → reasoning and answer, exactly; nothing twice, fences whole."""

from collections.abc import Sequence

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
