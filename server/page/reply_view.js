// One turn on the page: what was asked, the reasoning, the answer, how it ended.
//
// Text is painted when the queue says so, however fast it comes; what is folded of a turn that is over is made
// when it is opened.

import { copyButton, el, say } from "./dom.js";
import { Markdown } from "./markdown.js";
import { ReasoningView } from "./reasoning_view.js";

const SLICE_CHARACTERS = 1024;
const STATES = {
  live: ["Working", "live"],
  done: ["Done", "good"],
  stopped: ["Stopped", "warn"],
  failed: ["Failed", "bad"],
  interrupted: ["Interrupted", "warn"],
};
const FINISHES = {
  length: "Cut off: the model reached the limit on its length.",
  content_filter: "Cut off: a content filter ended the reply.",
};

export class ReplyView {
  #turn;
  #isAgent;
  #actions;
  #onPaint;
  #queue;
  #reasoning = null;
  #answer = null;
  #pending = { reasoning: "", answer: "" };
  #ended = false;
  #ticking = 0;

  // `actions`: {retry(), canRetry(), snippets: [{label, text}]}; `onPaint` is called after each change of its size.
  constructor(turn, { isAgent, actions, queue, onPaint = () => {} }) {
    this.#turn = turn;
    this.#queue = queue;
    this.#isAgent = isAgent;
    this.#actions = actions;
    this.#onPaint = onPaint;
    this.badge = el("span", { class: "badge" });
    this.summary = el("span");
    this.steps = el("div", { class: "steps" });
    this.work = el("details", { class: "work", hidden: true }, el("summary", {}, this.summary), this.steps);
    this.answer = el("div", { class: "answer markdown" });
    this.notes = el("div", { class: "notes" });
    this.meta = el("p", { class: "meta muted small" });
    this.foot = el("div", { class: "row foot" });
    this.element = el(
      "article",
      { class: "turn", "aria-label": `Question: ${turn.text.slice(0, 80)}` },
      asked(turn),
      el(
        "div",
        { class: "reply" },
        el("p", { class: "reply-head small" }, el("span", { class: "model" }, turn.model), " ", this.badge),
        this.work,
        this.answer,
        this.notes,
        this.foot,
      ),
    );
    this.work.addEventListener("toggle", () => this.work.open && this.#unfold());
  }

  // A turn that is over: as it was kept.
  showKept() {
    const { reply } = this.#turn;
    this.work.hidden = !reply.reasoning;
    this.#write("answer", reply.content);
    this.finish();
  }

  start() {
    this.work.open = true;
    this.#state();
    this.#ticking = setInterval(() => this.#state(), 1000);
  }

  reasoning(text) {
    this.work.hidden = false;
    this.#write("reasoning", text);
  }

  content(text) {
    this.#write("answer", text);
  }

  // The turn's reply says how it ended. Its reasoning folds where nobody is reading it.
  finish({ folds = true } = {}) {
    clearInterval(this.#ticking);
    this.#ended = true;
    const { reply } = this.#turn;
    this.#state();
    if (folds && reply.content && !this.work.contains(document.activeElement)) this.work.open = false;
    this.notes.replaceChildren(...notesOf(reply));
    this.meta.textContent = measures(reply);
    this.foot.replaceChildren(this.meta, ...this.#buttons());
    this.#queue.add(this);
  }

  #buttons() {
    const { reply } = this.#turn;
    const { retry, canRetry, snippets } = this.#actions;
    const buttons = snippets.map(({ label, text }) => copyButton(label, text));
    if (reply.content) buttons.unshift(copyButton("Copy answer", () => reply.content));
    if (canRetry()) buttons.push(el("button", { type: "button", class: "quiet retry", onclick: retry }, "Try again"));
    return buttons;
  }

  #state() {
    const { reply } = this.#turn;
    const [text, kind] = STATES[reply.state];
    this.badge.textContent = text;
    this.badge.className = `badge ${kind}`;
    this.element.classList.toggle("live", reply.state === "live");
    const seconds = reply.state === "live" ? (Date.now() - this.#turn.at) / 1000 : reply.seconds;
    const steps = reply.steps ? ` · ${reply.steps} step${reply.steps === 1 ? "" : "s"}` : "";
    this.summary.textContent = `${this.#isAgent ? "What it did" : "Thoughts"}${steps} · ${seconds.toFixed(reply.state === "live" ? 0 : 1)} s`;
  }

  #write(what, text) {
    this.#pending[what] += text;
    this.#queue.add(this);
  }

  #unfold() {
    if (this.#ended && !this.#reasoning && this.#turn.reply.reasoning) {
      this.#write("reasoning", this.#turn.reply.reasoning);
    }
  }

  paint(budget) {
    const isWhole = this.#take("reasoning", budget) && this.#take("answer", budget);
    this.#reasoning?.flush();
    this.#answer?.flush();
    if (!isWhole) this.#queue.add(this);
    else if (this.#ended) {
      this.#reasoning?.end();
      this.#answer?.end();
    }
    this.#onPaint();
  }

  #take(what, budget) {
    const text = this.#pending[what];
    let at = 0;
    while (at < text.length && budget.left()) {
      const slice = text.slice(at, at + SLICE_CHARACTERS);
      this.#viewOf(what).feed(slice);
      budget.spend(slice.length);
      at += slice.length;
    }
    this.#pending[what] = text.slice(at);
    return at >= text.length;
  }

  #viewOf(what) {
    if (what === "answer") return (this.#answer ??= new Markdown(this.answer));
    return (this.#reasoning ??= new ReasoningView(this.steps, {
      isAgent: this.#isAgent,
      onStep: (count) => {
        this.#turn.reply.steps = count;
        this.#state();
        if (!this.#ended && this.element.isConnected) say(`Step ${count} done`);
      },
    }));
  }
}

function asked(turn) {
  const images = turn.images.map((url, index) => el("img", { src: url, alt: `Attached image ${index + 1}` }));
  return el("div", { class: "asked" }, el("p", {}, turn.text), ...images);
}

function notesOf(reply) {
  const notes = [];
  if (reply.error) notes.push(el("p", { class: "notice bad", role: "alert" }, reply.error));
  if (FINISHES[reply.finish]) notes.push(el("p", { class: "notice warn" }, FINISHES[reply.finish]));
  if (reply.tools?.length) {
    const asks = "The model asks for tools of its client, and this page has none: ";
    notes.push(el("p", { class: "notice warn" }, asks, el("code", {}, reply.tools.join(", "))));
  }
  if (reply.state === "interrupted") {
    notes.push(el("p", { class: "notice warn" }, "The page was left before the reply ended. This is what was there."));
  }
  if (reply.state === "live") notes.push(el("p", { class: "notice" }, "This goes on in another tab."));
  if (reply.isCut) notes.push(el("p", { class: "notice warn" }, "The reply is too long for this page; the rest is not shown."));
  return notes;
}

// What it took, in words.
function measures(reply) {
  const parts = [`${reply.seconds.toFixed(1)} s`];
  if (reply.firstSeconds >= 0.05) parts.push(`first words after ${reply.firstSeconds.toFixed(1)} s`);
  const { usage } = reply;
  if (usage) {
    const thought = usage.completion_tokens_details?.reasoning_tokens;
    const read = Number(usage.prompt_tokens).toLocaleString("en");
    const wrote = Number(usage.completion_tokens).toLocaleString("en");
    parts.push(`${read} tokens read, ${wrote} written${thought ? `, ${Number(thought).toLocaleString("en")} of them thoughts` : ""}`);
  }
  return parts.join(" · ");
}
