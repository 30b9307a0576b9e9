"""LiteLLM as a client: prints as JSON what it made of the gateway at $OPENAI_BASE_URL."""

import json
import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it fetches one

import litellm

ASK = {
    "model": "openai/code-writing-agent",
    "api_base": os.environ["OPENAI_BASE_URL"],
    "messages": [{"role": "user", "content": "go"}],
}


def whole(**ask):
    reply = litellm.completion(**ask)
    message = reply.choices[0].message
    return {
        "content": message.content,
        "reasoning": message.reasoning_content,
        "finish": reply.choices[0].finish_reason,
        "tokens": reply.usage.total_tokens,
    }


def stream(**ask):
    told = {"content": "", "reasoning": "", "finish": None, "tokens": None}
    for chunk in litellm.completion(**ask, stream=True, stream_options={"include_usage": True}):
        if getattr(chunk, "usage", None):
            told["tokens"] = chunk.usage.total_tokens
        for choice in chunk.choices:
            told["content"] += choice.delta.content or ""
            told["reasoning"] += getattr(choice.delta, "reasoning_content", None) or ""
            told["finish"] = choice.finish_reason or told["finish"]
    return told


def error(call, content="go", **ask):
    try:
        call(**(ASK | {"messages": [{"role": "user", "content": content}]} | ask))
    except Exception as failure:  # noqa: BLE001 - its errors have no base of their own
        return {
            "kind": type(failure).__name__,
            "status": getattr(failure, "status_code", None),
            "message": str(failure),
        }


print(
    json.dumps(
        {
            "whole": whole(**ASK),
            "stream": stream(**ASK),
            "unknown": error(whole, model="openai/nobody"),
            "failed": error(whole, "fail"),
            "failed_stream": error(stream, "fail"),
        }
    )
)
