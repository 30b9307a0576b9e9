"""openai for Python, 1.x, 2.x and 3.x: prints as JSON what it made of the gateway at $OPENAI_BASE_URL."""

import json

import openai
from pydantic import BaseModel

ASK = {"model": "code-writing-agent", "messages": [{"role": "user", "content": "go"}]}
RELAY = ASK | {"model": "up/model"}
ANSWER_ALONE = {"reasoning_format": "deepseek"}


class City(BaseModel):
    name: str


client = openai.OpenAI()


def whole(**ask):
    reply = client.chat.completions.create(**ask)
    message = reply.choices[0].message
    return {
        "content": message.content,
        "reasoning": getattr(message, "reasoning_content", None),
        "finish": reply.choices[0].finish_reason,
        "tokens": reply.usage.total_tokens,
        "request_id": reply._request_id,
    }


def stream(**ask):
    told = {"content": "", "reasoning": "", "finish": None, "tokens": None, "roles": []}
    for chunk in client.chat.completions.create(
        **ask, stream=True, stream_options={"include_usage": True}
    ):
        if chunk.usage is not None:
            told["tokens"] = chunk.usage.total_tokens
        for choice in chunk.choices:
            told["content"] += choice.delta.content or ""
            told["reasoning"] += getattr(choice.delta, "reasoning_content", None) or ""
            told["finish"] = choice.finish_reason or told["finish"]
            told["roles"] += [choice.delta.role] if choice.delta.role else []
    return told


def helper(**ask):
    with client.chat.completions.stream(**ask, stream_options={"include_usage": True}) as events:
        kinds = {event.type for event in events}
        final = events.get_final_completion()
    message = final.choices[0].message
    return {
        "role": message.role,
        "content": message.content,
        "reasoning": getattr(message, "reasoning_content", None),
        "finish": final.choices[0].finish_reason,
        "tokens": final.usage.total_tokens,
        "kinds": sorted(kinds),
    }


def parse(model, **more):
    ask = {"model": model, "messages": [{"role": "user", "content": "city as JSON"}]}
    reply = client.chat.completions.parse(**ask, response_format=City, **more)
    with client.chat.completions.stream(**ask, response_format=City, **more) as events:
        final = events.get_final_completion()
    return [reply.choices[0].message.parsed.name, final.choices[0].message.parsed.name]


def error(call, content="go", **ask):
    try:
        call(**(ASK | {"messages": [{"role": "user", "content": content}]} | ask))
    except openai.APIError as failure:
        return {
            "kind": type(failure).__name__,
            "status": getattr(failure, "status_code", None),
            "message": failure.body["message"],
            "type": failure.type,
            "param": failure.param,
            "code": failure.code,
            "request_id": getattr(failure, "request_id", None),
        }


print(
    json.dumps(
        {
            "version": openai.__version__,
            "models": [model.id for model in client.models.list()],
            "whole": whole(**ASK),
            "stream": stream(**ASK),
            "helper": helper(**ASK),
            "relay_whole": whole(**RELAY),
            "relay_stream": stream(**RELAY),
            "relay_helper": helper(**RELAY),
            "nothink": stream(**(RELAY | {"model": "up/model-nothink"})),
            "parse": parse("code-writing-agent", extra_body=ANSWER_ALONE),
            "parse_relay": parse("up/model"),
            "unknown": error(whole, model="nobody"),
            "unknown_stream": error(stream, model="nobody"),
            "bad": error(whole, n=3),
            "failed": error(whole, "fail"),
            "failed_stream": error(stream, "fail"),
            "failed_helper": error(helper, "fail"),
            "failed_relay": error(whole, "fail", model="up/model"),
            "failed_relay_stream": error(stream, "break off", model="up/model"),
        }
    )
)
