// What waits to be painted → a few milliseconds of it each frame, for the whole page together.

const SLICE_MS = 8;
const HIDDEN_MS = 250; // a page that is not seen has no frames

export class PaintQueue {
  #waiting = new Set();
  #scheduled = false;

  // `item.paint(until)` works until that time, and adds itself again where something is left.
  add(item) {
    this.#waiting.add(item);
    if (this.#scheduled) return;
    this.#scheduled = true;
    if (document.hidden) setTimeout(() => this.#paint(), HIDDEN_MS);
    else requestAnimationFrame(() => this.#paint());
  }

  #paint() {
    this.#scheduled = false;
    const until = performance.now() + SLICE_MS;
    const waiting = [...this.#waiting];
    this.#waiting.clear();
    for (const item of waiting) {
      if (performance.now() < until) item.paint(until);
      else this.add(item);
    }
  }
}
