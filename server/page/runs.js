// The operator's page: all runs live, one of them in detail, and an end to them.

import { count, elapsed, plural } from "./amounts.js";
import { byId, el, say } from "./dom.js";
import { KeyDialog } from "./key_dialog.js";
import { RunDetail } from "./run_detail.js";
import { RunFeed } from "./run_feed.js";
import { RunStore, atWork } from "./run_store.js";
import { RunTable } from "./run_table.js";
import { state } from "./run_words.js";
import { themeSwitch } from "./theme.js";

const TICK_MS = 500;

const store = new RunStore();
const table = new RunTable(store, [byId("active"), byId("ended")], { open: choose, cancel: confirmCancel });
const keys = new KeyDialog(connect);
const feed = new RunFeed({
  live: () => feedIs("Live", "live"),
  snapshot(runs) {
    notice(null);
    store.replace(runs);
    show();
    detail.refresh();
  },
  runs(runs) {
    const before = store.get(detail.id);
    store.put(runs);
    show();
    if (!runs.some((run) => run.id === detail.id)) return;
    detail.refresh();
    const after = store.get(detail.id);
    if (before && after && before.status !== after.status) say(`${after.agent}: ${state(after)[0]}`);
  },
  lost(message) {
    feedIs("Reconnecting", "warn");
    notice(`${message} Trying again; what is shown may be old.`, "warn");
  },
  refused(status, message) {
    feedIs("No access", "bad");
    store.replace([]);
    show();
    choose(null);
    const wrong = keys.key ? "The server does not take this key." : "This server asks for an operator's API key.";
    const words = status === 401 ? wrong : `${message} Everybody's are shown to an operator's key.`;
    notice(words, keys.key ? "bad" : "");
    byId("key-refused").textContent = words;
    byId("empty").textContent = "Nothing can be shown.";
    keys.ask({ isRefused: keys.key !== "" });
  },
});
const detail = new RunDetail({ ask: (path) => feed.ask(path), cancel: confirmCancel, close: closeDetail });

function show() {
  const shown = table.show(byId("filter").value.trim().toLowerCase(), byId("state").value);
  const sums = store.sums();
  for (const cell of document.querySelectorAll("[data-sum]")) cell.textContent = count(sums[cell.dataset.sum]);
  const all = sums.running + sums.queued + sums.paused + sums.ended;
  byId("count").textContent = shown === all ? "" : `${shown} of ${all}`;
  byId("empty").hidden = shown > 0;
  byId("empty").textContent = all ? "No run is like that." : "No runs. They appear here as soon as somebody asks an agent.";
  document.title = sums.running ? `(${sums.running}) Runs – smolgate` : "Runs – smolgate";
}

function choose(id) {
  if (id === detail.id) return;
  table.choose(id);
  detail.open(id, store.get(id));
  table.reveal(id);
  history.replaceState(null, "", id === null ? location.pathname : `#${encodeURIComponent(id)}`);
}

function closeDetail() {
  const id = detail.id;
  choose(null);
  table.focus(id);
}

async function confirmCancel(id) {
  const run = store.get(id);
  const dialog = byId("cancel-dialog");
  const of = run?.key ? [" of ", el("bdi", {}, run.key)] : [];
  const since = run ? `, at work for ${elapsed(atWork(run))}.` : ".";
  byId("cancel-what").replaceChildren(el("bdi", {}, el("strong", {}, run?.agent ?? id)), ...of, since);
  dialog.returnValue = "no";
  dialog.showModal();
  await new Promise((closed) => dialog.addEventListener("close", closed, { once: true }));
  if (dialog.returnValue !== "yes") return;
  try {
    await feed.ask(`v1/runs/${encodeURIComponent(id)}/cancel`, { method: "POST" });
    say("The run is cancelled.");
  } catch (error) {
    notice(error.status === 404 ? "That run had ended already." : `It could not be cancelled: ${error.message}`, "bad");
  }
}

function connect() {
  notice(null);
  feedIs("Connecting", "");
  feed.start(keys.key);
}

function feedIs(word, kind) {
  byId("feed").textContent = word;
  byId("feed").className = `badge ${kind}`;
}

function notice(words, kind) {
  byId("notices").replaceChildren(...(words ? [el("p", { class: `notice ${kind}` }, words)] : []));
}

themeSwitch(byId("theme"));
byId("filters").addEventListener("submit", (event) => event.preventDefault());
byId("filter").addEventListener("input", show);
byId("state").addEventListener("change", show);
byId("open-key").addEventListener("click", () => keys.ask());
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && detail.id !== null && !document.querySelector("dialog[open]")) closeDetail();
});
setInterval(() => {
  if (document.hidden) return;
  table.tick();
  detail.tick();
}, TICK_MS);

connect();
if (location.hash.length > 1) choose(decodeURIComponent(location.hash.slice(1)));
