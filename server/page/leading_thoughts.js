// Content → thoughts and what is said, for models whose server leaves a think block at its very beginning.

const OPEN = "<think>";
const CLOSE = "</think>";

export class LeadingThoughts {
  #held = "";
  #state = "before";

  feed(text) {
    if (this.#state === "after" || text === "") return { thought: "", said: text };
    this.#held += text;
    if (this.#state === "before") {
      const begun = this.#held.trimStart();
      if (begun.length < OPEN.length && OPEN.startsWith(begun)) return { thought: "", said: "" };
      this.#state = begun.startsWith(OPEN) ? "within" : "after";
      this.#held = this.#state === "within" ? begun.slice(OPEN.length) : this.#held;
    }
    return this.#state === "within" ? this.#within() : { thought: "", said: this.#take(this.#held.length) };
  }

  // What looked like a tag, at the end.
  flush() {
    return this.#state === "before" ? { thought: "", said: this.#held } : { thought: this.#held, said: "" };
  }

  #within() {
    const end = this.#held.indexOf(CLOSE);
    if (end !== -1) {
      this.#state = "after";
      const thought = this.#take(end);
      return { thought, said: this.#take(this.#held.length).slice(CLOSE.length).trimStart() };
    }
    let safe = this.#held.length;
    for (let size = Math.min(CLOSE.length - 1, safe); size; size--) {
      if (CLOSE.startsWith(this.#held.slice(-size))) {
        safe -= size;
        break;
      }
    }
    return { thought: this.#take(safe), said: "" };
  }

  #take(length) {
    const taken = this.#held.slice(0, length);
    this.#held = this.#held.slice(length);
    return taken;
  }
}
