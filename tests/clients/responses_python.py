"""openai for Python, 1.x, 2.x and 3.x: prints as JSON what `client.responses` made of an upstream's model."""

import json

import openai
from pydantic import BaseModel

MODEL = "up/model"
TOOL = {
    "type": "function",
    "name": "weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}


class City(BaseModel):
    name: str


client = openai.OpenAI(max_retries=0)


def told(response):
    return {
        "status": response.status,
        "text": response.output_text,
        "kinds": [item.type for item in response.output],
        "tokens": response.usage.total_tokens,
    }


def helper(**ask):
    with client.responses.stream(model=MODEL, **ask) as events:
        kinds = [event.type for event in events]
        return kinds, events.get_final_response()


def calls(create):
    given = [{"role": "user", "content": "call"}]
    (call,) = create(input=given, tools=[TOOL]).output
    given += [call.to_dict(), {"type": "function_call_output", "call_id": call.call_id}]
    given[-1]["output"] = "warm"
    return [json.loads(call.arguments), create(input=given, tools=[TOOL]).output_text]


def failed():
    events = list(client.responses.create(model=MODEL, input="break", stream=True))
    return [events[-1].type, events[-1].response.error.message]


def refused():
    try:
        client.responses.create(model=MODEL, input="go", truncation="auto")
    except openai.BadRequestError as failure:
        return [failure.param, failure.type]


kinds, final = helper(input="go")
parsed = client.responses.parse(model=MODEL, input="city", text_format=City)
print(
    json.dumps(
        {
            "version": openai.__version__,
            "whole": told(client.responses.create(model=MODEL, input="go")),
            "helper": told(final),
            "kinds": kinds,
            "parsed": [
                parsed.output_parsed.name,
                helper(input="city", text_format=City)[1].output_parsed.name,
            ],
            "calls": [
                calls(lambda **ask: client.responses.create(model=MODEL, **ask)),
                calls(lambda **ask: helper(**ask)[1]),
            ],
            "failed": failed(),
            "refused": refused(),
        }
    )
)
