// A fenced block that grows: code, its Python highlighted line by line, or what code printed.
//
// Lines are kept in chunks, so that a new one makes the page lay out its chunk alone.

import { copyButton, el } from "./dom.js";
import { PythonHighlighter } from "./python.js";

const CHUNK_LINES = 60;
const CHUNK_CHARACTERS = 8000;
const PYTHON = new Set(["python", "py", "python3"]);

export class CodeView {
  #pieces = [];
  #chunk = null;
  #lines = 0;
  #characters = 0;
  #tail = null; // the text of a line that is not over
  #line = "";
  #highlighter;
  #code;

  constructor(language, { isOutput = false } = {}) {
    this.#highlighter = PYTHON.has(language.toLowerCase()) ? new PythonHighlighter() : null;
    this.#code = el("code");
    const label = isOutput ? "Output" : language || "Text";
    this.element = el(
      "figure",
      { class: isOutput ? "code output" : "code" },
      el("figcaption", {}, el("span", {}, label), copyButton("Copy", () => this.text, { "aria-label": `Copy: ${label}` })),
      el("pre", {}, this.#code),
    );
  }

  get text() {
    return this.#pieces.join("");
  }

  // Text as it comes; a line's end is its line feed.
  append(text) {
    this.#pieces.push(text);
    const lines = text.split("\n");
    const rest = lines.pop();
    for (const line of lines) {
      this.#grow(line);
      this.#endLine();
    }
    if (rest) this.#grow(rest);
  }

  #grow(text) {
    if (!this.#tail || this.#characters > CHUNK_CHARACTERS) this.#beginTail();
    this.#tail.appendData(text);
    if (this.#highlighter) this.#line += text;
    this.#characters += text.length;
  }

  #endLine() {
    if (!this.#tail) this.#beginTail();
    if (this.#highlighter && this.#line.length === this.#tail.length) {
      this.#tail.replaceWith(...this.#highlighter.line(this.#line), "\n");
    } else {
      this.#tail.appendData("\n");
    }
    this.#tail = null;
    this.#line = "";
    this.#lines += 1;
  }

  #beginTail() {
    if (!this.#chunk || this.#lines >= CHUNK_LINES || this.#characters > CHUNK_CHARACTERS) {
      this.#chunk = el("span", { class: "chunk" });
      this.#code.append(this.#chunk);
      this.#lines = this.#characters = 0;
    }
    this.#tail = document.createTextNode("");
    this.#chunk.append(this.#tail);
  }
}
