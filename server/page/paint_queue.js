// What waits to be painted → a little of it each frame, for the whole page together: so much of parsing, and
// so many characters, since the browser lays them out after that.

const SLICE_MS = 8;
const SLICE_CHARACTERS = 8192;
const HIDDEN_MS = 250; // a page that is not seen has no frames

export class PaintQueue {
  #waiting = new Set();
  #scheduled = false;

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
    const budget = new Budget();
    const waiting = [...this.#waiting];
    this.#waiting.clear();
    for (const item of waiting) {
      if (budget.left()) item.paint(budget);
      else this.add(item);
    }
  }
}

class Budget {
  #until = performance.now() + SLICE_MS;
  #characters = SLICE_CHARACTERS;

  left() {
    return this.#characters > 0 && performance.now() < this.#until;
  }

  spend(characters) {
    this.#characters -= characters;
  }
}
