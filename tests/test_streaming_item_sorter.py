"""A run's events are sorted alike however its texts were cut: thoughts, code without fences, logs."""

from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from streaming.events import (
    Event,
    Final,
    ModelCalled,
    ModelDelta,
    Print,
    Started,
    Step,
    ToolCall,
    ToolGave,
)
from streaming.item_sorter import (
    Act,
    Code,
    CodeEnds,
    CodeRuns,
    ItemSorter,
    Logs,
    Thought,
    ToolBegins,
    ToolEnds,
)

STARTED = Started("a", ("<code>", "</code>"))


def sorted_acts(events: list[Event], **options: Any) -> list[Act]:
    """The acts, adjacent texts of a kind as one."""
    sorter = ItemSorter(**options)
    found: list[Act] = []
    for event in events:
        for act in sorter.feed(event):
            last = found[-1] if found else None
            if isinstance(act, Thought | Code | Logs) and type(act) is type(last):
                found[-1] = type(act)(last.text + act.text)
            else:
                found.append(act)
    return found


def cut(text: str, places: list[int]) -> list[Event]:
    marks = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [ModelDelta(text[a:b]) for a, b in pairwise(marks) if a != b]


WRITTEN = (
    "I <think>hm</think> see.\n```text\nno code\n```\n<code>\na = '``'\n\nif a:\n    print(a)\n</code>\nthen\n"
    "<code>\nfinal_answer(1)\n</code>"
)


@given(st.lists(st.integers(0, 10_000), max_size=20))
def test_code_is_the_same_however_it_was_cut(places: list[int]) -> None:
    ends = [ModelCalled(1, 1), Print("out\n"), Step(1, code="x", seconds=1), Final("1")]
    acts = sorted_acts([STARTED, *cut(WRITTEN, places), *ends])
    thoughts = "".join(act.text for act in acts if isinstance(act, Thought))
    code = "".join(act.text for act in acts if isinstance(act, Code))
    assert code == "a = '``'\n\nif a:\n    print(a)\n\nfinal_answer(1)"
    assert thoughts == "I hm see.\n```text\nno code\n```\nthen\n"
    assert acts[-3:] == [CodeRuns(), Logs("out\n"), CodeEnds()]


def test_code_that_was_not_streamed_is_told_by_its_step() -> None:
    step = Step(1, code="print(1)", observation="1", error="it broke")
    assert sorted_acts([STARTED, step]) == [
        *(Code("print(1)"), CodeRuns(), Logs("1\nError: it broke\n"), CodeEnds(failed=True))
    ]


def test_what_a_managed_agent_runs_stands_within_what_its_manager_runs() -> None:
    inner = [*cut("<code>\ninner()\n</code>", []), ModelCalled(1, 1), Print("in\n")]
    events = [*cut("<code>\nouter()\n</code>", []), ModelCalled(1, 1), *inner]
    events += [
        ModelDelta("and so on\n"),
        ModelCalled(1, 1),
        Print("out\n"),
        Step(1, code="outer()"),
    ]
    assert sorted_acts([STARTED, *events]) == [
        *(Code("outer()"), CodeRuns(), Code("inner()"), CodeRuns(), Logs("in\n"), CodeEnds()),
        *(Thought("and so on\n"), Logs("out\n"), CodeEnds()),
    ]


def test_an_agent_that_writes_no_code_only_thinks_and_calls() -> None:
    events: list[Event] = [
        Started("a"),
        ModelDelta("```python\nx\n```\n"),
        ToolCall("1", "look", "{}", "files"),
        ToolCall("2", "of_the_client", "{}"),
        ToolCall("3", "final_answer", "{}"),
        ToolGave("1", "seen"),
        ToolGave("2", "not told"),
        Step(1, observation="seen"),
    ]
    assert sorted_acts(events, client_tools={"of_the_client"}) == [
        Thought("```python\nx\n```\n"),
        *(ToolBegins("1", "look", "{}", "files"), ToolEnds("1", "seen")),
    ]


def test_what_is_open_when_a_run_fails_is_ended() -> None:
    from streaming.events import Failure

    events = [STARTED, *cut("<code>\nx = 1", []), Failure("no")]
    assert sorted_acts(events) == [Code("x = 1"), CodeRuns(), CodeEnds(failed=True)]


def test_a_tool_of_an_mcp_server_is_told_with_its_name() -> None:
    from smolagents.memory import ToolCall as AgentToolCall

    from streaming.steps import StepReader

    reader = StepReader(writes_code=False, servers={"look": "files"})
    calls = [AgentToolCall("look", {"at": 1}, "1"), AgentToolCall("own", {}, "2")]
    events = [event for call in calls for event in reader.events(call, printed_live=False)]
    assert events == [ToolCall("1", "look", '{"at": 1}', "files"), ToolCall("2", "own", "{}")]
