"""pydantic-ai: prints as JSON what it made of the gateway at $OPENAI_BASE_URL."""

import asyncio
import json

from pydantic_ai import Agent
from pydantic_ai.exceptions import ModelAPIError
from pydantic_ai.messages import ThinkingPart
from pydantic_ai.models.openai import OpenAIChatModel


def agent_of(model):
    return Agent(OpenAIChatModel(model))


def thinking(messages):
    parts = [part for message in messages for part in message.parts]
    return "".join(part.content for part in parts if isinstance(part, ThinkingPart))


async def whole(model, content):
    result = await agent_of(model).run(content)
    return {
        "content": result.output,
        "reasoning": thinking(result.all_messages()),
        "tokens": result.usage.total_tokens,
    }


async def stream(model, content):
    async with agent_of(model).run_stream(content) as result:
        text = "".join([piece async for piece in result.stream_text(delta=True)])
        return {
            "content": text,
            "reasoning": thinking(result.all_messages()),
            "tokens": result.usage.total_tokens,
        }


async def error(call, model, content):
    try:
        await call(model, content)
    except Exception as failure:  # noqa: BLE001 - whatever it is, it is told
        return {
            "kind": type(failure).__name__,
            "is_api_error": isinstance(failure, ModelAPIError),
            "status": getattr(failure, "status_code", None),
            "message": str(failure),
        }


async def main():
    model = "code-writing-agent"
    told = {
        "whole": await whole(model, "go"),
        "stream": await stream(model, "go"),
        "unknown": await error(whole, "nobody", "go"),
        "failed": await error(whole, model, "fail"),
        "failed_stream": await error(stream, model, "fail"),
    }
    print(json.dumps(told))


asyncio.run(main())
