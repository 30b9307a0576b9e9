"""What crosses between the server and a run elsewhere arrives as it was, or is refused."""

import msgspec
import pytest

from streaming import failures
from streaming.events import (
    Began,
    CodeRan,
    Event,
    Failure,
    Final,
    ModelCalled,
    ModelDelta,
    Note,
    Paused,
    Plan,
    Print,
    Remembered,
    Started,
    Stdout,
    Step,
    ToolCall,
    ToolGave,
    ToolRan,
)
from streaming.failures import AgentFailed, SmolgateError, UpstreamRefused
from streaming.run_spec import AnswerFormat, CalledTool, ClientToolSpec, Image, RunSpec, Turn
from streaming.runners.run_wire import (
    Asked,
    decode_events,
    decode_from_worker,
    encode_events,
    encode_frame,
    error_of,
    refusal,
)

EVENTS: list[Event] = [
    Started("a", ("<code>", "</code>")),
    ModelDelta("é😀", thinking=True),
    Began("tool", "t"),
    ModelCalled(1, 2, 3, 0.5, failed=True),
    CodeRan(0.5, failed=True),
    ToolRan("t", 0.5, failed=True),
    Print("row\n"),
    Stdout("out"),
    ToolCall("1", "t", "{}", "server"),
    ToolGave("1", "given", failed=True),
    Remembered(b"\xff\x00"),
    Step(1, "code", None, "error", 0.1),
    Plan("plan", 0.5),
    Note("note"),
    Paused((CalledTool("1", "t", '{"a": 1}'),)),
    Final(None, cut=True),
    Failure("m", "c", "t", 503, "p", 1.5),
]


def leaves(kind: type[SmolgateError]) -> list[type[SmolgateError]]:
    return [kind, *(leaf for sub in kind.__subclasses__() for leaf in leaves(sub))]


def test_every_event_survives_the_trip() -> None:
    assert {type(event) for event in EVENTS} == set(Event.__subclasses__())
    assert decode_events(encode_events(EVENTS)) == EVENTS


def test_what_has_no_utf8_becomes_a_question_mark_and_the_rest_stays() -> None:
    sent = [Print("half \ud83d of it"), Final("whole 😀")]
    assert decode_events(encode_events(sent)) == [Print("half ? of it"), Final("whole 😀")]
    asked = Asked(1, "model", {"messages": [{"content": "\ud800", "image": b"\xff"}]}, 7)
    received = decode_from_worker(encode_frame(asked)[4:])
    assert received == Asked(1, "model", {"messages": [{"content": "?", "image": b"\xff"}]}, 7)


@pytest.mark.parametrize(
    "kind",
    [kind for kind in leaves(SmolgateError) if kind.__module__ == failures.__name__],
    ids=lambda kind: kind.__name__,
)
def test_every_error_is_raised_as_what_it_was(kind: type[SmolgateError]) -> None:
    if kind is UpstreamRefused:
        error: SmolgateError = UpstreamRefused("no", upstream_status=429, retry_after=2.0)
    else:
        error = kind("no", param="p", code="c", retry_after=1.0)
    told = error_of(
        msgspec.msgpack.decode(
            msgspec.msgpack.encode(refusal(3, error)), type=type(refusal(3, error))
        )
    )
    assert type(told) is kind
    assert vars(told) == vars(error)


def test_an_error_of_another_kind_keeps_its_text_to_itself() -> None:
    told = error_of(refusal(1, RuntimeError("secret")))
    assert type(told) is AgentFailed
    assert "secret" not in told.message
    assert "RuntimeError" in told.message


def test_a_spec_is_made_of_plain_values() -> None:
    spec = RunSpec(
        run_id="r",
        agent="a",
        task="t",
        images=(Image("image/png", b"\x89"),),
        history=(Turn("assistant", "before", tool_calls=(CalledTool("1", "t", "{}"),)),),
        effort="low",
        stop=("end",),
        answer_format=AnswerFormat(schema={"type": "object"}, name="n"),
        tools=(ClientToolSpec(name="t", parameters={"type": "object"}, strict=True),),
        must_call=("t",),
        parallel_tool_calls=False,
        user="u",
        metadata={"m": "1"},
        model_options={"seed": 1},
    )
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(spec), type=RunSpec) == spec


def test_what_is_no_message_is_refused() -> None:
    for junk in (b"", b"\x00", b"\x93\xa4none\x01\x02", msgspec.msgpack.encode(["asked"])):
        with pytest.raises(msgspec.MsgspecError):
            decode_from_worker(junk)
