// The runs as they were told last, and when that was: what moves with time is reckoned from there.

import { hasFailed, isActive } from "./run_words.js";

const MAX_ENDED = 300;

export class RunStore {
  #runs = new Map();

  replace(runs) {
    this.#runs.clear();
    this.put(runs);
  }

  put(runs) {
    const heard = performance.now();
    for (const run of runs) {
      // In the order in which they came, or ended: times are whole seconds.
      if (!isActive(run) && isActive(this.#runs.get(run.id) ?? run)) this.#runs.delete(run.id);
      this.#runs.set(run.id, { ...run, heard });
    }
    for (const run of this.sorted(false).slice(MAX_ENDED)) this.#runs.delete(run.id);
  }

  get(id) {
    return this.#runs.get(id);
  }

  // The newest first.
  sorted(active) {
    const found = [...this.#runs.values()].filter((run) => isActive(run) === active);
    const time = active ? (run) => run.created : (run) => run.ended;
    return found.reverse().sort((a, b) => time(b) - time(a));
  }

  sums() {
    const all = [...this.#runs.values()];
    const of = (...states) => all.filter((run) => isActive(run) && states.includes(run.status)).length;
    const ended = all.filter((run) => !isActive(run));
    return {
      running: of("running", "stopping"),
      queued: of("queued"),
      paused: of("paused"),
      ended: ended.length,
      failed: ended.filter(hasFailed).length,
      tokens: all.reduce((sum, run) => sum + run.usage.total_tokens, 0),
    };
  }
}

// Seconds since the run was asked for, until now or its end.
export function age(run) {
  const since = isActive(run) ? (performance.now() - run.heard) / 1000 : 0;
  return run.queue_seconds + run.seconds + since;
}

// Seconds at work, its waiting for a place not counted.
export function atWork(run) {
  return run.started === null ? 0 : age(run) - run.queue_seconds;
}

export function matches(run, text, state) {
  if (state === "active" && !isActive(run)) return false;
  if (state === "ended" && isActive(run)) return false;
  if (state === "failed" && !hasFailed(run)) return false;
  if (!text) return true;
  const places = [run.agent, run.key, run.id, run.outcome, run.runner, run.doing?.name];
  for (const [name, value] of Object.entries(run.metadata)) places.push(name, value);
  return places.some((place) => place?.toLowerCase().includes(text));
}
