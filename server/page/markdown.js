// Markdown as it streams → nodes. CommonMark's way of blocks, line by line: containers, and a leaf in them.
//
// `feed` takes text, `flush` shows what is certain and, for now, what the line not yet over would be. What is
// done stays as it is; only the leaf that is open is made anew, and a leaf is bounded, so that time is linear
// in the text however it comes. Nesting is bounded; HTML is text.

import { CodeView } from "./code_view.js";
import { el } from "./dom.js";
import { inline } from "./inline.js";

const MAX_DEPTH = 12; // containers
const MAX_LEAF = 4000; // characters of a paragraph or line; a longer one goes on in a new one
const MAX_CELLS = 50;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-+*]|\d{1,9}[.)])(?: +|$)/;
const RULE = /^ {0,3}(?:\*(?: *\*){2,}|-(?: *-){2,}|_(?: *_){2,}) *$/;
const FENCE = /^( {0,3})(`{3,}|~{3,}) *([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?: |$)/;
const UNDERLINE = /^ {0,3}(?:=+|-{2,}) *$/;
const COLUMNS = /^ *\|?(?: *:?-+:? *\|)* *:?-+:? *\|? *$/;

export class Markdown {
  #stack; // the root, and the containers that are open in it
  #leaf = null;
  #line = "";
  #undo = null; // how it was before the line that is not over
  #added = [];
  #ownLine;
  #outputFence;

  // `ownLine(line)` may take a line at the root for itself; `outputFence` opens what code printed.
  constructor(root, { ownLine = () => false, outputFence = null } = {}) {
    this.#stack = [{ kind: "root", el: root }];
    this.#ownLine = ownLine;
    this.#outputFence = outputFence;
  }

  // Later blocks go there.
  set root(element) {
    this.#stack[0].el = element;
  }

  get root() {
    return this.#stack[0].el;
  }

  feed(text) {
    this.#takeBack();
    let at = 0;
    while (at < text.length) {
      const end = text.indexOf("\n", at);
      const piece = text.slice(at, end === -1 ? text.length : end);
      at += piece.length + 1;
      this.#line += piece;
      if (end !== -1) this.#endLine();
      else this.#boundLine();
    }
  }

  flush() {
    this.#takeBack();
    if (this.#line === "" || this.#leaf?.fed) return this.#render();
    this.#undo = { stack: [...this.#stack], leaf: this.#leaf, text: this.#leaf?.text };
    this.#block(this.#line, true);
    this.#render();
  }

  end() {
    this.#takeBack();
    if (this.#line !== "" || this.#leaf?.fed) this.#endLine();
    this.#close(1);
  }

  #takeBack() {
    if (!this.#undo) return;
    for (const node of this.#added) node.remove();
    this.#added = [];
    const { stack, leaf, text } = this.#undo;
    this.#undo = null;
    this.#stack = stack;
    this.#leaf = leaf;
    if (leaf?.kind === "paragraph") {
      leaf.text = text;
      leaf.stale = true;
    }
  }

  #endLine() {
    const line = this.#line.endsWith("\r") ? this.#line.slice(0, -1) : this.#line;
    this.#line = "";
    if (this.#leaf?.fed) {
      const fed = this.#leaf.fed;
      this.#leaf.fed = 0;
      this.#leaf.view.append(`${line.slice(fed)}\n`);
    } else this.#block(line, false);
  }

  // A line that goes on and on. In a fence it is shown as it comes, once it cannot be the closing one.
  #boundLine() {
    const leaf = this.#leaf;
    if (leaf?.kind === "fence" && this.#stack.length === 1) {
      if (!leaf.fed && /^ {0,3}([`~]*) *$/.test(this.#line)) return;
      leaf.view.append(this.#line.slice(leaf.fed ?? 0));
      this.#line = this.#line.slice(0, 1) || "";
      leaf.fed = this.#line.length;
    } else if (this.#line.length > MAX_LEAF) {
      const line = this.#line;
      this.#line = "";
      for (let at = 0; at < line.length; at += MAX_LEAF) this.#block(line.slice(at, at + MAX_LEAF), false);
    }
  }

  #block(source, isOpen) {
    let line = source.replace(/^[ \t]*/, (space) => space.replaceAll("\t", "    "));
    let matched = 1;
    for (; matched < this.#stack.length; matched++) {
      const rest = continued(this.#stack[matched], line);
      if (rest === null) break;
      line = rest;
    }
    if (this.#leaf?.kind === "fence" && matched === this.#stack.length) return this.#fenced(line, isOpen);
    if (!isOpen && this.#leaf?.kind !== "fence" && matched === 1 && this.#ownLine(line, () => this.#close(1))) return;
    if (matched < this.#stack.length) {
      if (this.#leaf?.kind === "paragraph" && isPlain(line)) return this.#paragraph(line, isOpen);
      const last = this.#stack[matched];
      this.#close(last.kind === "item" && sameList(this.#stack[matched - 1], line) ? matched : this.#lists(matched));
    }
    line = this.#open(line);
    this.#inside(line, isOpen);
  }

  // Lists that a line does not go on with end, too.
  #lists(depth) {
    return this.#stack[depth - 1].kind === "list" ? depth - 1 : depth;
  }

  #open(line) {
    for (;;) {
      const quote = QUOTE.exec(line);
      const item = quote || RULE.test(line) ? null : ITEM.exec(line);
      const top = this.#stack.at(-1);
      if (top.kind === "list" && !(item && sameList(top, line))) this.#close(this.#stack.length - 1);
      if (!(quote || item) || (this.#stack.length > MAX_DEPTH && top.kind !== "list")) return line;
      if (this.#leaf?.kind === "fence") return line;
      if (quote) {
        this.#push({ kind: "quote", el: el("blockquote") });
        line = line.slice(quote[0].length);
      } else {
        if (this.#leaf?.kind === "paragraph" && !interrupts(item, line)) return line;
        line = this.#item(item, line);
      }
    }
  }

  #item(found, line) {
    const [whole, indent, marker] = found;
    const type = marker.at(-1);
    if (this.#stack.at(-1).kind !== "list") {
      const isOrdered = marker.length > 1;
      const start = isOrdered ? Number.parseInt(marker, 10) : 1;
      const list = isOrdered ? el("ol", start === 1 ? {} : { start }) : el("ul");
      this.#push({ kind: "list", el: list, type });
    }
    const isWide = whole.length - indent.length - marker.length > 4;
    const width = isWide || whole === line ? indent.length + marker.length + 1 : whole.length;
    this.#push({ kind: "item", el: el("li"), indent: width });
    return line.slice(width);
  }

  #push(container) {
    this.#closeLeaf();
    this.#append(container.el);
    this.#stack.push(container);
  }

  #inside(line, isOpen) {
    const leaf = this.#leaf;
    if (line.trim() === "") return this.#closeLeaf();
    const fence = FENCE.exec(line);
    if (fence) return this.#openFence(fence);
    const heading = HEADING.exec(line);
    if (heading) {
      this.#closeLeaf();
      const made = el(`h${heading[1].length}`);
      made.append(inline(withoutClosing(line.slice(heading[0].length))));
      return this.#append(made);
    }
    if (leaf?.kind === "paragraph" && !isOpen && this.#underlined(leaf, line)) return;
    if (RULE.test(line)) {
      this.#closeLeaf();
      return this.#append(el("hr"));
    }
    if (leaf?.kind === "table") return this.#row(line);
    this.#paragraph(line, isOpen);
  }

  // A line that makes a heading, or a table, of the paragraph before it.
  #underlined(leaf, line) {
    if (line.includes("|") && COLUMNS.test(line) && !leaf.text.includes("\n")) {
      const heads = cells(leaf.text);
      if (heads.length !== cells(line).length) return false;
      const head = el("tr", {}, ...heads.map((cell) => el("th", { scope: "col" }, inline(cell))));
      const body = el("tbody");
      const table = el("table", {}, el("thead", {}, head), body);
      leaf.el.replaceWith(table);
      this.#leaf = { kind: "table", el: table, body, width: heads.length };
      return true;
    }
    if (!UNDERLINE.test(line)) return false;
    const heading = el(line.includes("=") ? "h1" : "h2", {}, inline(leaf.text));
    leaf.el.replaceWith(heading);
    this.#leaf = null;
    return true;
  }

  #row(line) {
    const { body, width } = this.#leaf;
    const found = cells(line).slice(0, width);
    while (found.length < width) found.push("");
    this.#append(el("tr", {}, ...found.map((cell) => el("td", {}, inline(cell)))), body);
  }

  #paragraph(line, isOpen) {
    const text = line.trimStart();
    if (this.#leaf?.kind === "paragraph" && this.#leaf.text.length + text.length <= MAX_LEAF) {
      this.#leaf.text += `\n${text}`;
    } else {
      this.#closeLeaf();
      const made = el("p");
      this.#append(made);
      this.#leaf = { kind: "paragraph", el: made, text };
    }
    this.#leaf.stale = true;
    if (isOpen) this.#leaf.isOpen = true;
  }

  #openFence([, indent, marks, info]) {
    this.#closeLeaf();
    const isOutput = marks === this.#outputFence && info.trim() === "text";
    const view = new CodeView(info.trim().split(/\s/)[0].slice(0, 30), { isOutput });
    this.#append(view.element);
    this.#leaf = { kind: "fence", el: view.element, view, marks, indent: indent.length, fed: 0 };
  }

  #fenced(line, isOpen) {
    const { marks, indent, view } = this.#leaf;
    const found = /^ {0,3}(`{3,}|~{3,}) *$/.exec(line);
    if (found && found[1][0] === marks[0] && found[1].length >= marks.length) this.#leaf = null;
    else if (!isOpen) view.append(`${line.slice(Math.min(indent, line.length - line.trimStart().length))}\n`);
  }

  #close(depth) {
    this.#closeLeaf();
    this.#stack.length = depth;
  }

  #closeLeaf() {
    this.#render();
    this.#leaf = null;
  }

  #render() {
    const leaf = this.#leaf;
    if (leaf?.kind !== "paragraph" || !leaf.stale) return;
    leaf.el.replaceChildren(inline(leaf.text));
    leaf.stale = false;
  }

  #append(node, parent = this.#stack.at(-1).el) {
    parent.append(node);
    if (this.#undo) this.#added.push(node);
  }
}

// What is left of a line that goes on with a container, or null.
function continued(container, line) {
  if (container.kind === "list") return line;
  if (container.kind === "quote") {
    const found = QUOTE.exec(line);
    return found && line.slice(found[0].length);
  }
  if (line.trim() === "") return "";
  const indent = line.length - line.trimStart().length;
  return indent >= container.indent ? line.slice(container.indent) : null;
}

// It begins nothing, so that it may go on with a paragraph of a container that it does not name.
function isPlain(line) {
  return line.trim() !== "" && ![QUOTE, ITEM, RULE, FENCE, HEADING].some((begins) => begins.test(line));
}

function sameList(list, line) {
  const found = RULE.test(line) ? null : ITEM.exec(line);
  return list.kind === "list" && found !== null && found[2].at(-1) === list.type;
}

function interrupts(item, line) {
  return item[0] !== line && (item[2].length === 1 || Number.parseInt(item[2], 10) === 1);
}

function withoutClosing(text) {
  const trimmed = text.trim();
  let end = trimmed.length;
  while (end && trimmed[end - 1] === "#") end--;
  return end === 0 || trimmed[end - 1] === " " ? trimmed.slice(0, end).trim() : trimmed;
}

function cells(line) {
  const found = [];
  let cell = "";
  for (const part of line.trim().replace(/^\|/, "").split(/(\\\||\||`[^`|]*`)/)) {
    if (part === "|") {
      if (found.length >= MAX_CELLS) return found;
      found.push(cell.trim());
      cell = "";
    } else cell += part === "\\|" ? "|" : part;
  }
  if (cell.trim() || !line.trim().endsWith("|")) found.push(cell.trim());
  return found;
}
