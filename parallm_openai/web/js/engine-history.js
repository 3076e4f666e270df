// The last minute of the engine's steps, and what follows from them. Pure data, no DOM.

/**
 * What a step did for a request, in tokens; the counts are missing if the request is another user's.
 * @typedef {{request: number, drafted?: number, accepted?: number, emitted?: number}} Row
 */
/** @typedef {{number: number, at: number, end: number, rows: Row[]}} Step times in seconds of the server's clock */
/** @typedef {{tokens: number, seconds: number, rows: number, steps: number, drafted: number, accepted: number, hidden: boolean}} Totals */
/** @typedef {{request: number, first: number, last: number, steps: number, tokens: number, drafted: number, accepted: number, hidden: boolean}} Summary */

const KEPT_SECONDS = 60;
// A request that was in none of so many steps has left its lane to others. Batches of long rows take turns with the others.
const LANE_STEPS = 2;

export class History {
  constructor() {
    /** @type {Step[]} */
    this.steps = [];
    /** @type {Map<number, number>} */
    this.lanes = new Map();
    /** Who is in each lane, or was the last, and in which step. @type {{request: number, step: number}[]} */
    this.places = [];
    /** The number of the last step that came. */
    this.last = 0;
    /** The server's clock minus this page's. */
    this.offset = 0;
  }

  clear() {
    Object.assign(this, new History());
  }

  /**
   * Take in an answer of `/v1/engine/steps`. Returns false if the server has started anew: then its steps come again.
   * @param {{now: number, steps: any[]}} answer
   */
  add(answer) {
    const offset = answer.now - performance.now() / 1000;
    const anew = this.steps.length > 0 && offset < this.offset - 1;
    if (anew) {
      this.clear();
      return false;
    }
    this.offset = offset;
    for (const step of answer.steps) this.#append(step);
    const oldest = (this.steps.at(-1)?.end ?? 0) - KEPT_SECONDS;
    const kept = this.steps.findIndex((step) => step.end >= oldest);
    if (kept > 0) this.#forget(kept);
    return true;
  }

  /** @param {any} step */
  #append({ number, at, draft_seconds, verify_seconds, rows }) {
    const shaped = rows.map((/** @type {number[]} */ [request, drafted, accepted, emitted]) => ({ request, drafted, accepted, emitted }));
    this.steps.push({ number, at, end: at + draft_seconds + verify_seconds, rows: shaped });
    this.last = number;
    for (const { request } of shaped) this.#place(request, number);
  }

  /** Give a request a lane: the one that it has, or the lowest that nobody is in. @param {number} request @param {number} step */
  #place(request, step) {
    let lane = this.lanes.get(request) ?? -1;
    if (this.places[lane]?.request !== request) {
      lane = this.places.findIndex((place) => step - place.step > LANE_STEPS);
      if (lane < 0) lane = this.places.length;
      this.lanes.set(request, lane);
    }
    this.places[lane] = { request, step };
  }

  /** @param {number} count of the oldest steps */
  #forget(count) {
    this.steps.splice(0, count);
    const present = new Set(this.steps.flatMap((step) => step.rows.map((row) => row.request)));
    for (const request of this.lanes.keys()) if (!present.has(request)) this.lanes.delete(request);
    const lanes = Math.max(0, ...this.lanes.values()) + 1;
    this.places.length = Math.min(this.places.length, lanes);
  }

  /** The server's time now, as far as this page knows. */
  get now() {
    return performance.now() / 1000 + this.offset;
  }

  /** Steps that were running between two times. @param {number} from @param {number} to */
  between(from, to) {
    let low = 0;
    let high = this.steps.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.steps[middle].end < from) low = middle + 1;
      else high = middle;
    }
    const found = [];
    for (let at = low; at < this.steps.length && this.steps[at].at <= to; at += 1) found.push(this.steps[at]);
    return found;
  }

  /** Sums over the last so many seconds. @param {number} seconds @param {number} [now] @returns {Totals} */
  totals(seconds, now = this.now) {
    const found = { tokens: 0, seconds, rows: 0, steps: 0, drafted: 0, accepted: 0, hidden: false };
    for (const step of this.between(now - seconds, now)) {
      found.steps += 1;
      found.rows += step.rows.length;
      for (const row of step.rows) count(found, row);
    }
    return found;
  }

  /** Tokens a second in each of the last `parts` spans of a length. @param {number} span @param {number} parts */
  rates(span, parts) {
    const end = Math.floor(this.now / span) * span;
    const rates = new Array(parts).fill(0);
    for (const step of this.between(end - span * parts, end)) {
      const part = parts - Math.ceil((end - step.end) / span);
      if (part < 0 || part >= parts) continue;
      for (const row of step.rows) rates[part] += (row.emitted ?? 1) / span;
    }
    return rates;
  }

  /** The requests of the last minute, newest first. @returns {Summary[]} */
  requests() {
    /** @type {Map<number, Summary>} */
    const found = new Map();
    for (const step of this.steps) {
      for (const row of step.rows) {
        const summary = found.get(row.request) ?? { request: row.request, first: step.at, last: step.end, steps: 0, tokens: 0, drafted: 0, accepted: 0, hidden: false };
        summary.last = step.end;
        summary.steps += 1;
        count(summary, row);
        found.set(row.request, summary);
      }
    }
    return [...found.values()].sort((one, other) => other.request - one.request);
  }
}

/** @param {{tokens: number, drafted: number, accepted: number, hidden: boolean}} sums @param {Row} row */
function count(sums, row) {
  // Each step gives a row at least one token, but that which ended it.
  sums.tokens += row.emitted ?? 1;
  sums.drafted += row.drafted ?? 0;
  sums.accepted += row.accepted ?? 0;
  sums.hidden ||= row.emitted === undefined;
}
