"""Requests of the Responses API as chat completions: what each field and item becomes, and what is refused."""

import json
from typing import Any

import pytest
from openai.types.responses import Response

from server.begun_response import begun_response
from server.response_to_chat import chat_fields, response_request_of
from streaming.failures import InvalidRequest

TOOL: Any = {
    "type": "function",
    "name": "weather",
    "description": "Weather of a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}
PIXEL = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="


def chat_of(asked: dict[str, Any], earlier: tuple[Any, ...] = ()) -> dict[str, Any]:
    return chat_fields(response_request_of(json.dumps(asked).encode()), asked, earlier)


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ({"input": "go"}, {"messages": [{"role": "user", "content": "go"}]}),
        (
            {
                "instructions": "Be brief.",
                "input": [
                    {"role": "developer", "content": "No lies."},
                    {"type": "message", "role": "user", "content": "a"},
                    {"role": "system", "content": [{"type": "input_text", "text": "Now rhyme."}]},
                    {"role": "user", "content": [{"type": "input_text", "text": "b"}]},
                ],
            },
            {
                "messages": [
                    {"role": "system", "content": "Be brief.\n\nNo lies."},
                    {"role": "user", "content": "a"},
                    {"role": "system", "content": "Now rhyme."},
                    {"role": "user", "content": "b"},
                ]
            },
        ),
        (
            {
                "input": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "input_text", "text": "a"},
                            {"type": "input_image", "image_url": PIXEL, "detail": "low"},
                            {"type": "input_file", "filename": "a.pdf", "file_data": "data:,x"},
                            {"type": "input_file", "file_id": "file-1"},
                            {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
                        ],
                    }
                ]
            },
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": "a"},
                            {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}},
                            {"type": "file", "file": {"file_data": "data:,x", "filename": "a.pdf"}},
                            {"type": "file", "file": {"file_id": "file-1"}},
                            {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
                        ],
                    }
                ]
            },
        ),
        (
            {
                "input": [
                    {"role": "user", "content": "a"},
                    {
                        "type": "reasoning",
                        "summary": [],
                        "content": [{"type": "reasoning_text", "text": "Old thoughts."}],
                    },
                    {
                        "type": "function_call",
                        "call_id": "c0",
                        "name": "f",
                        "arguments": "{}",
                    },
                    {"type": "function_call_output", "call_id": "c0", "output": "x"},
                    {
                        "type": "message",
                        "role": "assistant",
                        "id": "msg_1",
                        "status": "completed",
                        "content": [
                            {"type": "output_text", "text": "b", "annotations": []},
                            {"type": "refusal", "refusal": " no"},
                        ],
                    },
                    {"role": "user", "content": "c"},
                    {
                        "type": "reasoning",
                        "id": "rs_1",
                        "summary": [{"type": "summary_text", "text": "s"}],
                        "content": [{"type": "reasoning_text", "text": "Ask f."}],
                    },
                    {"role": "assistant", "content": "One moment."},
                    {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
                    {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}"},
                    {"type": "function_call_output", "call_id": "c1", "output": "1"},
                    {
                        "type": "function_call_output",
                        "call_id": "c2",
                        "output": [{"type": "input_text", "text": "2"}],
                    },
                ]
            },
            {
                "messages": [
                    {"role": "user", "content": "a"},
                    {
                        "role": "assistant",
                        "content": None,
                        "tool_calls": [
                            {
                                "id": "c0",
                                "type": "function",
                                "function": {"name": "f", "arguments": "{}"},
                            }
                        ],
                    },
                    {"role": "tool", "tool_call_id": "c0", "content": "x"},
                    {"role": "assistant", "content": "b no"},
                    {"role": "user", "content": "c"},
                    {
                        "role": "assistant",
                        "content": "One moment.",
                        "tool_calls": [
                            {
                                "id": f"c{number}",
                                "type": "function",
                                "function": {"name": name, "arguments": "{}"},
                            }
                            for number, name in ((1, "f"), (2, "g"))
                        ],
                        "reasoning_content": "Ask f.",
                    },
                    {"role": "tool", "tool_call_id": "c1", "content": "1"},
                    {"role": "tool", "tool_call_id": "c2", "content": "2"},
                ]
            },
        ),
        (
            {
                "input": "go",
                "max_output_tokens": 7,
                "temperature": 0.5,
                "top_p": 0.9,
                "seed": 3,
                "top_k": 4,
                "reasoning": {"effort": "low", "summary": "auto"},
                "text": {
                    "verbosity": "low",
                    "format": {
                        "type": "json_schema",
                        "name": "city",
                        "schema": {"type": "object"},
                        "strict": True,
                    },
                },
                "user": "u",
                "metadata": {"a": "b"},
                "store": True,
                "include": ["reasoning.encrypted_content"],
                "truncation": "disabled",
                "tool_choice": "auto",
                "parallel_tool_calls": True,
                "stream_options": {"include_obfuscation": False},
            },
            {
                "messages": [{"role": "user", "content": "go"}],
                "max_tokens": 7,
                "temperature": 0.5,
                "top_p": 0.9,
                "seed": 3,
                "top_k": 4,
                "reasoning_effort": "low",
                "verbosity": "low",
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {
                        "name": "city",
                        "schema": {"type": "object"},
                        "strict": True,
                    },
                },
                "user": "u",
                "metadata": {"a": "b"},
            },
        ),
        (
            {
                "input": "go",
                "text": {"format": {"type": "json_object"}},
                "tools": [TOOL, {"type": "function", "name": "g"}],
                "tool_choice": {"type": "function", "name": "g"},
                "parallel_tool_calls": False,
            },
            {
                "messages": [{"role": "user", "content": "go"}],
                "response_format": {"type": "json_object"},
                "tools": [
                    {
                        "type": "function",
                        "function": {name: TOOL[name] for name in TOOL if name != "type"},
                    },
                    {"type": "function", "function": {"name": "g"}},
                ],
                "tool_choice": {"type": "function", "function": {"name": "g"}},
                "parallel_tool_calls": False,
            },
        ),
        (
            {
                "input": "go",
                "tools": [TOOL, {"type": "function", "name": "g"}],
                "tool_choice": {
                    "type": "allowed_tools",
                    "mode": "required",
                    "tools": [{"type": "function", "name": "g"}],
                },
            },
            {
                "messages": [{"role": "user", "content": "go"}],
                "tools": [{"type": "function", "function": {"name": "g"}}],
                "tool_choice": "required",
            },
        ),
    ],
)
def test_what_is_asked_goes_up_as_a_chat_completion(
    asked: dict[str, Any], sent: dict[str, Any]
) -> None:
    assert chat_of(asked | {"model": "up/model"}) == sent
    more = {"stream": True, "stream_options": {"include_usage": True}}
    assert chat_of(asked | {"stream": True}) == sent | more
    begun = begun_response(
        response_request_of(json.dumps(asked).encode()), id_="resp_1", created=1, model="m"
    )
    Response.model_validate(begun)


def _item(item: dict[str, Any]) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": "a"}, item]}


def _user_part(part: dict[str, Any]) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": [part]}]}


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": 1}, "input"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"context_management": [{"type": "compaction"}]}, "context_management"),
        ({"truncation": "auto"}, "truncation"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": [TOOL, {"type": "function"}]}, "tools.1.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name"),
        ({"moderation": {"model": "omni-moderation-latest"}}, "moderation"),
        ({"reasoning": {"effort": 1}}, "reasoning.effort"),
        (_item({"type": "item_reference", "id": "msg_1"}), "input.1.type"),
        (_item({"type": "web_search_call"}), "input.1.type"),
        (_item({"role": "tool", "content": "x"}), "input.1.role"),
        (_item({"role": "user"}), "input.1.content"),
        (_item({"type": "function_call", "name": "f", "arguments": "{}"}), "input.1.call_id"),
        (_item({"type": "function_call_output", "output": "x"}), "input.1.call_id"),
        (_user_part({"type": "input_image", "file_id": "file-1"}), "input.0.content.0.image_url"),
        (_user_part({"type": "input_file", "file_url": "http://x"}), "input.0.content.0.file_data"),
        (_user_part({"type": "input_text"}), "input.0.content.0.text"),
        (_user_part({"type": "video"}), "input.0.content.0.type"),
        (_user_part({}), "input.0.content.0.type"),
        ({"input": [{"role": "user", "content": ["x"]}]}, "input.0.content.0.type"),
    ],
)
def test_what_a_chat_completion_cannot_say_is_refused_by_its_name(
    asked: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat_of({"input": "go"} | asked)
    assert caught.value.param == param
    assert param in caught.value.message


def test_earlier_items_come_before_the_requests_own() -> None:
    earlier = (
        {"role": "user", "content": "a"},
        {"type": "code_interpreter_call", "id": "ci_1"},  # an agent's
        {"role": "assistant", "content": "b"},
    )
    messages = chat_of({"instructions": "x", "input": "c"}, earlier)["messages"]
    assert [message["content"] for message in messages] == ["x", "a", "b", "c"]
