"""Chat completions as responses: the order of events, the cut of bytes, calls, tags, ends and faults."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from sanitize.think import Mode, scrub, split
from server.begun_response import begun_response
from server.response_schema import ResponseRequest
from streaming import chat_response, response_events
from streaming.chat_response import ChatResponse
from streaming.chunk_framing import frame_of, payload_of
from streaming.event_stages import DirectEvents
from streaming.failures import UpstreamFailed
from streaming.relay import ScrubOptions
from streaming.response_events import ResponseEvents
from streaming.translated_events import TranslatedEvents

GOLDEN = Path(__file__).parent / "data" / "translated_response.txt"
DONE = b"data: [DONE]\n\n"
ERROR = {"code": "upstream_failed", "message": "It broke.", "param": None, "type": "server_error"}

_event: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def stage_of(scrubbed: ScrubOptions | None = None, *, is_event_stream: bool = True) -> Any:
    begun = begun_response(
        ResponseRequest(store=False), id_="resp_5eed", created=1, model="up/model"
    )
    events = ResponseEvents(begun, now=lambda: 2.5)
    return TranslatedEvents(ChatResponse(events, scrubbed), is_event_stream=is_event_stream)


def scrubbing(mode: Mode, *, starts_open: bool = False) -> ScrubOptions:
    return ScrubOptions(mode, ("think", "thank"), starts_open)


def event(**choice: Any) -> bytes:
    chunk = {"id": "u", "choices": [{"index": 0, "delta": {}, "finish_reason": None} | choice]}
    return b"data: %b\n\n" % json.dumps(chunk).encode()


def delta(**fields: Any) -> bytes:
    return event(delta=fields)


def call(index: int | None, id_: str | None = None, **function: str) -> bytes:
    fields = {"index": index, "id": id_, "function": function}
    return delta(tool_calls=[{name: value for name, value in fields.items() if value is not None}])


def finish(reason: str = "stop") -> bytes:
    return event(finish_reason=reason)


def usage(**more: Any) -> bytes:
    told = {"prompt_tokens": 10, "completion_tokens": 5} | more
    return b"data: %b\n\n" % json.dumps({"choices": [], "usage": told}).encode()


ALL = b"".join(
    (
        delta(role="assistant", content=""),
        delta(reasoning_content="Hm", reasoning="Hm"),
        delta(reasoning=", yes.", content=""),
        delta(content="It is “"),
        b": ping\n\n",
        delta(content="warm”\u2028."),
        delta(refusal="But no."),
        call(0, "call_a", name="weather", arguments=""),
        call(0, arguments='{"city":'),
        call(0, arguments='"Paris"}'),
        call(1, "call_b", name="time", arguments="{}"),
        finish("tool_calls"),
        usage(
            prompt_tokens_details={"cached_tokens": 4},
            completion_tokens_details={"reasoning_tokens": 3},
        ),
        DONE,
    )
)


def translated(raw: bytes, scrubbed: ScrubOptions | None = None) -> list[Any]:
    stage = stage_of(scrubbed)
    return checked(stage.feed(raw) + stage.flush())


def checked(out: bytes) -> list[Any]:
    """The events' data, after a look at what holds for every stream; faults may come in between."""
    assert out.isascii()
    found = []
    for block in out.decode().removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        parsed = json.loads(data.removeprefix("data: "))
        assert name == f"event: {parsed['type']}"
        _event.validate_python(parsed)
        found.append(parsed)
    assert [one["sequence_number"] for one in found] == list(range(len(found)))
    check_nesting(found)
    return found


def check_nesting(events: list[Any]) -> None:
    """Items come one after the other, their parts likewise, and what is done is the sum of its deltas."""
    item: str | None = None
    part: tuple[str, int] | None = None
    text = ""
    for one in events:
        kind = one["type"]
        if kind == "response.output_item.added":
            assert item is None
            item, text = one["item"]["id"], ""
        elif kind == "response.output_item.done":
            assert (one["item"]["id"], part) == (item, None)
            item = None
        elif kind == "response.content_part.added":
            assert part is None
            part, text = (one["item_id"], one["content_index"]), ""
        elif kind == "response.content_part.done":
            assert (one["item_id"], one["content_index"]) == part
            part = None
        elif kind.endswith(".delta"):
            assert one["item_id"] == item
            assert one["delta"]
            text += one["delta"]
        elif kind.endswith((".text.done", "_text.done", "refusal.done", "arguments.done")):
            said = next(one[name] for name in ("text", "refusal", "arguments") if name in one)
            assert said == text


def final(events: list[Any]) -> Any:
    response = events[-1]["response"]
    Response.model_validate(response)
    done = [one["item"] for one in events if one["type"] == "response.output_item.done"]
    if response["status"] != "failed":
        assert response["output"] == done
    return response


def texts(response: Any) -> list[tuple[str, str]]:
    """Each part of each item, as its kind and its text."""
    found = []
    for item in response["output"]:
        if item["type"] == "function_call":
            found.append((item["name"], item["arguments"]))
        parts = item.get("content", [])
        found += [(part["type"], part.get("text") or part["refusal"]) for part in parts]
    return found


def test_every_kind_of_delta_has_its_bytes() -> None:
    stage = stage_of()
    out = stage.feed(ALL) + stage.flush()
    assert out == GOLDEN.read_bytes()
    events = checked(out)
    response = final(events)
    assert texts(response) == [
        ("reasoning_text", "Hm, yes."),
        ("output_text", "It is “warm”\u2028."),
        ("refusal", "But no."),
        ("weather", '{"city":"Paris"}'),
        ("time", "{}"),
    ]
    assert response["usage"] == {
        "input_tokens": 10,
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 3},
        "total_tokens": 15,
    }


@pytest.mark.parametrize("raw", [ALL, ALL.replace(b"\n", b"\r\n")], ids=["LF", "CRLF"])
def test_it_is_the_same_wherever_the_bytes_are_cut(raw: bytes) -> None:
    whole = GOLDEN.read_bytes()
    for cut in range(len(raw)):
        stage = stage_of()
        assert stage.feed(raw[:cut]) + stage.feed(raw[cut:]) + stage.flush() == whole
    stage = stage_of()
    assert b"".join(stage.feed(raw[i : i + 1]) for i in range(len(raw))) + stage.flush() == whole


TAGGED = "a<think>b</think>c &lt;think>d\\u003c/think> <think>\n\n</think>\n\ne < think f <thinker>"


@given(st.lists(st.integers(0, len(TAGGED))), st.sampled_from(["tags", "block", "reasoning"]))
def test_tags_are_scrubbed_as_in_a_whole_text_however_they_are_cut(
    cuts: list[int], mode: Mode
) -> None:
    places = [0, *sorted(cuts), len(TAGGED)]
    pieces = [TAGGED[i:j] for i, j in itertools.pairwise(places)]
    raw = b"".join(delta(content=piece) for piece in pieces) + finish() + DONE
    response = final(translated(raw, scrubbing(mode)))
    said = "".join(text for kind, text in texts(response) if kind == "output_text")
    thought = "".join(text for kind, text in texts(response) if kind == "reasoning_text")
    assert said == scrub(TAGGED, mode)
    assert thought == (split(TAGGED)[1] if mode == "reasoning" else "")


@given(st.data())
def test_frames_cut_anywhere_give_the_same_events(data: st.DataObject) -> None:
    framed = frame_of(ALL[:700]) + frame_of(ALL[700:]) + b"0\r\n\r\n"
    places = sorted(data.draw(st.sets(st.integers(1, len(framed) - 1), max_size=6)))
    places = [0, *places, len(framed)]
    direct = DirectEvents(stage_of())
    out = b"".join(direct.feed(framed[i:j]) for i, j in itertools.pairwise(places))
    assert direct.ended
    assert payload_of(out + direct.flush()) == GOLDEN.read_bytes()


def test_text_in_an_open_block_is_reasoning_and_fields_lose_their_tags() -> None:
    raw = (
        delta(reasoning_content="<think>x</thi")
        + delta(reasoning_content="nk>y <")
        + delta(content="a</th")
        + delta(content="ink>b <")
        + call(0, "call_a", name="f", arguments='{"t":"<think>"}')
        + delta(refusal="<think>no")
        + finish()
        + DONE
    )
    response = final(translated(raw, scrubbing("reasoning", starts_open=True)))
    assert texts(response) == [
        ("reasoning_text", "xy <a"),
        ("output_text", "b <"),
        ("f", '{"t":"<think>"}'),
        ("refusal", "no"),
    ]
    plain = final(translated(raw))
    assert ("output_text", "a</think>b <") in texts(plain)


def test_without_scrubbing_a_tag_goes_on() -> None:
    raw = delta(content="<think>a</think>") + finish() + DONE
    assert texts(final(translated(raw))) == [("output_text", "<think>a</think>")]


@pytest.mark.parametrize(
    "deltas",
    [
        # Interleaved, numbered.
        [
            call(0, "a", name="f", arguments=""),
            call(1, "b", name="g", arguments=""),
            call(0, arguments='{"x":'),
            call(1, arguments='{"y":'),
            call(0, arguments="1}"),
            call(1, arguments="2}"),
        ],
        # All numbered 0 (Gemini), or not at all.
        [
            call(0, "a", name="f", arguments='{"x":1}'),
            call(0, "b", name="g", arguments='{"y":2}'),
        ],
        [
            call(None, "a", name="f", arguments='{"x":'),
            call(None, arguments="1}"),
            call(None, "b", name="g", arguments='{"y":2}'),
        ],
        # The name later than the id, and repeated.
        [
            call(0, "a", arguments=""),
            call(0, name="f", arguments='{"x":'),
            call(0, "a", name="f", arguments="1}"),
            call(1, "b", name="g", arguments='{"y":2}'),
        ],
    ],
)
def test_calls_come_one_after_the_other_however_they_are_numbered(deltas: list[bytes]) -> None:
    response = final(translated(b"".join(deltas) + finish("tool_calls") + DONE))
    told = [(item["call_id"], item["name"], item["arguments"]) for item in response["output"]]
    assert told == [("a", "f", '{"x":1}'), ("b", "g", '{"y":2}')]


def test_a_call_is_done_when_the_next_begins_and_not_before_the_end_otherwise() -> None:
    stage = stage_of()
    stage.feed(call(0, "a", name="f", arguments='{"x":1}'))
    assert b"response.output_item.done" in stage.feed(call(1, "b", name="g", arguments="{"))
    assert stage.feed(call(2, "c", name="h", arguments="{}")) == b""
    out = stage.feed(call(1, arguments="}") + finish("tool_calls") + DONE)
    names = [json.loads(line)["item"]["name"] for line in _data(out, "response.output_item.done")]
    assert names == ["g", "h"]


PIECES = st.text(st.sampled_from('a<think>/&l;" \n\u2028é😀{}'), max_size=8)
DELTAS = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(["content", "refusal", "reasoning", "reasoning_content"]), PIECES
        ),
        st.tuples(st.integers(0, 3), st.sampled_from(["", "{", "}", "{}", '{"a":1}', " "])),
    ),
    max_size=25,
)


@given(DELTAS, st.sampled_from([None, "tags", "block", "reasoning"]), st.data())
def test_whatever_comes_the_events_are_nested_and_the_same_however_cut(
    deltas: list[tuple[Any, str]], mode: Mode | None, data: st.DataObject
) -> None:
    raw = b"".join(
        call(name, f"c{name}", name="f", arguments=text)
        if isinstance(name, int)
        else delta(**{name: text})
        for name, text in deltas
    )
    raw += finish() + usage() + DONE
    scrubbed = None if mode is None else scrubbing(mode)
    outs = []
    for cut in (0, data.draw(st.integers(0, len(raw)))):
        stage = stage_of(scrubbed)
        out = b""
        try:
            out += stage.feed(raw[:cut])
            out += stage.feed(raw[cut:])
            out += stage.flush()
        except UpstreamFailed:  # a call went on behind its end
            out += stage.fail(ERROR)
        outs.append(out)
    assert outs[0] == outs[1]
    events = checked(outs[0])
    response = final(events)
    if response["status"] == "completed" and mode is None:
        for kind, names in (
            ("output_text", {"content"}),
            ("refusal", {"refusal"}),
            ("reasoning_text", {"reasoning", "reasoning_content"}),
        ):
            said = "".join(text for name, text in deltas if name in names)
            assert "".join(text for told, text in texts(response) if told == kind) == said
        for index in range(4):
            said = "".join(text for name, text in deltas if name == index)
            of_call = [one for one in response["output"] if one.get("call_id") == f"c{index}"]
            assert "".join(one["arguments"] for one in of_call).strip() == said.strip()


def _data(out: bytes, name: str) -> list[str]:
    blocks = out.decode().removesuffix("\n\n").split("\n\n")
    return [
        block.partition("data: ")[2] for block in blocks if block.startswith(f"event: {name}\n")
    ]


def test_a_call_without_an_id_gets_one() -> None:
    response = final(translated(call(0, name="f", arguments="") + finish("tool_calls") + DONE))
    assert response["output"][0]["call_id"] == "call_5eed0000"


@pytest.mark.parametrize(
    ("reason", "status", "why"),
    [
        ("stop", "completed", None),
        ("tool_calls", "completed", None),
        ("length", "incomplete", "max_output_tokens"),
        ("content_filter", "incomplete", "content_filter"),
    ],
)
def test_the_finish_reason_says_what_became_of_it(
    reason: str, status: str, why: str | None
) -> None:
    events = translated(delta(content="hi") + finish(reason) + DONE)
    response = final(events)
    assert events[-1]["type"] == f"response.{status}"
    assert (response["status"], response["output"][0]["status"]) == (status, status)
    assert response["incomplete_details"] == (why and {"reason": why})
    assert response["completed_at"] == (2 if status == "completed" else None)
    assert response["usage"] is None


def test_the_end_waits_for_the_usage_and_nothing_comes_behind_it() -> None:
    stage = stage_of()
    assert b"response.output_item.done" in stage.feed(delta(content="hi") + finish())
    assert stage.feed(delta(content="more") + finish()) == b""
    assert b"response.completed" in stage.feed(usage() + DONE)
    assert stage.feed(delta(content="more") + b"data: nonsense\n\n") + stage.flush() == b""
    assert stage.fail(ERROR) == b""


def test_a_stream_may_end_with_its_finish_or_its_done_alone_but_not_without_both() -> None:
    for raw in (delta(content="hi") + finish(), delta(content="hi") + DONE):
        assert final(translated(raw))["status"] == "completed"
    for raw in (delta(content="hi"), b"", DONE, usage()):
        stage = stage_of()
        with pytest.raises(UpstreamFailed):
            checked(stage.feed(raw) + stage.flush())


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b'data: {"error": {"message": "out of memory at /opt/x"}}\n\n', "out of memory at"),
        (b'data: {"object": "error", "message": "no"}\n\n', "The upstream failed: no"),
        (finish("error") + DONE, "did not say why"),
        (b"data: nonsense\n\n", "no chat completion"),
        (b'data: {"choices": 1}\n\n', "no chat completion"),
        (
            call(0, "a", name="f", arguments="{}") + delta(content="x") + call(0, arguments="more"),
            "went on with a call",
        ),
    ],
)
def test_a_fault_in_a_stream_fails_the_response_and_loses_nothing_before_it(
    raw: bytes, said: str
) -> None:
    stage = stage_of()
    with pytest.raises(UpstreamFailed, match=said) as caught:
        stage.feed(delta(content="so far ") + raw)
    out = stage.fail(ERROR | {"message": caught.value.message})
    events = checked(out)
    assert events[-1]["type"] == "response.failed"
    response = final(events)
    assert response["error"] == {"code": "server_error", "message": caught.value.message}
    assert "/opt" not in caught.value.message
    assert texts(response)[0] == ("output_text", "so far ")


def test_what_was_open_when_it_failed_is_told_as_incomplete() -> None:
    stage = stage_of()
    begun = stage.feed(call(0, "a", name="f", arguments='{"x'))
    limited = ERROR | {"type": "rate_limit_error"}
    response = final(checked(begun + stage.fail(limited)))
    assert response["error"]["code"] == "rate_limit_exceeded"
    (item,) = response["output"]
    assert (item["status"], item["arguments"]) == ("incomplete", '{"x')


def test_a_fault_before_the_first_event_is_an_error() -> None:
    stage = stage_of()
    assert checked(stage.fail(ERROR)) == [
        {"type": "error", "sequence_number": 0, "code": "upstream_failed"}
        | {"message": "It broke.", "param": None}
    ]


def test_halves_of_a_character_come_together() -> None:
    raw = b"".join(
        b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % half
        for half in (b"a\\ud83d", b"\\ude00b", b"c\\ud83d")
    )
    assert texts(final(translated(raw + finish() + DONE))) == [("output_text", "a😀bc\ufffd")]


def test_what_says_nothing_of_use_is_passed_over() -> None:
    odd = delta(content="hi", refusal={}, tool_calls=None) + finish()
    odd += b'data: {"choices":[],"usage":{"prompt_tokens":1,"prompt_tokens_details":[]}}\n\n'
    response = final(translated(b'data: {"choices":[],"prompt_filter":1}\n\n' + odd + DONE))
    assert texts(response) == [("output_text", "hi")]
    assert response["usage"]["input_tokens_details"]["cached_tokens"] == 0


def test_content_in_parts_is_text() -> None:
    raw = delta(content=[{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])
    assert texts(final(translated(raw + finish() + DONE))) == [("output_text", "ab")]


WHOLE: dict[str, Any] = {
    "choices": [
        {
            "index": 0,
            "message": {
                "content": "<think>x</think>hi",
                "reasoning_content": "hm",
                "tool_calls": [
                    {"id": "a", "function": {"name": "f", "arguments": "{}"}},
                    {"id": "b", "function": {"name": "g", "arguments": "{}"}},
                ],
            },
            "finish_reason": "tool_calls",
        }
    ],
    "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
}


def whole(raw: bytes, stage: Any) -> Any:
    """The response that no stream was asked for."""
    stage.feed(raw)
    stage.flush()
    return json.loads(stage.response)


def test_a_whole_completion_is_a_whole_response_and_a_stream_where_one_was_asked_for() -> None:
    raw = json.dumps(WHOLE).encode()
    response = whole(raw, stage_of(scrubbing("block"), is_event_stream=False))
    Response.model_validate(response)
    assert texts(response) == [
        *(("reasoning_text", "hm"), ("output_text", "hi"), ("f", "{}"), ("g", "{}"))
    ]
    stage = stage_of(scrubbing("block"), is_event_stream=False)
    assert stage.feed(raw[:50]) + stage.feed(raw[50:]) == b""
    assert final(checked(stage.flush())) == response
    streamed = stage_of(scrubbing("block"))
    assert whole(delta(content="hi") + finish() + DONE, streamed)["output"] == [
        response["output"][1] | {"id": "msg_5eed0000"}
    ]


@pytest.mark.parametrize("raw", [b"", b"<html>", b"[]", b"{}", b'{"error": {"message": "no"}}'])
def test_what_is_no_completion_fails(raw: bytes) -> None:
    with pytest.raises(UpstreamFailed):
        whole(raw, stage_of(is_event_stream=False))


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response_events, "MAX_CHARACTERS", 10)
    monkeypatch.setattr(chat_response, "MAX_CHARACTERS", 10)
    stage = stage_of()
    stage.feed(delta(content="0123456789"))
    with pytest.raises(UpstreamFailed, match="too long"):
        stage.feed(delta(content="x"))
    with pytest.raises(UpstreamFailed, match="too long"):
        stage_of().feed(call(0, "a", name="f", arguments="{") + call(1, "b", arguments="x" * 10))
    monkeypatch.setattr(response_events, "MAX_PARTS", 2)
    with pytest.raises(UpstreamFailed, match="too many parts"):
        stage_of().feed(delta(content="a") + delta(refusal="b") + delta(content="c"))
    monkeypatch.setattr(chat_response, "MAX_CALLS", 1)
    stage = stage_of()
    stage.feed(call(0, "a", name="f", arguments="{}"))
    with pytest.raises(UpstreamFailed, match="too many calls"):
        stage.feed(call(1, "b", name="f", arguments="{}"))
