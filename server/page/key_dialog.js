// The API key: asked for where the server wants one, kept with the tab or, if so wished, in this browser.

import { PLACE } from "./api.js";
import { byId } from "./dom.js";

const NAME = `smolgate-key${PLACE}`;

export class KeyDialog {
  #dialog = byId("key-dialog");
  #field = byId("key");
  #remember = byId("key-remember");
  #key = read(sessionStorage) || read(localStorage);

  // `changed()` is called with each new key, and when it is forgotten.
  constructor(changed) {
    byId("key-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#keep(this.#field.value.trim(), this.#remember.checked);
      this.#dialog.close();
      changed();
    });
    byId("key-forget").addEventListener("click", () => {
      this.#keep("", false);
      this.#dialog.close();
      changed();
    });
    byId("key-cancel").addEventListener("click", () => this.#dialog.close());
  }

  get key() {
    return this.#key;
  }

  // `isRefused`: the server did not take the key that it got.
  ask({ isRefused = false } = {}) {
    byId("key-refused").hidden = !isRefused;
    byId("key-forget").hidden = !this.#key;
    this.#field.value = "";
    this.#remember.checked = Boolean(read(localStorage));
    if (!this.#dialog.open) this.#dialog.showModal();
    this.#field.focus();
  }

  #keep(key, isForLong) {
    this.#key = key;
    write(sessionStorage, isForLong ? "" : key);
    write(localStorage, isForLong ? key : "");
  }
}

function read(storage) {
  try {
    return storage.getItem(NAME) ?? "";
  } catch {
    return ""; // a browser that keeps nothing
  }
}

function write(storage, key) {
  try {
    if (key) storage.setItem(NAME, key);
    else storage.removeItem(NAME);
  } catch {
    // it holds for this page alone
  }
}
