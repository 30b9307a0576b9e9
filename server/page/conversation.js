// The conversation that is shown: its turns, the reply under way, what is kept of it.

import { API_BASE } from "./api.js";
import { byId, newId, say } from "./dom.js";
import { PaintQueue } from "./paint_queue.js";
import { ReplyReader, newReply, requestOf } from "./reply.js";
import { ReplyView } from "./reply_view.js";
import { asCurl, asPython } from "./snippets.js";

const SAVE_MS = 500;
const CHARACTERS_A_MS = 500; // a long reply is saved less often
const ABANDONED_MS = 5000; // a live turn not saved for so long has no tab any more
const TITLE_CHARACTERS = 60;
const NEAR_END_PX = 60;

export class Conversation {
  #store;
  #context;
  #queue = new PaintQueue();
  #turns = [];
  #live = new Map(); // turns whose replies are read here, shown or not, by id
  #list = byId("turns");
  #scroll = byId("scroll");
  #follows = true;
  #tab = tabId();
  shown = null;

  // `context`: {key(), isAgent(model), changed(), refused(), notKept()}.
  constructor(store, context) {
    this.#store = store;
    this.#context = context;
    this.#scroll.addEventListener("scroll", () => {
      const { scrollHeight, scrollTop, clientHeight } = this.#scroll;
      this.#follows = scrollHeight - scrollTop - clientHeight < NEAR_END_PX;
    }, { passive: true });
    // What is unfolded opens where it is.
    this.#list.addEventListener("click", ({ target }) => {
      if (!this.isLive && target.closest("summary")) this.#follows = false;
    });
    addEventListener("pagehide", () => {
      for (const { turn } of this.#live.values()) this.#store.leaveReply(turn);
    });
    setInterval(() => this.#saveLive(), SAVE_MS);
  }

  get isLive() {
    return this.#shownLive() !== undefined;
  }

  // Show one that was kept, or a new one.
  async show(conversation) {
    this.shown = conversation;
    const live = new Map(this.#live); // one that ends meanwhile is newer than what is read
    const turns = conversation ? await this.#store.turns(conversation.id) : [];
    if (this.shown !== conversation) return;
    this.#turns = turns.map((turn) => live.get(turn.id)?.turn ?? this.#mended(turn));
    this.#list.replaceChildren(...this.#turns.map((turn) => live.get(turn.id)?.view.element ?? this.#kept(turn)));
    this.#follows = true;
    this.#follow();
    this.#context.changed();
  }

  async ask(text, images, model) {
    if (this.isLive) return;
    const now = Date.now();
    const shown = (this.shown ??= { id: newId(), title: titleOf(text), created: now });
    Object.assign(shown, { model, updated: now });
    const turn = { id: newId(), conversation: shown.id, at: now, model, text, images, reply: newReply(), owner: this.#tab };
    this.#forgetRetry();
    this.#turns.push(turn);
    const body = requestOf(turn, this.#turns.slice(0, -1));
    const reader = new ReplyReader(this.#context.key(), this.#context.isAgent(model));
    const view = this.#view(turn);
    this.#live.set(turn.id, { turn, reader, view });
    this.#list.append(view.element);
    this.#follows = true;
    view.start();
    this.#follow();
    this.#context.changed();
    await this.#keep(() => this.#store.saveConversation(shown));
    this.#context.changed(); // now it is listed
    await this.#keep(() => this.#store.saveTurn(turn));
    say("Working");
    await reader.read(turn, body, view);
    this.#live.delete(turn.id);
    this.#end(turn, view);
  }

  stop() {
    this.#shownLive()?.reader.stop();
  }

  // Stops what is read of a conversation, or of all.
  stopAll(conversation = null) {
    for (const { turn, reader } of this.#live.values()) {
      if (conversation === null || turn.conversation === conversation) reader.stop();
    }
  }

  #end(turn, view) {
    const isShown = this.shown?.id === turn.conversation;
    view.finish({ folds: this.#follows });
    this.#keep(() => this.#store.saveReply(turn));
    this.#context.changed();
    if (!isShown) return;
    say(spoken(turn.reply));
    if (turn.reply.status === 401) this.#context.refused();
  }

  #shownLive() {
    return [...this.#live.values()].find(({ turn }) => turn.conversation === this.shown?.id);
  }

  #saveLive() {
    const now = Date.now();
    for (const { turn } of this.#live.values()) {
      const { reasoning, content } = turn.reply;
      if (now < (turn.savedAt ?? 0) + (reasoning.length + content.length) / CHARACTERS_A_MS) continue;
      turn.savedAt = now;
      this.#keep(() => this.#store.saveReply(turn));
    }
  }

  async #keep(write) {
    try {
      await write();
    } catch (error) {
      this.#context.notKept(error);
    }
  }

  // A reply whose tab is gone does not go on.
  #mended(turn) {
    const isOurs = turn.owner === this.#tab;
    if (turn.reply.state === "live" && (isOurs || Date.now() - turn.savedAt > ABANDONED_MS)) {
      turn.reply.state = "interrupted";
      turn.reply.seconds = Math.max(0, turn.savedAt - turn.at) / 1000;
      this.#keep(() => this.#store.saveReply(turn));
    }
    return turn;
  }

  #kept(turn) {
    const view = this.#view(turn);
    view.showKept();
    return view.element;
  }

  #view(turn) {
    return new ReplyView(turn, {
      isAgent: this.#context.isAgent(turn.model),
      queue: this.#queue,
      onPaint: () => this.#follow(),
      actions: { retry: () => this.#retry(turn), canRetry: () => turn === this.#turns.at(-1), snippets: this.#snippets(turn) },
    });
  }

  #snippets(turn) {
    const request = () => requestOf(turn, this.#turns.slice(0, this.#turns.indexOf(turn)));
    const needsKey = () => Boolean(this.#context.key());
    return [
      { label: "Copy as curl", text: () => asCurl(API_BASE, request(), needsKey()) },
      { label: "Copy as Python", text: () => asPython(API_BASE, request(), needsKey()) },
    ];
  }

  async #retry(turn) {
    if (this.isLive || turn !== this.#turns.at(-1)) return;
    this.#turns.pop();
    this.#list.lastElementChild.remove();
    await this.#keep(() => this.#store.deleteTurn(turn));
    byId("question").focus();
    await this.ask(turn.text, turn.images, byId("model").value || turn.model);
  }

  // Only the last turn can be asked again.
  #forgetRetry() {
    for (const button of this.#list.querySelectorAll(".retry")) button.remove();
  }

  #follow() {
    if (this.#follows) this.#scroll.scrollTop = this.#scroll.scrollHeight;
  }
}

function titleOf(text) {
  const line = text.trim().split("\n")[0] || "An image";
  return line.length > TITLE_CHARACTERS ? `${line.slice(0, TITLE_CHARACTERS)}…` : line;
}

// What a screen reader is told at the end: enough to know, not the whole reply.
function spoken(reply) {
  const said = { done: "Answer", stopped: "Stopped", failed: "Failed" }[reply.state];
  const text = (reply.error || reply.content).slice(0, 300);
  return text ? `${said}: ${text}` : said;
}

function tabId() {
  try {
    const id = sessionStorage.getItem("smolgate-tab") ?? newId();
    sessionStorage.setItem("smolgate-tab", id);
    return id;
  } catch {
    return newId();
  }
}
