// Conversations kept in this browser (IndexedDB), each turn on its own, so that two tabs lose nothing of
// each other's. Where the browser keeps nothing, they last as long as the page.

import { PLACE } from "./api.js";

const NAME = `smolgate${PLACE}`;
const STORES = ["conversations", "turns", "replies"];
const LEFT = `smolgate-left${PLACE}`;

export async function openStore() {
  try {
    const store = new Store(await opened());
    await store.recover();
    return store;
  } catch {
    return new MemoryStore();
  }
}

function opened() {
  return new Promise((resolve, reject) => {
    const opening = indexedDB.open(NAME, 1);
    opening.onupgradeneeded = () => {
      for (const name of STORES) opening.result.createObjectStore(name, { keyPath: "id" });
      opening.transaction.objectStore("turns").createIndex("conversation", "conversation");
    };
    opening.onsuccess = () => resolve(opening.result);
    opening.onerror = opening.onblocked = () => reject(opening.error);
  });
}

function result(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

function keysLeft() {
  try {
    return Object.keys(localStorage).filter((key) => key.startsWith(LEFT));
  } catch {
    return [];
  }
}

class Store {
  keeps = true;
  #database;
  #news = typeof BroadcastChannel === "function" ? new BroadcastChannel(NAME) : null;

  constructor(database) {
    this.#database = database;
    database.onversionchange = () => database.close();
  }

  // `heard(id)` is called when another tab changed a conversation; without an id it deleted all.
  onChange(heard) {
    if (this.#news) this.#news.onmessage = ({ data }) => heard(data);
  }

  async conversations() {
    const all = await result(this.#of("conversations").getAll());
    return all.sort((one, other) => other.updated - one.updated);
  }

  async turns(conversation) {
    const transaction = this.#database.transaction(["turns", "replies"]);
    const found = await result(transaction.objectStore("turns").index("conversation").getAll(conversation));
    const replies = await Promise.all(found.map(({ id }) => result(transaction.objectStore("replies").get(id))));
    return found
      .map((turn, index) => ({ ...turn, reply: replies[index].reply, owner: replies[index].owner, savedAt: replies[index].savedAt }))
      .sort((one, other) => one.at - other.at);
  }

  async saveConversation(conversation) {
    await this.#put(["conversations"], (of) => of("conversations").put(conversation));
    this.#tell(conversation.id);
  }

  async saveTurn({ id, conversation, at, model, text, images, reply, owner }) {
    await this.#put(["turns", "replies"], (of) => {
      of("turns").put({ id, conversation, at, model, text, images });
      of("replies").put({ id, reply, owner, savedAt: Date.now() });
    });
    this.#tell(conversation);
  }

  // Unless it has been deleted meanwhile.
  async saveReply({ id, conversation, reply, owner }) {
    await this.#put(["turns", "replies"], (of) => {
      of("turns").getKey(id).onsuccess = ({ target }) => {
        if (target.result !== undefined) of("replies").put({ id, reply, owner, savedAt: Date.now() });
      };
    });
    if (reply.state !== "live") this.#tell(conversation);
  }

  // At once: a page that is being left does not see the end of a transaction.
  leaveReply({ id, conversation, reply, owner }) {
    try {
      localStorage.setItem(LEFT + id, JSON.stringify({ id, conversation, reply, owner }));
    } catch {
      // too long for it: what was saved last is there
    }
  }

  // What pages left in the midst of a reply.
  async recover() {
    for (const name of keysLeft()) {
      const left = localStorage.getItem(name);
      localStorage.removeItem(name);
      await this.saveReply(JSON.parse(left)).catch(() => {}); // what was saved last is there
    }
  }

  async deleteTurn(turn) {
    await this.#put(["turns", "replies"], (of) => {
      of("turns").delete(turn.id);
      of("replies").delete(turn.id);
    });
    this.#tell(turn.conversation);
  }

  async deleteConversation(id) {
    await this.#put(STORES, (of) => {
      of("conversations").delete(id);
      of("turns").index("conversation").getAllKeys(id).onsuccess = ({ target }) => {
        for (const turn of target.result) {
          of("turns").delete(turn);
          of("replies").delete(turn);
        }
      };
    });
    this.#tell(id);
  }

  async deleteAll() {
    await this.#put(STORES, (of) => STORES.forEach((name) => of(name).clear()));
    this.#tell(null);
  }

  #of(name) {
    return this.#database.transaction(name).objectStore(name);
  }

  #put(names, write) {
    return new Promise((resolve, reject) => {
      const transaction = this.#database.transaction(names, "readwrite");
      transaction.oncomplete = resolve;
      transaction.onerror = transaction.onabort = () => reject(transaction.error);
      write((name) => transaction.objectStore(name));
    });
  }

  #tell(id) {
    this.#news?.postMessage(id);
  }
}

class MemoryStore {
  keeps = false;
  #conversations = new Map();
  #turns = new Map();

  onChange() {}

  async conversations() {
    return [...this.#conversations.values()].sort((one, other) => other.updated - one.updated);
  }

  async turns(conversation) {
    return [...this.#turns.values()].filter((turn) => turn.conversation === conversation);
  }

  async saveConversation(conversation) {
    this.#conversations.set(conversation.id, conversation);
  }

  async saveTurn(turn) {
    this.#turns.set(turn.id, turn);
  }

  async saveReply() {}

  leaveReply() {}

  async deleteTurn({ id }) {
    this.#turns.delete(id);
  }

  async deleteConversation(id) {
    this.#conversations.delete(id);
    for (const turn of await this.turns(id)) this.#turns.delete(turn.id);
  }

  async deleteAll() {
    this.#conversations.clear();
    this.#turns.clear();
  }
}
