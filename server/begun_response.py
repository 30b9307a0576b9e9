"""What a response object of a translated reply says from its start: what was asked, and what stands for it here.

In: the request. Out: every field that the Responses API's schema requires of a response.
"""

from typing import Any

from server.response_to_chat import ResponseRequest

Json = dict[str, Any]


def begun_response(asked: ResponseRequest, *, id_: str, created: int, model: str) -> Json:
    """`created` is in whole seconds since the epoch; `model` the id that was asked for."""
    text, reasoning = asked.text, asked.reasoning
    return {
        "id": id_,
        "object": "response",
        "created_at": created,
        "completed_at": None,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_output_tokens,
        "max_tool_calls": asked.max_tool_calls,
        "model": model,
        "output": [],
        "parallel_tool_calls": asked.parallel_tool_calls is not False,
        "previous_response_id": asked.previous_response_id,
        "reasoning": {
            "effort": reasoning.effort if reasoning else None,
            "summary": reasoning.summary if reasoning else None,
        },
        "service_tier": asked.service_tier or "default",
        "store": False,  # nothing of it is kept
        "temperature": _or(asked.temperature, 1.0),
        "text": {
            "format": (text.format if text else None) or {"type": "text"},
            "verbosity": (text.verbosity if text else None) or "medium",
        },
        "tool_choice": asked.tool_choice or "auto",
        "tools": [_tool(tool) for tool in asked.tools or []],
        "top_p": _or(asked.top_p, 1.0),
        "presence_penalty": _or(asked.presence_penalty, 0.0),
        "frequency_penalty": _or(asked.frequency_penalty, 0.0),
        "top_logprobs": asked.top_logprobs or 0,
        "truncation": asked.truncation or "disabled",
        "usage": None,
        "user": asked.user,
        "safety_identifier": asked.safety_identifier,
        "prompt_cache_key": asked.prompt_cache_key,
        "metadata": asked.metadata or {},
    }


def _or(given: float | None, default: float) -> float:
    return default if given is None else given


def _tool(tool: Json) -> Json:
    return {"type": "function", "description": None, "parameters": None, "strict": None} | tool
