// openai for Node: prints as JSON what it made of the gateway at $OPENAI_BASE_URL.
import OpenAI from "openai";

const client = new OpenAI();
const ASK = { model: "code-writing-agent", messages: [{ role: "user", content: "go" }] };
const RELAY = { ...ASK, model: "up/model" };

async function whole(ask) {
  const reply = await client.chat.completions.create(ask);
  const { message, finish_reason: finish } = reply.choices[0];
  return {
    content: message.content,
    reasoning: message.reasoning_content ?? null,
    finish,
    tokens: reply.usage.total_tokens,
    request_id: reply._request_id,
  };
}

async function stream(ask) {
  const told = { content: "", reasoning: "", finish: null, tokens: null, roles: [] };
  const options = { ...ask, stream: true, stream_options: { include_usage: true } };
  for await (const chunk of await client.chat.completions.create(options)) {
    told.tokens = chunk.usage?.total_tokens ?? told.tokens;
    for (const { delta, finish_reason } of chunk.choices) {
      told.content += delta.content ?? "";
      told.reasoning += delta.reasoning_content ?? "";
      told.finish = finish_reason ?? told.finish;
      if (delta.role) told.roles.push(delta.role);
    }
  }
  return told;
}

async function helper(ask) {
  const runner = client.chat.completions.stream({ ...ask, stream_options: { include_usage: true } });
  const final = await runner.finalChatCompletion();
  const { message, finish_reason: finish } = final.choices[0];
  return { role: message.role, content: message.content, finish, tokens: final.usage.total_tokens };
}

async function parse(model) {
  const schema = { type: "object", properties: { name: { type: "string" } }, required: ["name"] };
  const reply = await client.chat.completions.parse({
    model,
    messages: [{ role: "user", content: "city as JSON" }],
    reasoning_format: "deepseek",
    response_format: { type: "json_schema", json_schema: { name: "city", schema } },
  });
  return JSON.parse(reply.choices[0].message.content).name;
}

async function error(call, ask) {
  try {
    await call(ask);
  } catch (failure) {
    return {
      kind: failure.constructor.name,
      status: failure.status ?? null,
      message: failure.error?.message ?? failure.message,
      type: failure.type ?? null,
      param: failure.param ?? null,
      code: failure.code ?? null,
      request_id: failure.requestID ?? null,
    };
  }
}

const saying = (content, ask = ASK) => ({ ...ask, messages: [{ role: "user", content }] });
console.log(
  JSON.stringify({
    models: (await client.models.list()).data.map((model) => model.id),
    whole: await whole(ASK),
    stream: await stream(ASK),
    helper: await helper(ASK),
    relay_whole: await whole(RELAY),
    relay_stream: await stream(RELAY),
    parse: [await parse("code-writing-agent"), await parse("up/model")],
    unknown: await error(whole, { ...ASK, model: "nobody" }),
    bad: await error(whole, { ...ASK, n: 3 }),
    failed: await error(whole, saying("fail")),
    failed_stream: await error(stream, saying("fail")),
    failed_helper: await error(helper, saying("fail")),
    failed_relay_stream: await error(stream, saying("break off", RELAY)),
  }),
);
