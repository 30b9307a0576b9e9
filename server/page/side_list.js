// The list of conversations: opened, begun, deleted; on a narrow screen a drawer.

import { byId, el, say } from "./dom.js";

const HEARD_MS = 1000;

export class SideList {
  #store;
  #conversation;
  #list = byId("conversations");
  #side = byId("side");
  #opener = byId("open-side");
  #heard = new Set();
  #narrow = matchMedia("(max-width: 50rem)");

  // `go(id)` shows a conversation, or a new one without an id.
  constructor(store, conversation, go) {
    this.#store = store;
    this.#conversation = conversation;
    this.go = go;
    byId("new").addEventListener("click", () => go(""));
    byId("clear").addEventListener("click", () => this.#clear());
    this.#opener.addEventListener("click", () => this.#open());
    byId("close-side").addEventListener("click", () => this.close());
    this.#narrow.addEventListener("change", () => this.close());
    store.onChange((id) => this.#onChange(id));
    this.close();
  }

  get isOpen() {
    return this.#side.classList.contains("open");
  }

  async show() {
    const all = await this.#store.conversations();
    const shown = this.#conversation.shown?.id;
    const focused = document.activeElement?.dataset?.focus;
    this.#list.replaceChildren(...all.map((each) => this.#entry(each, each.id === shown)));
    byId("clear").hidden = all.length === 0;
    if (focused) this.#list.querySelector(`[data-focus="${focused}"]`)?.focus();
  }

  close() {
    const hadFocus = this.#side.contains(document.activeElement);
    this.#side.classList.remove("open");
    this.#side.inert = this.#narrow.matches;
    this.#opener.setAttribute("aria-expanded", "false");
    if (hadFocus && this.#narrow.matches) this.#opener.focus();
  }

  #open() {
    this.#side.classList.add("open");
    this.#side.inert = false;
    this.#opener.setAttribute("aria-expanded", "true");
    byId("close-side").focus();
  }

  #entry({ id, title }, isShown) {
    const open = { type: "button", class: "quiet", "data-focus": id, "aria-current": isShown ? "true" : undefined };
    const remove = { type: "button", class: "quiet remove", "data-focus": `x${id}`, "aria-label": `Delete: ${title}` };
    return el(
      "li",
      {},
      el("button", { ...open, onclick: () => this.go(id) }, title),
      el("button", { ...remove, onclick: () => this.#delete(id, title) }, "Delete"),
    );
  }

  async #delete(id, title) {
    if (!confirm(`Delete “${title}”?`)) return;
    this.#conversation.stopAll(id);
    await this.#store.deleteConversation(id);
    say("Deleted");
    if (this.#conversation.shown?.id === id) this.go("");
    else await this.show();
    byId("new").focus();
  }

  async #clear() {
    if (!confirm("Delete all conversations kept in this browser?")) return;
    this.#conversation.stopAll();
    await this.#store.deleteAll();
    say("All deleted");
    this.go("");
  }

  // Another tab changed something: shown soon, and once for many changes.
  #onChange(id) {
    if (this.#heard.size === 0) setTimeout(() => this.#catchUp(), HEARD_MS);
    this.#heard.add(id);
  }

  async #catchUp() {
    const heard = this.#heard;
    this.#heard = new Set();
    const { shown, isLive } = this.#conversation;
    if (shown && !isLive && (heard.has(null) || heard.has(shown.id))) await this.#reload(shown);
    await this.show();
  }

  async #reload(shown) {
    const found = (await this.#store.conversations()).find((each) => each.id === shown.id);
    await this.#conversation.show(found ?? null);
  }
}
