// One run's spans as a picture: a lane for each kind, what was at the same time side by side.

import { duration } from "./amounts.js";
import { el } from "./dom.js";
import { notes, title, took } from "./run_words.js";

const LANES = [
  ["Run", ["queue", "setup", "paused"]],
  ["Steps", ["step", "plan"]],
  ["Model", ["model"]],
  ["Code", ["code"]],
  ["Tools", ["tool"]],
];
const UNNAMED = { queue: "queue", setup: "setup", paused: "client", plan: "plan" };
const SVG = "http://www.w3.org/2000/svg";
const LABELS = 56;
const RIGHT = 12;
const AXIS = 22;
const BAR = 22;
const GAP = 4;
const MAX_ROWS = 5;
const LEAST_BAR = 3;
const CHARACTER = 6.6;
const TICK_SPACE = 90;
const TICKS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200];

// Lanes with rows; a span stands in the first row that is free by then.
export function layout(spans, now) {
  const lanes = [];
  for (const [name, kinds] of LANES) {
    const free = []; // of each row, from when on
    const bars = [];
    for (const span of spans.filter((each) => kinds.includes(each.kind))) {
      const end = span.end ?? now;
      let row = free.findIndex((from) => from <= span.start + 1e-3);
      if (row < 0) row = Math.min(free.length, MAX_ROWS - 1);
      free[row] = Math.max(free[row] ?? 0, end);
      bars.push({ span, row, end });
    }
    if (bars.length) lanes.push({ name, bars, rows: free.length });
  }
  return lanes;
}

export class RunTimeline {
  #bars = new Map();
  #order = [];
  #spans = [];
  #now = 0;

  constructor(place, tip) {
    this.place = place;
    this.tip = tip;
    this.grid = node("g", { class: "grid", "aria-hidden": "true" });
    this.layer = node("g", { role: "list", "aria-label": "Spans, in the order of their start" });
    this.svg = node("svg", { role: "group", "aria-label": "Timeline. Arrow keys move between spans; a table follows." });
    this.svg.append(hatch(), this.grid, this.layer);
    place.append(this.svg);
    new ResizeObserver(() => this.#draw()).observe(place);
    this.svg.addEventListener("keydown", (event) => this.#move(event));
  }

  show(spans, now) {
    this.#spans = spans;
    this.#now = now;
    this.#draw();
  }

  // Time has gone on; whether anything moves.
  tick(now) {
    if (!this.#spans.some((span) => span.end === null)) return;
    this.#now = now;
    this.#draw();
  }

  #draw() {
    const width = this.place.clientWidth;
    if (!width) return;
    const lanes = layout(this.#spans, this.#now);
    const whole = Math.max(0.001, ...lanes.flatMap((lane) => lane.bars.map((bar) => bar.end)));
    const scale = (width - LABELS - RIGHT) / whole;
    const known = new Set();
    this.grid.replaceChildren();
    let top = AXIS;
    for (const lane of lanes) {
      const height = lane.rows * (BAR + GAP) + GAP;
      this.grid.append(
        node("rect", { class: "lane", x: 0, y: top, width, height: height - 2, rx: 4 }),
        text("lane-name", 8, top + GAP + BAR / 2, lane.name),
      );
      for (const bar of lane.bars) {
        const y = top + GAP / 2 + 1 + bar.row * (BAR + GAP);
        known.add(this.#bar(bar, LABELS + bar.span.start * scale, y, (bar.end - bar.span.start) * scale, scale));
      }
      top += height + 2;
    }
    this.#axis(whole, scale, top);
    set(this.svg, { width, height: top + 2, viewBox: `0 0 ${width} ${top + 2}` });
    this.#keep(known);
  }

  #axis(whole, scale, bottom) {
    const step = TICKS.find((each) => each * scale >= TICK_SPACE) ?? Math.ceil(whole / 3600) * 3600;
    for (let at = 0; at <= whole; at += step) {
      const x = LABELS + at * scale;
      this.grid.append(node("line", { class: "tick", x1: x, x2: x, y1: AXIS - 4, y2: bottom }));
      if (x < this.place.clientWidth - 24) this.grid.append(text("time", x + 3, AXIS - 10, step < 1 ? duration(at) : label(at)));
    }
  }

  #bar({ span, end }, x, y, width, scale) {
    const key = `${span.kind} ${span.name} ${span.start}`;
    let bar = this.#bars.get(key);
    if (!bar) {
      bar = new Bar((shown) => this.#tell(bar, shown));
      this.#bars.set(key, bar);
      this.layer.append(bar.element);
    }
    bar.draw(span, end, x, y, Math.max(LEAST_BAR, width), scale, this.#now);
    return key;
  }

  // Drop what is no more; one bar is the way in for the keyboard.
  #keep(known) {
    for (const [key, bar] of this.#bars) {
      if (known.has(key)) continue;
      bar.element.remove();
      this.#bars.delete(key);
    }
    this.#order = [...this.#bars.values()].sort((a, b) => a.span.start - b.span.start);
    const entry = this.#order.find((bar) => bar.element === document.activeElement) ?? this.#order[0];
    for (const bar of this.#order) bar.element.setAttribute("tabindex", bar === entry ? "0" : "-1");
  }

  #move(event) {
    const at = this.#order.findIndex((bar) => bar.element === document.activeElement);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: this.#order.length - 1 }[event.key];
    if (at < 0 || to === undefined || !this.#order[to]) return;
    event.preventDefault();
    this.#order[at].element.setAttribute("tabindex", "-1");
    this.#order[to].element.setAttribute("tabindex", "0");
    this.#order[to].element.focus();
  }

  #tell(bar, shown) {
    this.tip.hidden = !shown;
    if (!shown) return;
    const { span } = bar;
    const times = `${duration(took(span, this.#now))}, from ${duration(span.start)} to ${span.end === null ? "now" : duration(span.end)}`;
    this.tip.replaceChildren(el("strong", {}, el("bdi", {}, title(span))), el("span", {}, times));
    for (const note of notes(span)) this.tip.append(el("span", { class: "muted" }, note));
    const box = bar.element.getBoundingClientRect();
    const left = Math.min(Math.max(8, box.left), innerWidth - this.tip.offsetWidth - 8);
    const above = box.top - this.tip.offsetHeight - 6;
    this.tip.style.left = `${left}px`;
    this.tip.style.top = `${above > 4 ? above : box.bottom + 6}px`;
  }
}

class Bar {
  constructor(tell) {
    this.waits = node("rect", { class: "waits" });
    this.rect = node("rect", { class: "body", rx: 3 });
    this.text = text("bar-text", 0, 0, "");
    this.element = node("g", { role: "listitem", tabindex: "-1" });
    this.element.append(this.rect, this.waits, this.text);
    for (const name of ["pointerenter", "focus"]) this.element.addEventListener(name, () => tell(true));
    for (const name of ["pointerleave", "blur"]) this.element.addEventListener(name, () => tell(false));
  }

  draw(span, end, x, y, width, scale, now) {
    this.span = span;
    const flags = [span.failed && "failed", span.cut && "cut", span.end === null && "open"].filter(Boolean);
    set(this.element, {
      class: ["bar", `kind-${span.kind}`, ...flags].join(" "),
      "aria-label": [title(span), duration(took(span, now)), `from ${duration(span.start)}`, ...notes(span)].join(", "),
    });
    set(this.rect, { x, y, width, height: BAR });
    // Until its first token a model has only been waited for.
    const waited = span.first_token === undefined ? 0 : Math.min(width, span.first_token * scale);
    set(this.waits, { x, y, width: waited, height: BAR });
    const room = Math.floor((width - 10) / CHARACTER);
    const said = fitting(span, took(span, now), room);
    set(this.text, { x: x + 5, y: y + BAR / 2 });
    if (this.text.textContent !== said) this.text.textContent = said;
  }
}

// As much as there is room for: its name and its time, one of them, or nothing.
function fitting(span, seconds, room) {
  const name = span.kind === "step" ? `step ${span.name}` : span.name || UNNAMED[span.kind] || "";
  const time = duration(seconds);
  if (name && name.length + time.length + 3 <= room) return `${name} · ${time}`;
  if (name && name.length <= room) return name;
  if (!name && time.length <= room) return time;
  return room >= 6 && name ? `${[...name].slice(0, room - 1).join("")}…` : "";
}

function label(at) {
  if (at < 60) return `${at} s`;
  const minutes = Math.floor(at / 60);
  return `${minutes}:${String(Math.round(at % 60)).padStart(2, "0")}`;
}

function hatch() {
  const pattern = node("pattern", { id: "hatch", width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" });
  pattern.append(node("rect", { class: "hatch-ground", width: 6, height: 6 }), node("line", { class: "hatch-line", x1: 0, x2: 0, y1: 0, y2: 6 }));
  const defs = node("defs", {});
  defs.append(pattern);
  return defs;
}

function text(kind, x, y, said) {
  const made = node("text", { class: kind, x, y, "dominant-baseline": "central" });
  made.textContent = said;
  return made;
}

function node(tag, attributes) {
  return set(document.createElementNS(SVG, tag), attributes);
}

function set(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  return element;
}
