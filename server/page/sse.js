// A body of server-sent events → the data of each. Comments (heartbeats) and other fields are skipped.

const MAX_EVENT_CHARACTERS = 16 << 20;
const SLICE_MS = 8;

// Sans I/O: text in as it comes, whole events out; a last one without its blank line is given by `end`.
export class SseParser {
  #pieces = [];
  #held = 0;
  #data = [];
  #afterCr = false;

  feed(text) {
    if (text === "") return [];
    if (this.#afterCr && text.startsWith("\n")) text = text.slice(1);
    this.#afterCr = text.endsWith("\r");
    const lines = text.split(/\r\n|\r|\n/);
    const rest = lines.pop();
    const events = [];
    for (const line of lines) {
      this.#pieces.push(line);
      this.#line(this.#pieces.join(""), events);
      this.#pieces = [];
      this.#held = 0;
    }
    if (rest) this.#pieces.push(rest);
    this.#held += rest.length;
    if (this.#held > MAX_EVENT_CHARACTERS) throw new Error("an event of the stream is too large");
    return events;
  }

  end() {
    const events = [];
    if (this.#pieces.length) this.#line(this.#pieces.join(""), events);
    this.#line("", events);
    return events;
  }

  #line(line, events) {
    if (line === "") {
      if (this.#data.length) events.push(this.#data.join("\n"));
      this.#data = [];
    } else if (line.startsWith("data:")) {
      this.#data.push(line.slice(line[5] === " " ? 6 : 5));
    } else if (line === "data") {
      this.#data.push("");
    }
  }
}

// Lets the page paint and take input in between, however fast events come.
export async function* eventsOf(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  const parser = new SseParser();
  let begun = performance.now();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      const events = done
        ? [...parser.feed(decoder.decode()), ...parser.end()]
        : parser.feed(decoder.decode(value, { stream: true }));
      for (const event of events) {
        yield event;
        if (performance.now() - begun > SLICE_MS) {
          await new Promise((resume) => setTimeout(resume));
          begun = performance.now();
        }
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {}); // it has ended, or who reads has left
  }
}
