// The table of runs: a row for each, changed where it stands, so that nothing flickers and focus stays.

import { clock, count, duration, elapsed } from "./amounts.js";
import { el } from "./dom.js";
import { age, atWork, matches } from "./run_store.js";
import { doing, isActive, state } from "./run_words.js";

export class RunTable {
  #rows = new Map();

  // `open(id)` is called where a run is chosen, `cancel(id)` where it is to end.
  constructor(store, bodies, { open, cancel }) {
    this.store = store;
    this.bodies = bodies;
    this.open = open;
    this.cancel = cancel;
    this.chosen = null;
  }

  // Returns how many rows are shown.
  show(text, which) {
    const shown = new Set();
    const focused = document.activeElement;
    for (const active of [true, false]) {
      const runs = this.store.sorted(active).filter((run) => matches(run, text, which));
      const rows = runs.map((run) => this.#row(run));
      for (const run of runs) shown.add(run.id);
      place(this.bodies[active ? 0 : 1], rows);
    }
    for (const [id, row] of this.#rows) {
      if (shown.has(id)) continue;
      row.element.remove();
      this.#rows.delete(id);
    }
    if (focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
    return shown.size;
  }

  // What moves by itself.
  tick() {
    for (const [id, row] of this.#rows) {
      const run = this.store.get(id);
      if (run && isActive(run)) row.tick(run);
    }
  }

  choose(id) {
    this.chosen = id;
    for (const [each, row] of this.#rows) row.choose(each === id);
  }

  // The detail takes room of the table.
  reveal(id) {
    this.#rows.get(id)?.element.scrollIntoView({ block: "nearest" });
  }

  focus(id) {
    this.#rows.get(id)?.button.focus();
  }

  // Move the focus by so many rows from the one that has it.
  step(from, by) {
    const buttons = [...this.bodies[0].rows, ...this.bodies[1].rows].map((row) => row.querySelector(".open"));
    buttons[buttons.indexOf(from) + by]?.focus();
  }

  #row(run) {
    let row = this.#rows.get(run.id);
    if (!row) {
      row = new Row(run.id, this);
      row.choose(run.id === this.chosen);
      this.#rows.set(run.id, row);
    }
    row.fill(run);
    return row.element;
  }
}

class Row {
  constructor(id, table) {
    this.badge = el("span", { class: "badge" });
    this.agent = el("bdi", { class: "name" });
    this.button = el("button", { type: "button", class: "open", "aria-controls": "detail" }, this.agent);
    this.id = el("span", { class: "muted mono id" }, id.slice(-10));
    this.verb = el("span");
    this.name = el("bdi", { class: "mono name" });
    this.since = el("span", { class: "muted" });
    this.metadata = el("bdi", { class: "muted name metadata" });
    this.steps = el("td", { class: "number wide" });
    this.tokens = el("td", { class: "number wide" });
    this.time = el("td", { class: "number" });
    this.key = el("bdi", { class: "name" });
    this.where = el("td", { class: "muted wider" });
    this.began = el("td", { class: "muted wide" });
    this.cancel = el("button", { type: "button", class: "quiet danger" }, "Cancel");
    this.element = el(
      "tr",
      {},
      el("td", {}, this.badge),
      el("td", { class: "agent" }, this.button, this.id),
      el("td", { class: "doing" }, this.verb, " ", this.name, " ", this.since, this.metadata),
      this.steps,
      this.tokens,
      this.time,
      el("td", { class: "wide" }, this.key),
      this.where,
      this.began,
      el("td", { class: "end" }, this.cancel),
    );
    this.element.addEventListener("click", (event) => {
      if (!event.target.closest(".danger")) table.open(id);
    });
    this.button.addEventListener("keydown", (event) => {
      const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (!by) return;
      event.preventDefault();
      table.step(this.button, by);
    });
    this.cancel.addEventListener("click", () => table.cancel(id));
  }

  choose(chosen) {
    this.element.classList.toggle("chosen", chosen);
    this.button.setAttribute("aria-expanded", String(chosen));
  }

  fill(run) {
    const [word, kind] = state(run);
    put(this.badge, word);
    this.badge.className = `badge ${kind}`;
    put(this.agent, run.agent);
    const now = doing(run);
    put(this.verb, now.verb);
    put(this.name, now.name);
    put(this.metadata, Object.entries(run.metadata).map((pair) => pair.join(" ")).join(", "));
    put(this.steps, String(run.step));
    put(this.tokens, count(run.usage.total_tokens));
    put(this.key, run.key ?? "–");
    put(this.where, `${run.runner} · ${run.worker}`);
    put(this.began, clock(run.created));
    const canEnd = isActive(run) && run.status !== "stopping";
    if (!canEnd && document.activeElement === this.cancel) this.button.focus({ preventScroll: true });
    this.cancel.hidden = !canEnd;
    this.cancel.setAttribute("aria-label", `Cancel ${run.agent}, ${run.id.slice(-10)}`);
    this.tick(run);
  }

  tick(run) {
    const { since } = doing(run);
    put(this.since, since === null ? "" : elapsed(Math.max(0, age(run) - since)));
    put(this.time, isActive(run) ? elapsed(atWork(run)) : duration(atWork(run)));
  }
}

function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// Have just these rows, in this order; what stands right is not touched.
function place(body, rows) {
  let next = body.firstElementChild;
  for (const row of rows) {
    if (row === next) next = next.nextElementSibling;
    else body.insertBefore(row, next);
  }
}
