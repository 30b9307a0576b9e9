"""openai for Python, 2.x and 3.x: the Responses API of the gateway at $OPENAI_BASE_URL, printed as JSON."""

import json
import time

import openai
from pydantic import BaseModel

MODEL = "code-writing-agent"


class City(BaseModel):
    name: str


client = openai.OpenAI()
told = {"version": openai.__version__}

response = client.responses.create(model=MODEL, input="go")
told["whole"] = {
    "text": response.output_text,
    "kinds": [item.type for item in response.output],
    "tokens": response.usage.total_tokens,
}

with client.responses.stream(model=MODEL, input="go") as events:
    kinds = [event.type for event in events]
    final = events.get_final_response()
told["stream"] = {"kinds": kinds, "text": final.output_text, "status": final.status}

parsed = client.responses.parse(model=MODEL, input="city as JSON", text_format=City)
told["parse"] = parsed.output_parsed.name

again = list(client.responses.retrieve(final.id, stream=True, starting_after=3))
told["resumed"] = [event.sequence_number for event in again]
told["retrieved"] = client.responses.retrieve(final.id).output_text
told["items"] = [item.role for item in client.responses.input_items.list(final.id)]

queued = client.responses.create(model=MODEL, input="go", background=True)
told["queued"] = queued.status
while queued.status in {"queued", "in_progress"}:
    time.sleep(0.02)
    queued = client.responses.retrieve(queued.id)
told["polled"] = queued.output_text

held = client.responses.create(model=MODEL, input="hold on", background=True)
told["cancelled"] = client.responses.cancel(held.id).status
client.responses.delete(final.id)
try:
    client.responses.retrieve(final.id)
except openai.NotFoundError as error:
    told["deleted"] = error.status_code

conversation = client.conversations.create(metadata={"topic": "numbers"})
for turn in ("set it", "go", "use it"):
    response = client.responses.create(model=MODEL, input=turn, conversation=conversation.id)
told["conversation"] = response.output_text
told["kept"] = len(list(client.conversations.items.list(conversation.id)))
client.conversations.delete(conversation.id)

try:
    client.responses.create(model=MODEL, input="fail")
except openai.APIStatusError as error:
    told["failed"] = {"status": error.status_code, "code": error.code}
try:
    client.responses.create(model=MODEL, input="go", tools=[{"type": "web_search"}])
except openai.BadRequestError as error:
    told["refused"] = error.param

tool = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"town": {"type": "string"}}},
    "strict": False,
}
first = client.responses.create(model=MODEL, input="weather", tools=[tool])
(call,) = [item for item in first.output if item.type == "function_call"]
output = {"type": "function_call_output", "call_id": call.call_id, "output": "fair"}
second = client.responses.create(
    model=MODEL, input=[output], tools=[tool], previous_response_id=first.id
)
told["tool"] = [call.name, json.loads(call.arguments), second.output_text]
print(json.dumps(told))
