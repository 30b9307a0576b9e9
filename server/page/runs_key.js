// The operator's API key: asked for in a dialog, kept for the tab, or in the browser where that is wished.

import { byId } from "./dom.js";

const NAME = "smolgate-key";
let asked = null;

// "" where there is none.
export function keptKey() {
  try {
    return sessionStorage.getItem(NAME) ?? localStorage.getItem(NAME) ?? "";
  } catch {
    return ""; // a browser that keeps nothing
  }
}

function keep(key, remember) {
  try {
    sessionStorage.removeItem(NAME);
    localStorage.removeItem(NAME);
    if (key) (remember ? localStorage : sessionStorage).setItem(NAME, key);
  } catch {
    // it holds for this page alone
  }
}

// The key that is typed in, "" to go without one, null where it was left as it is. `why`: the last one was refused.
export function askForKey(why) {
  const dialog = byId("key-dialog");
  byId("key").value = keptKey();
  byId("key-refused").hidden = !why;
  byId("key-refused").textContent = why;
  if (dialog.open) return asked;
  dialog.showModal();
  byId("key").select();
  asked = new Promise((answer) => {
    const done = new AbortController();
    const finish = (key) => {
      done.abort();
      if (key !== null) keep(key, byId("key-remember").checked);
      byId("key").value = "";
      dialog.close();
      answer(key);
    };
    const on = (id, name, act) => byId(id).addEventListener(name, act, { signal: done.signal });
    on("key-form", "submit", (event) => {
      event.preventDefault();
      finish(byId("key").value.trim());
    });
    on("key-forget", "click", () => finish(""));
    on("key-cancel", "click", () => finish(null));
    on("key-dialog", "cancel", (event) => {
      event.preventDefault();
      finish(null);
    });
  });
  return asked;
}
