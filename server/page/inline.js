// Markdown within a line or paragraph → nodes: code, emphasis, links, breaks. All else is text.
//
// Time is linear: what could be looked for again and again is bounded. HTML stays text; a link leads
// somewhere only by http, https or mailto; images are not loaded, their text is a link to them.

const MAX_OPEN = 16; // emphasis within emphasis
const MAX_RUN = 6; // more marks in a row are a line, not emphasis
const MAX_TARGET = 2000;
const PLAIN = /[^\\`*_~[\]!<&hHm]+/y;
const URL_HERE = /(?:https?:\/\/|mailto:)[^\s<>"`]{1,2000}/iy;
const ANGLE_LINK = /<((?:https?:\/\/|mailto:)[^\s<>]{1,2000})>/iy;
const BREAK = /<br ?\/?>/iy;
const TARGET = /\(\s{0,9}(?:<([^<>\n]*)>|([^\s()]*(?:\([^\s()]*\)[^\s()]*)*))(?:\s{1,9}(?:"[^"]*"|'[^']*'))?\s{0,9}\)/y;
const ENTITY = /&(?:#(\d{1,7})|#x([\da-f]{1,6})|(amp|lt|gt|quot|apos|nbsp));/iy;
const NAMED = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0" };
const RUN = { "*": /\*+/y, _: /_+/y, "~": /~+/y, "`": /`+/y };
const SPACE = /^\s?$/u;
const PUNCTUATION = /[\p{P}\p{S}]/u;
const WORD = /[\p{L}\p{N}_]/u;

export function inline(text) {
  return emphasised(new Scanner(text).items());
}

// A URL that is safe to follow, or null.
export function safeUrl(text) {
  if (!/^(?:https?|mailto):/i.test(text) || text.length > MAX_TARGET) return null;
  try {
    const url = new URL(text);
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

function link(url, ...children) {
  const made = document.createElement("a");
  made.href = url;
  made.rel = "noopener noreferrer nofollow";
  made.target = "_blank";
  made.append(...children);
  return made;
}

// Items are strings, nodes, and marks: {mark, count, opens, closes}, which `emphasised` makes sense of.
class Scanner {
  #text;
  #at = 0;
  #items = [];
  #brackets = [];
  #unclosed = new Set(); // lengths of backtick runs that nothing closes
  #deaf = false; // no `](` from here on ends in `)`

  constructor(text) {
    this.#text = text;
  }

  items() {
    while (this.#at < this.#text.length) {
      const plain = this.#match(PLAIN);
      if (plain) this.#items.push(plain[0]);
      else this.#special(this.#text[this.#at]);
    }
    return this.#items;
  }

  #match(pattern) {
    pattern.lastIndex = this.#at;
    const found = pattern.exec(this.#text);
    if (found) this.#at = pattern.lastIndex;
    return found;
  }

  #special(character) {
    switch (character) {
      case "\\":
        return this.#escape();
      case "`":
        return this.#code();
      case "*":
      case "_":
      case "~":
        return this.#mark(character);
      case "[":
        this.#brackets.push(this.#items.length);
        return this.#literal(1);
      case "]":
        return this.#closeBracket();
      case "<":
        return this.#angle();
      case "&":
        return this.#entity();
      case "h":
      case "H":
      case "m":
        return this.#bareUrl();
      default:
        return this.#literal(1);
    }
  }

  #literal(length) {
    this.#items.push(this.#text.slice(this.#at, this.#at + length));
    this.#at += length;
  }

  #escape() {
    const next = this.#text[this.#at + 1] ?? "";
    if (next === "\n") this.#at += 1;
    else if (/[!-/:-@[-`{-~]/.test(next)) {
      this.#at += 1;
      this.#literal(1);
    } else this.#literal(1);
  }

  #code() {
    const begin = this.#at;
    const { length } = this.#match(RUN["`"])[0];
    const content = this.#at;
    if (!this.#unclosed.has(length)) {
      const runs = /`+/g;
      runs.lastIndex = content;
      for (let run = runs.exec(this.#text); run; run = runs.exec(this.#text)) {
        if (run[0].length !== length) continue;
        const code = document.createElement("code");
        const inside = this.#text.slice(content, run.index).replaceAll("\n", " ");
        code.textContent = /^ .*[^ ].* $/s.test(inside) ? inside.slice(1, -1) : inside;
        this.#items.push(code);
        this.#at = runs.lastIndex;
        return;
      }
      this.#unclosed.add(length);
    }
    this.#at = begin;
    this.#literal(length);
  }

  #mark(character) {
    const before = this.#at ? this.#text[this.#at - 1] : "";
    const run = this.#match(RUN[character])[0];
    const after = this.#text[this.#at] ?? "";
    const left = !SPACE.test(after) && (!PUNCTUATION.test(after) || SPACE.test(before) || PUNCTUATION.test(before));
    const right = !SPACE.test(before) && (!PUNCTUATION.test(before) || SPACE.test(after) || PUNCTUATION.test(after));
    if (run.length > MAX_RUN || (character === "~" && run.length !== 2)) {
      this.#items.push(run);
      return;
    }
    const inWord = character === "_";
    const opens = left && (!inWord || !right || PUNCTUATION.test(before));
    const closes = right && (!inWord || !left || PUNCTUATION.test(after));
    this.#items.push({ mark: character, count: run.length, opens, closes });
  }

  #closeBracket() {
    const open = this.#brackets.pop();
    if (open !== undefined && this.#text[this.#at + 1] === "(" && !this.#deaf) {
      const begin = this.#at;
      this.#at += 1;
      const target = this.#match(TARGET);
      if (!target) this.#deaf = this.#text.indexOf(")", this.#at) === -1;
      const url = target && safeUrl(target[1] ?? target[2]);
      if (url) {
        const inside = this.#items.splice(open).slice(1);
        if (this.#items.at(-1) === "!") this.#items.pop(); // an image
        this.#items.push(link(url, inside.length ? emphasised(inside) : url));
        this.#brackets = [];
        return;
      }
      this.#at = begin;
    }
    this.#literal(1);
  }

  #angle() {
    const url = this.#match(ANGLE_LINK);
    if (url && safeUrl(url[1])) this.#items.push(link(safeUrl(url[1]), url[1]));
    else if (url) this.#items.push(url[0]);
    else if (this.#match(BREAK)) this.#items.push(document.createElement("br"));
    else this.#literal(1);
  }

  #entity() {
    const found = this.#match(ENTITY);
    if (!found) return this.#literal(1);
    const code = found[1] ? Number(found[1]) : Number.parseInt(found[2], 16);
    const valid = code > 0 && code <= 0x10ffff && !(code >= 0xd800 && code < 0xe000);
    this.#items.push(found[3] ? NAMED[found[3].toLowerCase()] : valid ? String.fromCodePoint(code) : "\ufffd");
  }

  #bareUrl() {
    const before = this.#at ? this.#text[this.#at - 1] : "";
    const begin = this.#at;
    const found = WORD.test(before) ? null : this.#match(URL_HERE);
    // What ends a sentence, or stands around the address, is no part of it.
    const shown = found?.[0].replace(/[.,;:!?'*_~)\]]{1,20}$/, (end) => (end[0] === ")" && found[0].includes("(") ? ")" : ""));
    const url = shown && safeUrl(shown);
    if (!url) {
      this.#at = begin;
      return this.#literal(1);
    }
    this.#at = begin + shown.length;
    this.#items.push(link(url, shown));
  }
}

// Frames are emphasis that is open; the outermost has no mark.
function emphasised(items) {
  const frames = [{ mark: "", count: 0, nodes: [] }];
  for (const item of items) {
    if (typeof item === "string" || item instanceof Node) frames.at(-1).nodes.push(item);
    else take(frames, { ...item });
  }
  while (frames.length > 1) unwind(frames);
  const fragment = document.createDocumentFragment();
  fragment.append(...frames[0].nodes);
  fragment.normalize();
  return fragment;
}

function take(frames, item) {
  while (item.closes && item.count) {
    const at = frames.findLastIndex((frame) => matches(frame, item));
    if (at < 1) break;
    while (frames.length > at + 1) unwind(frames);
    const frame = frames.pop();
    const used = Math.min(2, frame.count, item.count);
    const made = document.createElement(item.mark === "~" ? "del" : used === 2 ? "strong" : "em");
    made.append(...frame.nodes);
    item.count -= used;
    frame.count -= used;
    if (frame.count) frames.push({ ...frame, nodes: [made] });
    else frames.at(-1).nodes.push(made);
  }
  if (!item.count) return;
  if (item.opens && frames.length <= MAX_OPEN) frames.push({ ...item, nodes: [] });
  else frames.at(-1).nodes.push(item.mark.repeat(item.count));
}

// CommonMark's rule of three: `*foo**bar*` is not two emphases.
function matches(frame, item) {
  if (frame.mark !== item.mark) return false;
  if (!frame.closes && !item.opens) return true;
  return (frame.count + item.count) % 3 !== 0 || (frame.count % 3 === 0 && item.count % 3 === 0);
}

// What was not closed is text after all.
function unwind(frames) {
  const frame = frames.pop();
  frames.at(-1).nodes.push(frame.mark.repeat(frame.count), ...frame.nodes);
}
