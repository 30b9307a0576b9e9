// What the page asks of the server. Addresses are relative, so that it works below a proxy's path, too.

import { eventsOf } from "./sse.js";

export const API_BASE = new URL("v1", document.baseURI).href;
// What is kept in the browser is kept by this path, since others of the same origin may be other servers.
export const PLACE = new URL(".", document.baseURI).pathname;

// `status` 401 means that a key is asked for.
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export async function modelsOf(key) {
  const response = await fetch(`${API_BASE}/models`, { headers: headersOf(key), cache: "no-store" });
  if (!response.ok) throw await errorOf(response);
  return (await response.json()).data;
}

// End a run at the server, also while the page goes.
export async function cancelRun(id, key) {
  const address = `${API_BASE}/runs/${encodeURIComponent(id)}/cancel`;
  await fetch(address, { method: "POST", headers: headersOf(key), keepalive: true }).catch(() => {});
}

// The parsed chunks of a reply. Raises ApiError; a TypeError where the server cannot be reached.
export async function* chunksOf(body, key, signal) {
  const response = await fetch(`${API_BASE}/chat/completions`, {
    method: "POST",
    headers: { ...headersOf(key), "Content-Type": "application/json", "X-On-Disconnect": "cancel" },
    body: JSON.stringify(body),
    signal,
  });
  if (!response.ok) throw await errorOf(response);
  if (!response.headers.get("Content-Type")?.includes("text/event-stream")) {
    yield wholeReply(await response.json());
    return;
  }
  for await (const data of eventsOf(response.body)) {
    if (data === "[DONE]") {
      yield { isDone: true };
      return;
    }
    yield parsed(data);
  }
}

function parsed(data) {
  try {
    const chunk = JSON.parse(data);
    return typeof chunk === "object" && chunk !== null ? chunk : {};
  } catch {
    throw new Error("The server sent what is no JSON.");
  }
}

// An upstream that does not stream, as if it had.
function wholeReply(reply) {
  const choices = (reply.choices ?? []).map((choice) => ({ ...choice, delta: choice.message ?? {} }));
  return { ...reply, choices, isDone: true };
}

function headersOf(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function errorOf(response) {
  const text = await response.text().catch(() => "");
  let message = "";
  try {
    message = JSON.parse(text).error.message;
  } catch {
    message = `The server answered ${response.status} ${response.statusText}.`; // a proxy's page, say
  }
  const wait = response.headers.get("Retry-After");
  if (response.status === 429 || response.status === 503) message += wait ? ` Try again in ${wait} s.` : "";
  return new ApiError(response.status, String(message));
}
