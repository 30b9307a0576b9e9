// What a run's state, outcome and spans are called.

import { duration, plural } from "./amounts.js";

const STATES = {
  queued: ["Queued", "warn"],
  running: ["Running", "live"],
  paused: ["Waits", "warn"],
  stopping: ["Stopping", "warn"],
};
const NOT_ITS_FAULT = { cancelled: "Cancelled", client_gone: "Client left", draining: "Server stopped" };

export const KINDS = {
  queue: "Waited for a place",
  setup: "Agent built",
  paused: "Waited for its client",
  plan: "Plan",
  step: "Step",
  model: "Model call",
  code: "Code",
  tool: "Tool",
};
const DOING = {
  queue: "waits for a place",
  setup: "agent is built",
  paused: "waits for its client",
  model: "model",
  code: "code",
  tool: "tool",
};

export const isActive = (run) => run.ended === null;
export const hasFailed = (run) => !isActive(run) && run.outcome !== "ok";

// The word and the class of its badge.
export function state(run) {
  if (isActive(run)) return STATES[run.status] ?? [run.status, ""];
  if (run.outcome === "ok") return ["Done", "good"];
  const word = NOT_ITS_FAULT[run.outcome];
  return word ? [word, ""] : ["Failed", "bad"];
}

// A verb and a name, and since when in seconds after the run was asked for.
export function doing(run) {
  if (!isActive(run)) return { verb: run.outcome, name: "", since: null };
  if (run.doing == null) return { verb: "between two", name: "", since: null };
  return { verb: DOING[run.doing.kind] ?? run.doing.kind, name: run.doing.name, since: run.doing.since };
}

// The spans with the step that goes on: the server tells of a step at its end.
export function withOpenStep(run) {
  const spans = run.timeline ?? [];
  const steps = spans.filter((span) => span.kind === "step" || span.kind === "plan" || span.kind === "setup");
  const start = Math.max(0, ...steps.map((span) => span.end ?? Infinity));
  const goesOn = isActive(run) && spans.some((span) => ["model", "code", "tool"].includes(span.kind) && span.start >= start - 0.01);
  if (!goesOn) return spans;
  const open = { kind: "step", name: String(run.step + 1), start, end: null };
  return [...spans, open].sort((a, b) => a.start - b.start);
}

export const took = (span, now) => (span.end === null ? now - span.start : (span.seconds ?? span.end - span.start));

export function notes(span) {
  const found = [];
  if (span.failed) found.push(span.calls > 1 ? `${span.failed} failed` : "failed");
  if (span.cut) found.push("cut by the run's end");
  if (span.end === null) found.push("goes on");
  if (span.first_token !== undefined) found.push(`first token after ${duration(span.first_token)}`);
  const tokens = (span.prompt_tokens ?? 0) + (span.completion_tokens ?? 0);
  if (tokens) found.push(`${span.prompt_tokens ?? 0} + ${plural(span.completion_tokens ?? 0, "token")}`);
  const writing = took(span, span.start) - (span.first_token ?? 0);
  if (span.completion_tokens && span.first_token !== undefined && writing > 0.05)
    found.push(`${(span.completion_tokens / writing).toFixed(1)} tokens/s`);
  return found;
}

export function title(span) {
  const calls = span.calls > 1 ? ` × ${span.calls}` : "";
  const name = span.kind === "step" ? ` ${span.name}` : span.name ? `: ${span.name}` : "";
  return KINDS[span.kind] + name + calls;
}
