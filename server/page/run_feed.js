// All runs as they change: an event stream that is opened again whenever it ends.

import { eventsOf } from "./sse.js";

const FIRST_RETRY_MS = 500;
const LONGEST_RETRY_MS = 15_000;
// The server sends a heartbeat well within it, unless HEARTBEAT_SECONDS says otherwise.
const SILENT_MS = 90_000;

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export class RunFeed {
  #key = "";
  #stop = new AbortController();

  // `on` has: snapshot(runs), runs(runs), live(), lost(message), refused(status, message).
  constructor(on) {
    this.on = on;
  }

  // From now on with this key; what was open is closed.
  start(key) {
    this.#stop.abort();
    this.#key = key;
    this.#stop = new AbortController();
    this.#follow(this.#stop.signal);
  }

  // A request to the server with the key. Throws Refused for what is not 200.
  async ask(path, options = {}) {
    const headers = this.#key ? { Authorization: `Bearer ${this.#key}` } : {};
    const response = await fetch(path, { ...options, headers, cache: "no-store" });
    if (response.ok) return response;
    const body = await response.json().catch(() => ({}));
    throw new Refused(response.status, body.error?.message ?? `The server answered ${response.status}.`);
  }

  async #follow(signal) {
    let wait = FIRST_RETRY_MS;
    while (!signal.aborted) {
      try {
        await this.#read(signal, () => (wait = FIRST_RETRY_MS));
        if (!signal.aborted) this.on.lost("The server ended the stream.");
      } catch (error) {
        if (signal.aborted) return;
        if (error.status === 401 || error.status === 403) return this.on.refused(error.status, error.message);
        this.on.lost(error instanceof Refused ? error.message : "The server cannot be reached.");
      }
      await new Promise((resume) => setTimeout(resume, wait));
      wait = Math.min(2 * wait, LONGEST_RETRY_MS);
    }
  }

  async #read(signal, begun) {
    const silence = new AbortController();
    const both = AbortSignal.any([signal, silence.signal]);
    let timer = 0;
    const heard = () => {
      clearTimeout(timer);
      timer = setTimeout(() => silence.abort(), SILENT_MS);
    };
    heard();
    try {
      const response = await this.ask("v1/runs/events", { signal: both });
      const listened = new TransformStream({
        transform(chunk, controller) {
          heard();
          controller.enqueue(chunk);
        },
      });
      for await (const data of eventsOf(response.body.pipeThrough(listened))) {
        if (signal.aborted) return;
        const { type, runs } = JSON.parse(data);
        if (type === "end") return;
        begun();
        if (type === "snapshot") {
          this.on.live();
          this.on.snapshot(runs);
        } else this.on.runs(runs);
      }
    } finally {
      clearTimeout(timer);
    }
  }
}
