"""What a response object of a translated reply says from its start: what was asked, and what stands for it here.

In: the request. Out: every field that the Responses API's schema requires of a response.
"""

from typing import Any

import msgspec

from server.response_schema import ResponseRequest, ResponseTool

Json = dict[str, Any]

# What is said where nothing was asked.
_DEFAULTS: Json = {
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "service_tier": "default",
    "temperature": 1.0,
    "tool_choice": "auto",
    "top_p": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "top_logprobs": 0,
    "truncation": "disabled",
    "user": None,
    "safety_identifier": None,
    "prompt_cache_key": None,
    "metadata": {},
}


def begun_response(asked: ResponseRequest, *, id_: str, created: int, model: str) -> Json:
    """`created` is in whole seconds since the epoch; `model` the id that was asked for."""
    told = {
        name: default if (value := getattr(asked, name)) is None else msgspec.to_builtins(value)
        for name, default in _DEFAULTS.items()
    }
    if not isinstance(told["tool_choice"], str):
        told["tool_choice"] = _without_nulls(told["tool_choice"])
    if asked.conversation_id is not None:
        told["conversation"] = {"id": asked.conversation_id}
    reasoning, text = asked.reasoning, asked.text
    return {
        "id": id_,
        "object": "response",
        "created_at": created,
        "completed_at": None,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "model": model,
        "output": [],
        **told,
        "reasoning": {
            "effort": reasoning.effort if reasoning else None,
            "summary": reasoning.summary if reasoning else None,
        },
        "store": asked.store is not False,
        "text": {
            "format": _without_nulls(msgspec.to_builtins(text.format))
            if text is not None and text.format is not None
            else {"type": "text"},
            "verbosity": (text.verbosity if text else None) or "medium",
        },
        "tools": [_tool(tool) for tool in asked.tools or []],
        "usage": None,
    }


def _tool(tool: ResponseTool) -> Json:
    names = ("type", "name", "description", "parameters", "strict")
    return {name: getattr(tool, name) for name in names}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(one) for name, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value
