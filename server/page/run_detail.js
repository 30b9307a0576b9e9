// One run: what it is, where its time went, and its timeline, as a picture and as a table.

import { clock, count, duration, elapsed, plural } from "./amounts.js";
import { byId, copyButton, el } from "./dom.js";
import { age, atWork } from "./run_store.js";
import { RunTimeline } from "./run_timeline.js";
import { KINDS, doing, isActive, notes, state, took, withOpenStep } from "./run_words.js";

// The feed tells of a change at most some times a second; more often nobody has to ask.
const ASK_AGAIN_MS = 250;

export class RunDetail {
  #run = null;
  #asking = false;
  #askAgain = false;

  // `ask(path)` gives a response of the server; `cancel(id)` and `close()` are for the buttons.
  constructor({ ask, cancel, close }) {
    this.ask = ask;
    this.timeline = new RunTimeline(byId("timeline"), byId("tip"));
    this.copy = copyButton("Copy", () => this.id, { "aria-label": "Copy the run's id" });
    byId("detail-id").after(this.copy);
    byId("detail-cancel").addEventListener("click", () => cancel(this.id));
    byId("detail-close").addEventListener("click", close);
    byId("spans").addEventListener("toggle", () => this.#table());
    this.id = null;
  }

  // Another run, or none; `run` is as it is known, if it is.
  open(id, run) {
    this.id = id;
    this.#run = null;
    byId("detail").hidden = id === null;
    byId("detail-gone").hidden = true;
    if (id === null) return;
    byId("detail-id").textContent = id;
    if (run) this.#show({ ...run, timeline: [] });
    this.refresh();
  }

  // Its state has changed, or may have.
  async refresh() {
    if (this.id === null) return;
    if (this.#asking) {
      this.#askAgain = true;
      return;
    }
    this.#asking = true;
    const id = this.id;
    try {
      const response = await this.ask(`v1/runs/${encodeURIComponent(id)}`);
      const run = { ...(await response.json()), heard: performance.now() };
      if (id === this.id) this.#show(run);
    } catch (error) {
      if (id === this.id) this.#gone(error);
    }
    await new Promise((resume) => setTimeout(resume, ASK_AGAIN_MS));
    this.#asking = false;
    if (this.#askAgain || id !== this.id) {
      this.#askAgain = false;
      this.refresh();
    }
  }

  tick() {
    if (this.#run === null || !isActive(this.#run)) return;
    this.#facts();
    this.#legend();
    this.timeline.tick(age(this.#run));
  }

  #show(run) {
    if (run.timeline) run.timeline = withOpenStep(run);
    this.#run = run;
    const [word, kind] = state(run);
    byId("detail-head").replaceChildren(el("bdi", {}, run.agent));
    byId("detail-state").textContent = word;
    byId("detail-state").className = `badge ${kind}`;
    byId("detail-cancel").hidden = !isActive(run) || run.status === "stopping";
    byId("detail-gone").hidden = run.timeline !== null;
    byId("detail-gone").textContent = "Its timeline is no longer kept.";
    this.#facts();
    this.#legend();
    this.timeline.show(run.timeline ?? [], age(run));
    this.#table();
  }

  #gone(error) {
    const gone = byId("detail-gone");
    gone.hidden = false;
    gone.textContent = error.status === 404 ? "This run is no longer kept: it ended a while ago, or went with its worker." : `It could not be asked for: ${error.message}`;
    if (this.#run !== null) return;
    byId("detail-head").textContent = "Run";
    byId("detail-state").textContent = "Unknown";
    byId("detail-state").className = "badge";
    byId("detail-cancel").hidden = true;
    for (const id of ["facts", "legend"]) byId(id).replaceChildren();
    this.timeline.show([], 0);
    this.#table();
  }

  #facts() {
    const run = this.#run;
    const { verb, name, since } = doing(run);
    const now = [verb, name, since === null ? "" : elapsed(age(run) - since)].filter(Boolean).join(" · ");
    const facts = [
      [isActive(run) ? "Doing" : "Outcome", now],
      ["API key", run.key ?? "none: the server is open"],
      ["Runner", `${run.runner}, worker ${run.worker}`],
      ["Began", clock(run.created)],
      ["Waited for a place", duration(run.queue_seconds)],
      ["First token", run.first_token_seconds === null ? "–" : `after ${duration(run.first_token_seconds)}`],
      ["At work", isActive(run) ? elapsed(atWork(run)) : duration(atWork(run))],
      ["Steps", String(run.step)],
      ["Tokens", `${count(run.usage.prompt_tokens)} in, ${count(run.usage.completion_tokens)} out`],
      ...Object.entries(run.metadata),
    ];
    const list = byId("facts");
    if (list.childElementCount !== facts.length) {
      list.replaceChildren(...facts.map(() => el("div", {}, el("dt", {}, el("bdi")), el("dd", {}, el("bdi")))));
    }
    facts.forEach(([term, value], index) => {
      const [dt, dd] = list.children[index].querySelectorAll("bdi");
      if (dt.textContent !== term) dt.textContent = term;
      if (dd.textContent !== value) dd.textContent = value;
    });
  }

  #legend() {
    const sums = new Map();
    for (const span of this.#run.timeline ?? []) {
      const sum = sums.get(span.kind) ?? { seconds: 0, calls: 0, failed: 0 };
      sum.seconds += took(span, age(this.#run));
      sum.calls += span.calls ?? 1;
      sum.failed += span.failed ?? 0;
      sums.set(span.kind, sum);
    }
    const items = [];
    for (const kind of ["queue", "setup", "paused", "model", "code", "tool"]) {
      const sum = sums.get(kind);
      if (!sum) continue;
      const many = ["model", "tool", "code"].includes(kind) ? `, ${sum.calls}×` : "";
      const failed = sum.failed ? `, ${sum.failed} failed` : "";
      const words = `${KINDS[kind]} ${duration(sum.seconds)}${many}${failed}`;
      items.push(el("li", {}, el("span", { class: `swatch kind-${kind}`, "aria-hidden": "true" }), words));
    }
    byId("legend").replaceChildren(...items);
  }

  #table() {
    if (!byId("spans").open) return;
    const spans = this.#run?.timeline ?? [];
    byId("span-rows").replaceChildren(
      ...spans.map((span) =>
        el(
          "tr",
          {},
          el("td", {}, KINDS[span.kind]),
          el("td", {}, el("bdi", {}, span.name || "–")),
          el("td", { class: "number" }, duration(span.start)),
          el("td", { class: "number" }, span.end === null ? "goes on" : duration(span.end)),
          el("td", { class: "number" }, duration(took(span, age(this.#run)))),
          el("td", { class: "number" }, String(span.calls ?? 1)),
          el("td", {}, notes(span).join(", ")),
        ),
      ),
    );
    byId("spans").firstElementChild.textContent = `The timeline as a table: ${plural(spans.length, "span")}`;
  }
}
