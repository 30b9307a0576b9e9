// What waits to be painted → a little of it each frame, for the whole page together: so much of parsing, and
// so many characters, since the browser lays them out after that. How many is learned from how long it took.

const SLICE_MS = 8;
const MIN_CHARACTERS = 512;
const MAX_CHARACTERS = 16384;
const LONG_MS = 20;
const SHORT_MS = 10;
const HIDDEN_MS = 250; // a page that is not seen has no frames

export class PaintQueue {
  #waiting = new Set();
  #scheduled = false;
  #characters = 4096;

  // `item.paint(budget)` works while `left()` of it, and adds itself again where something is left over.
  add(item) {
    this.#waiting.add(item);
    if (this.#scheduled) return;
    this.#scheduled = true;
    if (document.hidden) setTimeout(() => this.#paint(), HIDDEN_MS);
    else requestAnimationFrame(() => this.#paint());
  }

  #paint() {
    this.#scheduled = false;
    const begun = performance.now();
    setTimeout(() => this.#learn(performance.now() - begun)); // after the frame's layout
    const budget = new Budget(begun + SLICE_MS, this.#characters);
    const waiting = [...this.#waiting];
    this.#waiting.clear();
    for (const item of waiting) {
      if (budget.left()) item.paint(budget);
      else this.add(item);
    }
  }

  #learn(ms) {
    if (ms > LONG_MS) this.#characters = Math.max(MIN_CHARACTERS, this.#characters / 2);
    else if (ms < SHORT_MS) this.#characters = Math.min(MAX_CHARACTERS, this.#characters * 2);
  }
}

class Budget {
  #until;
  #characters;

  constructor(until, characters) {
    this.#until = until;
    this.#characters = characters;
  }

  left() {
    return this.#characters > 0 && performance.now() < this.#until;
  }

  spend(characters) {
    this.#characters -= characters;
  }
}
