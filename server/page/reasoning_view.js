// An agent's reasoning → steps that fold: what the model wrote, its code, what that printed. A model that
// only thinks has one of them.

import { el } from "./dom.js";
import { Markdown } from "./markdown.js";

// How the server closes a step, and tells of an error in it (streaming/transcript.py).
const STEP = /^\*\*Step (\d+)\*\* \((\d+(?:\.\d+)?) s\)$/;
const ERROR = /^\*\*Error:\*\* /;
const OUTPUT_FENCE = "````";

export class ReasoningView {
  #markdown;
  #isAgent;
  #step;
  #onStep;
  count = 0;

  constructor(element, { isAgent, onStep = () => {} }) {
    this.element = element;
    this.#isAgent = isAgent;
    this.#onStep = onStep;
    this.#step = this.#begin();
    this.#markdown = new Markdown(this.#step.body, {
      ownLine: (line, close) => this.#ownLine(line, close),
      outputFence: OUTPUT_FENCE,
    });
  }

  feed(text) {
    this.#markdown.feed(text);
  }

  flush() {
    this.#markdown.flush();
    this.#show(this.#step);
  }

  end() {
    this.#markdown.end();
    this.#show(this.#step);
    this.#step.element.classList.remove("live");
  }

  #ownLine(line, close) {
    const found = STEP.exec(line.trimEnd());
    if (!found) {
      if (ERROR.test(line)) this.#fail();
      return false;
    }
    close();
    this.count = Number(found[1]);
    this.#show(this.#step);
    this.#step.element.classList.remove("live");
    this.#step.name.textContent = `Step ${found[1]}`;
    this.#step.time.textContent = `${found[2]} s`;
    this.#onStep(this.count);
    this.#step = this.#begin();
    this.#markdown.root = this.#step.body;
    return true;
  }

  #begin() {
    const name = el("span", { class: "name" }, this.#isAgent ? `Step ${this.count + 1}` : "Thinking");
    const time = el("span", { class: "time muted" });
    const body = el("div", { class: "body" });
    const element = el("details", { class: "step live", open: true }, el("summary", {}, name, " ", time), body);
    return { element, name, time, body };
  }

  #fail() {
    if (this.#step.element.classList.contains("failed")) return;
    this.#step.element.classList.add("failed");
    this.#step.name.after(" ", el("span", { class: "badge bad" }, "Error"));
  }

  #show(step) {
    if (!step.element.isConnected && step.body.hasChildNodes()) this.element.append(step.element);
  }
}
