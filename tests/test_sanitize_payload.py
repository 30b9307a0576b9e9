"""scrub_reply: a whole reply without think tags, and otherwise as it was."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from sanitize.payload import scrub_reply
from sanitize.think import Mode

Json = dict[str, Any]

CASES: list[Json] = json.loads(
    (Path(__file__).parent / "data" / "think_cases.json").read_text(encoding="utf-8")
)


def reply(message: Any, **more: Any) -> Json:
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"id": "c1", "object": "chat.completion", "choices": [choice], "usage": {"x": 1}, **more}


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["id"]))
def test_a_recorded_case_comes_out_right(case: Json) -> None:
    source = reply({"role": "assistant", "content": "".join(case["chunks"])})
    read = scrub_reply(source, case["mode"], starts_open=case["starts_open"])
    reasoning = dict.fromkeys(("reasoning_content", "reasoning"), case["reasoning"])
    moved = reasoning if case["reasoning"] else {}
    assert read == reply({"role": "assistant", "content": case["content"], **moved})


@pytest.mark.parametrize("mode", ["tags", "block", "reasoning"])
def test_only_text_for_the_reader_is_read(mode: Mode) -> None:
    call = {"id": "<think>", "function": {"name": "<think>", "arguments": '"<think>"'}}
    message = {"content": None, "tool_calls": [call], "<think>": "<think>", "refusal": "a<think>b"}
    read = scrub_reply(reply(message, model="<think>"), mode)
    assert read == reply({**message, "refusal": "ab"}, model="<think>")
    assert list(read) == list(reply(message, model="<think>"))


def test_the_given_reply_is_not_changed() -> None:
    source = reply(
        {"content": [{"type": "text", "text": "<think>a</think>b"}], "reasoning": "<think>"}
    )
    before = copy.deepcopy(source)
    scrub_reply(source, "reasoning")
    assert source == before


def test_moved_text_is_put_after_the_reasoning_that_is_there() -> None:
    def fields(**more: str | None) -> Json:
        message = {"content": "<think>b</think>c", **more}
        read: Json = scrub_reply(reply(message), "reasoning")["choices"][0]["message"]
        return read

    assert fields() == {"content": "c", "reasoning_content": "b", "reasoning": "b"}
    for source in (
        {"reasoning_content": "a</think>"},
        {"reasoning": "a", "reasoning_content": None},
    ):
        assert fields(**source) == {"content": "c", "reasoning_content": "ab", "reasoning": "ab"}
    both = {"reasoning_content": "a", "reasoning": "A"}
    assert fields(**both) == {"content": "c", "reasoning_content": "ab", "reasoning": "Ab"}


def test_starting_open_is_for_content_alone() -> None:
    message = {"content": "a</think>b", "reasoning": "c", "refusal": "d"}
    (choice,) = scrub_reply(reply(message), "block", starts_open=True)["choices"]
    assert choice["message"] == {**message, "content": "b"}


def test_content_parts_are_read_as_one_text() -> None:
    image = {"type": "image_url", "image_url": {"url": "<think>"}}
    parts = [{"type": "text", "text": "a<think>b"}, image, {"type": "text", "text": "</think>"}]
    (choice,) = scrub_reply(reply({"content": parts}), "block")["choices"]
    assert choice["message"]["content"] == [{"type": "text", "text": "a"}, image]


def test_every_choice_is_read_from_its_own_start() -> None:
    texts = ["<think>a", "b</think>c<thi"]
    source = {"choices": [{"message": {"content": text}} for text in texts]}
    read = scrub_reply(source, "block")["choices"]
    assert [choice["message"]["content"] for choice in read] == ["", "bc<thi"]


def test_legacy_completions_are_read_too() -> None:
    source = {"object": "text_completion", "choices": [{"text": "<think>a</think>b", "index": 0}]}
    assert scrub_reply(source)["choices"] == [{"text": "ab", "index": 0}]
    moved = {"reasoning_content": "a", "reasoning": "a"}
    assert scrub_reply(source, "reasoning")["choices"] == [{"text": "b", "index": 0, **moved}]


def test_other_tag_names_are_used_for_every_field() -> None:
    message = {"content": "<r>a<think>", "reasoning": "<r>b"}
    (choice,) = scrub_reply(reply(message), tag_names=("r",))["choices"]
    assert choice["message"] == {"content": "a<think>", "reasoning": "b"}


@pytest.mark.parametrize(
    "odd",
    [
        {},
        {"error": {"message": "<think>"}},
        {"choices": None},
        {"choices": "<think>"},
        {"choices": [None, "<think>", 5, {}]},
        reply(None),
        reply("<think>"),
        reply({}),
        reply({"content": 5, "reasoning": ["<think>"], "refusal": None}),
        reply({"content": ["<think>", {"type": "text"}, {"type": "x", "text": "<think>"}, None]}),
    ],
)
def test_what_is_no_such_reply_is_returned_as_it_is(odd: Json) -> None:
    assert scrub_reply(odd, "reasoning", starts_open=True) == odd
