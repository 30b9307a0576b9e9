// Images that go with the next question: picked, pasted or dropped; large ones made smaller.

import { byId, el, say } from "./dom.js";

const TYPES = new Set(["image/png", "image/jpeg", "image/webp", "image/gif"]);
const MAX_SIDE = 2048;
const MAX_BYTES = 3 << 20;
const MAX_IMAGES = 8;

export class ImageTray {
  #urls = [];
  #list = byId("images");

  // `complain(text)` tells what could not be taken.
  constructor(complain) {
    const file = byId("file");
    const take = (files) => this.#take([...files], complain);
    byId("attach").addEventListener("click", () => file.click());
    file.addEventListener("change", async () => {
      await take(file.files);
      file.value = "";
    });
    byId("question").addEventListener("paste", (event) => {
      const files = [...event.clipboardData.files];
      if (files.length) event.preventDefault();
      take(files);
    });
    const form = byId("composer");
    form.addEventListener("dragover", (event) => event.preventDefault());
    form.addEventListener("drop", (event) => {
      event.preventDefault();
      take(event.dataTransfer.files);
    });
  }

  get isEmpty() {
    return this.#urls.length === 0;
  }

  // All of them; the tray is empty then.
  takeAll() {
    const urls = this.#urls;
    this.#urls = [];
    this.#show();
    return urls;
  }

  async #take(files, complain) {
    for (const file of files) {
      if (!TYPES.has(file.type)) complain(`${file.name} is no PNG, JPEG, WebP or GIF image.`);
      else if (this.#urls.length >= MAX_IMAGES) complain(`A question takes ${MAX_IMAGES} images at most.`);
      else {
        try {
          this.#urls.push(await dataUrl(await fitted(file)));
          say("Image attached");
        } catch {
          complain(`${file.name} cannot be read as an image.`);
        }
      }
    }
    this.#show();
  }

  #show() {
    this.#list.hidden = this.isEmpty;
    this.#list.replaceChildren(
      ...this.#urls.map((url, index) =>
        el(
          "li",
          {},
          el("img", { src: url, alt: `Image ${index + 1}` }),
          el("button", { type: "button", class: "quiet", "aria-label": `Remove image ${index + 1}`, onclick: () => this.#remove(index) }, "Remove"),
        ),
      ),
    );
  }

  #remove(index) {
    this.#urls.splice(index, 1);
    this.#show();
    byId("attach").focus();
  }
}

// The file as it is, or as a smaller JPEG where it is larger than models look at.
async function fitted(file) {
  const bitmap = await createImageBitmap(file);
  try {
    const scale = Math.min(1, MAX_SIDE / Math.max(bitmap.width, bitmap.height));
    if (scale === 1 && file.size <= MAX_BYTES) return file;
    const canvas = el("canvas", { width: Math.round(bitmap.width * scale), height: Math.round(bitmap.height * scale) });
    canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    return await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.9));
  } finally {
    bitmap.close();
  }
}

function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}
