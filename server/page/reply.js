// One reply, read to its end into a turn: what is asked, what comes, how it ended.

import { ApiError, cancelRun, chunksOf } from "./api.js";
import { LeadingThoughts } from "./leading_thoughts.js";

const MAX_CHARACTERS = 8_000_000;
const CANCEL_MS = 2000;

export function newReply() {
  return {
    state: "live",
    reasoning: "",
    content: "",
    error: "",
    finish: null,
    tools: [],
    usage: null,
    steps: 0,
    seconds: 0,
    firstSeconds: null,
    isCut: false,
  };
}

// The body of a turn's request, the turns before it in it.
export function requestOf(turn, before) {
  const messages = [];
  for (const { text, images, reply } of before) {
    add(messages, "user", contentOf(text, images));
    if (reply.content) add(messages, "assistant", reply.content);
  }
  add(messages, "user", contentOf(turn.text, turn.images));
  return { model: turn.model, messages, stream: true, stream_options: { include_usage: true } };
}

// A question that got no answer is asked together with the next: some models want turns to alternate.
function add(messages, role, content) {
  const last = messages.at(-1);
  if (last?.role !== role) messages.push({ role, content });
  else if (typeof last.content === "string" && typeof content === "string") last.content += `\n\n${content}`;
  else last.content = [...partsOf(last.content), ...partsOf(content)];
}

function contentOf(text, images) {
  if (!images.length) return text;
  const pictures = images.map((url) => ({ type: "image_url", image_url: { url } }));
  return [...(text ? [{ type: "text", text }] : []), ...pictures];
}

function partsOf(content) {
  return typeof content === "string" ? [{ type: "text", text: content }] : content;
}

// Reads a reply; `stop` ends it here and at the server.
export class ReplyReader {
  #abort = new AbortController();
  #key;
  #isAgent;
  #runId = "";
  #stopped = false;

  constructor(key, isAgent) {
    this.#key = key;
    this.#isAgent = isAgent;
  }

  // A run is cancelled by its id; whatever else, and a run not known yet, ends as its client leaves.
  stop() {
    const isFirst = !this.#stopped;
    this.#stopped = true;
    if (!isFirst || !this.#isAgent || !this.#runId) return this.#abort.abort();
    const leave = () => this.#abort.abort();
    setTimeout(leave, CANCEL_MS);
    cancelRun(this.#runId, this.#key).then(leave);
  }

  // Fills the turn's reply; `view` is told of what comes. Never raises.
  async read(turn, body, view) {
    const { reply } = turn;
    const begun = performance.now();
    const seconds = () => (performance.now() - begun) / 1000;
    const thoughts = new LeadingThoughts();
    let isDone = false;
    try {
      for await (const chunk of chunksOf(body, this.#key, this.#abort.signal)) {
        if (chunk.error) throw new ApiError(200, String(chunk.error.message ?? chunk.error));
        isDone ||= chunk.isDone === true;
        if (typeof chunk.id === "string") this.#runId ||= chunk.id;
        if (chunk.usage) reply.usage = chunk.usage;
        if (take(reply, chunk.choices?.[0], view, thoughts)) reply.firstSeconds ??= seconds();
      }
      // A stream that just ends has not ended well.
      if (!isDone && !reply.finish) throw new Error("The connection broke off before the reply ended.");
      reply.state = reply.finish === "error" ? "failed" : "done";
      if (reply.state === "failed") reply.error ||= "The server ended the reply with an error.";
    } catch (error) {
      reply.state = this.#stopped ? "stopped" : "failed";
      reply.error = this.#stopped ? "" : messageOf(error);
      reply.status = error.status;
    }
    const { thought, said } = thoughts.flush();
    put(reply, view, thought, said);
    reply.seconds = seconds();
  }
}

// True where it brought words.
function take(reply, choice, view, thoughts) {
  if (!choice) return false;
  const delta = choice.delta ?? {};
  if (choice.finish_reason) reply.finish = choice.finish_reason;
  for (const call of delta.tool_calls ?? []) {
    if (call.function?.name) reply.tools.push(String(call.function.name));
  }
  const { thought, said } = thoughts.feed(textOf(delta.content) || textOf(delta.refusal));
  return put(reply, view, (textOf(delta.reasoning_content) || textOf(delta.reasoning)) + thought, said);
}

function put(reply, view, thought, said) {
  if (reply.reasoning.length + reply.content.length > MAX_CHARACTERS) {
    reply.isCut = true;
    return false;
  }
  if (thought) {
    reply.reasoning += thought;
    view.reasoning(thought);
  }
  if (said) {
    reply.content += said;
    view.content(said);
  }
  return Boolean(thought || said);
}

function textOf(value) {
  return typeof value === "string" ? value : "";
}

function messageOf(error) {
  if (error instanceof TypeError) return "The server cannot be reached, or the connection broke off.";
  return error.message || "The reply failed.";
}
