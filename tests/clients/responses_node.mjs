// openai for Node: prints as JSON what `client.responses` made of an upstream's model.
import OpenAI from "openai";

const client = new OpenAI({ maxRetries: 0 });
const model = "up/model";

function told(response) {
  return {
    status: response.status,
    text: response.output_text,
    kinds: response.output.map((item) => item.type),
    tokens: response.usage.total_tokens,
  };
}

const kinds = [];
const events = client.responses.stream({ model, input: "go" });
for await (const event of events) kinds.push(event.type);

let last;
for await (const event of await client.responses.create({ model, input: "break", stream: true })) {
  last = event;
}

let refused;
try {
  await client.responses.create({ model, input: "go", truncation: "auto" });
} catch (failure) {
  refused = [failure.param, failure.type];
}

console.log(
  JSON.stringify({
    whole: told(await client.responses.create({ model, input: "go" })),
    helper: told(await events.finalResponse()),
    kinds,
    failed: [last.type, last.response.error.message],
    refused,
  }),
);
