// openai for Node: the Responses API of the gateway at $OPENAI_BASE_URL, printed as JSON.
import OpenAI from "openai";
import { zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const client = new OpenAI();
const model = "code-writing-agent";
const told = {};

let response = await client.responses.create({ model, input: "go" });
told.whole = {
  text: response.output_text,
  kinds: response.output.map((item) => item.type),
  tokens: response.usage.total_tokens,
};

const stream = client.responses.stream({ model, input: "go" });
const kinds = [];
for await (const event of stream) kinds.push(event.type);
const final = await stream.finalResponse();
told.stream = { kinds, text: final.output_text, status: final.status };

const format = zodTextFormat(z.object({ name: z.string() }), "city");
const parsed = await client.responses.parse({ model, input: "city as JSON", text: { format } });
told.parse = parsed.output_parsed.name;

told.resumed = [];
const resumed = await client.responses.retrieve(final.id, { stream: true, starting_after: 3 });
for await (const event of resumed) told.resumed.push(event.sequence_number);
told.retrieved = (await client.responses.retrieve(final.id)).output_text;
told.items = [];
for await (const item of client.responses.inputItems.list(final.id)) told.items.push(item.role);

let queued = await client.responses.create({ model, input: "go", background: true });
told.queued = queued.status;
while (["queued", "in_progress"].includes(queued.status)) {
  await new Promise((resolve) => setTimeout(resolve, 20));
  queued = await client.responses.retrieve(queued.id);
}
told.polled = queued.output_text;

const held = await client.responses.create({ model, input: "hold on", background: true });
told.cancelled = (await client.responses.cancel(held.id)).status;
await client.responses.delete(final.id);
told.deleted = await client.responses.retrieve(final.id).catch((error) => error.status);

const conversation = await client.conversations.create({ metadata: { topic: "numbers" } });
for (const input of ["set it", "go", "use it"])
  response = await client.responses.create({ model, input, conversation: conversation.id });
told.conversation = response.output_text;
told.kept = 0;
for await (const _ of client.conversations.items.list(conversation.id)) told.kept += 1;
await client.conversations.delete(conversation.id);

await client.responses.create({ model, input: "fail" }).catch((error) => {
  told.failed = { status: error.status, code: error.code };
});
await client.responses
  .create({ model, input: "go", tools: [{ type: "web_search" }] })
  .catch((error) => (told.refused = error.param));

const tool = {
  type: "function",
  name: "get_weather",
  parameters: { type: "object", properties: { town: { type: "string" } } },
  strict: false,
};
const first = await client.responses.create({ model, input: "weather", tools: [tool] });
const call = first.output.find((item) => item.type === "function_call");
const output = { type: "function_call_output", call_id: call.call_id, output: "fair" };
const second = await client.responses.create({
  model,
  input: [output],
  tools: [tool],
  previous_response_id: first.id,
});
told.tool = [call.name, JSON.parse(call.arguments), second.output_text];
console.log(JSON.stringify(told));
