"""What holds for every response: the order of its events, their shapes by the SDK's own types, and that what streams is
what the object holds.
"""

import json
from typing import Any, get_args

from openai import BaseModel
from openai.types import responses
from openai.types.responses import ResponseStreamEvent

from server.response_wire import LIVE_LOGS

Json = dict[str, Any]

# What OpenAI's own types of this version have not: Open Responses asks for them, or openai 2.x does.
BEYOND = {
    ("Response", "frequency_penalty"),
    ("Response", "presence_penalty"),
    ("Response", "store"),
    ("Response", "user"),
    ("ResponseFunctionCallArgumentsDoneEvent", "name"),
}
# Open Responses: what every response object has, be it null.
RESOURCE = frozenset(
    """id object created_at completed_at status incomplete_details model previous_response_id instructions output error
    tools tool_choice truncation parallel_tool_calls text top_p presence_penalty frequency_penalty top_logprobs temperature
    reasoning user usage max_output_tokens max_tool_calls store background service_tier metadata safety_identifier
    prompt_cache_key""".split()
)
EVENT_TYPES: dict[str, type[BaseModel]] = {
    get_args(kind.model_fields["type"].annotation)[0]: kind
    for kind in get_args(get_args(ResponseStreamEvent)[0])
}
LAST = ("response.completed", "response.incomplete", "response.failed")
# What stands between an item's first event and its last, by its type.
INSIDE = {
    "reasoning": (
        "response.content_part.added",
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
        "response.content_part.done",
        "response.reasoning_summary_part.added",
        "response.reasoning_summary_text.delta",
        "response.reasoning_summary_text.done",
        "response.reasoning_summary_part.done",
    ),
    "code_interpreter_call": (
        "response.code_interpreter_call.in_progress",
        "response.code_interpreter_call_code.delta",
        "response.code_interpreter_call_code.done",
        "response.code_interpreter_call.interpreting",
        f"{LIVE_LOGS}.delta",
        "response.code_interpreter_call.completed",
    ),
    "mcp_call": (
        "response.mcp_call.in_progress",
        "response.mcp_call_arguments.delta",
        "response.mcp_call_arguments.done",
        "response.mcp_call.completed",
        "response.mcp_call.failed",
    ),
    "function_call": (
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
    ),
    "message": (
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
    ),
}


def events_in(raw: bytes) -> list[Json]:
    """The events of a stream, which ends with `[DONE]`; heartbeats are skipped."""
    *blocks, rest = raw.split(b"\n\n")
    assert rest == b""
    blocks = [block for block in blocks if not block.startswith(b":")]
    assert blocks.pop() == b"data: [DONE]"
    events = []
    for block in blocks:
        name, *lines = block.split(b"\n")
        assert all(line.startswith(b"data: ") and line.isascii() for line in lines)
        assert max(map(len, lines)) < 64 * 1024
        data = json.loads(b"\n".join(line[6:] for line in lines))
        assert name == b"event: " + data["type"].encode()
        events.append(data)
    return events


def check_stream(events: list[Json], *, start: int = 0) -> Json:
    """Every rule; returns the last response object."""
    assert [event["sequence_number"] for event in events] == list(range(start, start + len(events)))
    for event in events:
        if not event["type"].startswith(LIVE_LOGS):
            check_shape(event, EVENT_TYPES[event["type"]])
    kinds = [event["type"] for event in events]
    if not start:
        begun = "queued" if "response.queued" in kinds else "in_progress"
        assert kinds[:2] == ["response.created", f"response.{begun}"]
        assert kinds.count("response.in_progress") <= 1
    assert kinds[-1] in LAST
    assert not set(kinds[:-1]) & set(LAST)
    response: Json = events[-1]["response"]
    check_response(response)
    if not start:
        _check_items(events, response)
    return response


def check_response(response: Json) -> None:
    assert response.keys() >= RESOURCE
    check_shape(response, responses.Response)


def check_shape(data: Json, kind: type[BaseModel]) -> None:
    """Strictly as the SDK's type has it, and nothing that it does not know."""
    found = kind.model_validate_json(json.dumps(data), strict=True)
    beyond = set(_extras(found)) - BEYOND
    assert not beyond, (data["type"] if "type" in data else "response", beyond)


def _extras(value: Any) -> list[tuple[str, str]]:
    if isinstance(value, list):
        return [each for item in value for each in _extras(item)]
    if not isinstance(value, BaseModel):
        return []
    found = [(type(value).__name__, name) for name in value.model_extra or ()]
    for name in type(value).model_fields:
        found += _extras(getattr(value, name, None))
    return found


def _check_items(events: list[Json], response: Json) -> None:
    """Each item is added, told in the order of its kind, and done, as the object has it."""
    open_items: dict[int, Json] = {}
    place: dict[int, int] = {}
    done: dict[int, Json] = {}
    texts: dict[tuple[int, str], str] = {}
    for event in events:
        kind = event["type"]
        if kind == "response.output_item.added":
            assert event["output_index"] == len(open_items)
            open_items[event["output_index"]] = event["item"]
            place[event["output_index"]] = 0
        elif kind == "response.output_item.done":
            done[event["output_index"]] = event["item"]
        elif "item_id" in event:
            index = event["output_index"]
            item = open_items[index]
            assert index not in done
            assert item["id"] == event["item_id"]
            order = INSIDE[item["type"]]
            assert kind in order, (kind, item["type"])
            if not (item["type"] == "reasoning" and kind.endswith("part.added")):
                assert order.index(kind) >= place[index], (kind, order[place[index]])
            place[index] = order.index(kind)
            stem, _, what = kind.rpartition(".")
            part = event.get("content_index", event.get("summary_index", 0))
            key = index, f"{stem} {part}"
            if what == "delta":
                texts[key] = texts.get(key, "") + event["delta"]
            elif what == "done" and "part" not in event:
                whole = event.get("text", event.get("code", event.get("arguments")))
                assert texts.get(key, "") == whole
    assert sorted(done) == sorted(open_items)
    assert [done[index] for index in sorted(done)] == response["output"]
