// The Vercel AI SDK's OpenAI-compatible provider: prints JSON, for $OPENAI_BASE_URL.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";

const provider = createOpenAICompatible({
  name: "smolgate",
  baseURL: process.env.OPENAI_BASE_URL,
  apiKey: process.env.OPENAI_API_KEY,
  includeUsage: true,
});
const agent = provider("code-writing-agent");

async function whole(model, prompt) {
  const { text, reasoningText, finishReason, usage } = await generateText({ model, prompt });
  return { content: text, reasoning: reasoningText, finish: finishReason, tokens: usage.totalTokens };
}

async function stream(model, prompt) {
  const told = { content: "", reasoning: "", finish: null, tokens: null };
  for await (const part of streamText({ model, prompt, onError() {} }).fullStream) {
    if (part.type === "text-delta") told.content += part.text;
    if (part.type === "reasoning-delta") told.reasoning += part.text;
    if (part.type === "error") throw part.error;
    if (part.type === "finish") {
      told.finish = part.finishReason;
      told.tokens = part.totalUsage.totalTokens;
    }
  }
  return told;
}

async function error(call, model, prompt) {
  try {
    await call(model, prompt);
  } catch (failure) {
    const told = failure.lastError ?? failure;
    return {
      kind: told.name ?? typeof told,
      status: told.statusCode ?? null,
      message: told.message ?? String(told),
      retried: failure.errors?.length ?? 1,
    };
  }
}

console.log(
  JSON.stringify({
    whole: await whole(agent, "go"),
    stream: await stream(agent, "go"),
    unknown: await error(whole, provider("nobody"), "go"),
    failed: await error(whole, agent, "fail"),
    failed_stream: await error(stream, agent, "fail"),
  }),
);
