// The page: wires the controls to the conversation, the models, the key and what is kept.

import { ApiError, modelsOf } from "./api.js";
import { Conversation } from "./conversation.js";
import { byId, el, say } from "./dom.js";
import { ImageTray } from "./images.js";
import { KeyDialog } from "./key_dialog.js";
import { SideList } from "./side_list.js";
import { openStore } from "./store.js";
import { themeSwitch } from "./theme.js";

const MODEL = "smolgate-model";
const question = byId("question");
const model = byId("model");
const agents = new Set();

const store = await openStore();
const keys = new KeyDialog(() => loadModels());
const images = new ImageTray(complain);
const conversation = new Conversation(store, {
  key: () => keys.key,
  isAgent: (name) => agents.has(name),
  changed: showState,
  refused: () => keys.ask({ isRefused: Boolean(keys.key) }),
  notKept: () => notice("kept", "This browser does not keep the conversation: its storage is full, or closed to pages."),
});
const side = new SideList(store, conversation, (id) => go(id));

function showState() {
  const { shown, isLive } = conversation;
  const hadFocus = document.activeElement === byId("stop");
  byId("title").textContent = shown?.title ?? "New conversation";
  document.title = shown ? `${shown.title} · smolgate` : "smolgate";
  byId("welcome").hidden = shown !== null;
  byId("send").hidden = isLive;
  byId("stop").hidden = !isLive;
  if (hadFocus && !isLive) question.focus();
  if (shown && location.hash.slice(1) !== shown.id) history.replaceState(null, "", `#${shown.id}`);
  side.show();
}

function notice(id, text, ...more) {
  const there = byId(`notice-${id}`);
  if (text && there?.firstChild.data === text) return; // said once
  if (there?.contains(document.activeElement)) question.focus();
  there?.remove();
  if (text) byId("notices").append(el("p", { id: `notice-${id}`, class: "notice warn", role: "alert" }, text, ...more));
}

function complain(text) {
  notice("image", text);
}

async function loadModels() {
  notice("models", "");
  try {
    showModels(await modelsOf(keys.key));
  } catch (error) {
    if (error instanceof ApiError && error.status === 401) return keys.ask({ isRefused: Boolean(keys.key) });
    const again = el("button", { type: "button", class: "quiet", onclick: loadModels }, "Try again");
    notice("models", `The models cannot be listed: ${error.status ? error.message : "the server cannot be reached."} `, again);
  }
}

function showModels(models) {
  agents.clear();
  const groups = { smolgate: el("optgroup", { label: "Agents" }), upstream: el("optgroup", { label: "Models" }) };
  for (const { id, owned_by: owner } of models) {
    if (owner === "smolgate") agents.add(id);
    (groups[owner] ?? groups.upstream).append(el("option", { value: id }, id));
  }
  model.replaceChildren(...Object.values(groups).filter((group) => group.hasChildNodes()));
  model.disabled = models.length === 0;
  choose(conversation.shown?.model ?? kept());
}

function choose(name) {
  const first = [...agents][0] ?? model.options[0]?.value ?? "";
  model.value = [...model.options].some((option) => option.value === name) ? name : first;
}

function kept() {
  try {
    return localStorage.getItem(MODEL);
  } catch {
    return null;
  }
}

function submit() {
  const text = question.value.trim();
  if ((!text && images.isEmpty) || conversation.isLive) return;
  if (!model.value) return loadModels();
  question.value = "";
  notice("image", "");
  conversation.ask(text, images.takeAll(), model.value);
  question.focus();
}

async function go(id) {
  side.close();
  const found = id ? (await store.conversations()).find((each) => each.id === id) : undefined;
  if (!found && location.hash) history.replaceState(null, "", location.pathname + location.search);
  await conversation.show(found ?? null);
  if (found) choose(found.model);
  question.focus();
}

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
question.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
  if (matchMedia("(pointer: coarse)").matches) return; // a phone's Enter breaks the line
  event.preventDefault();
  submit();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.isComposing || document.querySelector("dialog[open]")) return;
  if (side.isOpen) side.close();
  else conversation.stop();
});
byId("stop").addEventListener("click", () => conversation.stop());
// The address is the conversation's: it leads nowhere else within the page.
byId("skip").addEventListener("click", (event) => {
  event.preventDefault();
  question.focus();
});
byId("open-key").addEventListener("click", () => keys.ask());
byId("examples").addEventListener("click", ({ target }) => {
  if (!(target instanceof HTMLButtonElement)) return;
  question.value = target.textContent;
  submit();
});
model.addEventListener("change", () => {
  try {
    localStorage.setItem(MODEL, model.value);
  } catch {
    // it holds for this page alone
  }
  say(`Model: ${model.value}`);
});
addEventListener("hashchange", () => {
  if (location.hash.slice(1) !== (conversation.shown?.id ?? "")) go(location.hash.slice(1));
});

themeSwitch(byId("theme"));
if (!store.keeps) notice("kept", "This browser keeps nothing for pages: the conversation is gone with this tab.");
await loadModels();
await go(location.hash.slice(1));
