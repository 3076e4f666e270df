// The picture of the engine: a lane for each running request, a column for each of its steps, a cell for each token.

import { h } from "./dom.js";

/** @typedef {import("./engine-history.js").History} History */
/** @typedef {import("./engine-history.js").Step} Step */
/** @typedef {import("./engine-history.js").Row} Row */

const FEWEST_LANES = 4;
const TALLEST = 64;
const LOWEST = 22;
const AXIS = 24;
const GAP = 6;
// Steps narrower than this, in pixels, are averaged.
const NARROW = 3;
const BIN = 2;
const COLOURS = ["accepted", "rejected", "sampled", "line", "quiet", "text", "hover"];

export class Lanes {
  /** @param {History} history */
  constructor(history) {
    this.history = history;
    this.seconds = 5;
    this.end = 0;
    this.canvas = /** @type {HTMLCanvasElement} */ (
      h("canvas", { role: "img", onpointermove: (/** @type {PointerEvent} */ event) => this.#point(event), onpointerleave: () => this.#point(null) })
    );
    this.tip = h("div.tip", { hidden: true });
    this.element = h("div.lanes", {}, this.canvas, this.tip);
    /** @type {Record<string, string>} */
    this.colours = {};
    /** @type {{x: number, y: number}|null} */
    this.pointer = null;
    this.width = 0;
    this.font = "12px sans-serif";
    this.lane = LOWEST;
    this.count = FEWEST_LANES;
    this.deepest = 3;
  }

  /** Colours follow the theme. */
  readColours() {
    const style = getComputedStyle(document.documentElement);
    for (const name of COLOURS) this.colours[name] = style.getPropertyValue(`--${name}`).trim();
    this.font = `12px ${style.getPropertyValue("--sans")}`;
  }

  /** Draw the lanes up to a time of the server's clock. @param {number} end */
  draw(end) {
    this.end = end;
    const steps = this.history.between(end - this.seconds, end);
    this.#measure(steps);
    const { width } = this.canvas.getBoundingClientRect();
    const height = this.count * this.lane + AXIS;
    this.element.style.height = `${height}px`;
    const scale = devicePixelRatio || 1;
    if (this.canvas.width !== Math.round(width * scale) || this.canvas.height !== Math.round(height * scale)) {
      this.canvas.width = Math.round(width * scale);
      this.canvas.height = Math.round(height * scale);
    }
    const context = /** @type {CanvasRenderingContext2D} */ (this.canvas.getContext("2d"));
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, width, height);
    this.width = width;
    this.#axis(context, height);
    this.#bands(context, steps);
    const average = steps.length ? steps.reduce((sum, step) => sum + this.#wide(step), 0) / steps.length : 0;
    if (average >= NARROW) this.#cells(context, steps);
    else this.#averages(context, steps);
    this.#names(context, steps);
    this.#tell();
  }

  /** How many lanes there are, and how many tokens high one is. @param {Step[]} steps */
  #measure(steps) {
    let lanes = FEWEST_LANES;
    let deepest = 3;
    for (const step of steps) {
      for (const row of step.rows) {
        lanes = Math.max(lanes, (this.history.lanes.get(row.request) ?? 0) + 1);
        deepest = Math.max(deepest, row.drafted ?? 0);
      }
    }
    this.count = lanes;
    this.deepest = deepest;
    this.lane = Math.max(LOWEST, Math.min(TALLEST, 420 / this.count));
  }

  /** @param {number} time */
  #x(time) {
    return this.width * (1 - (this.end - time) / this.seconds);
  }

  /** @param {Step} step */
  #wide(step) {
    return this.#x(step.end) - this.#x(step.at);
  }

  /** @param {Row} row */
  #top(row) {
    return (this.history.lanes.get(row.request) ?? 0) * this.lane;
  }

  get unit() {
    return (this.lane - GAP) / (this.deepest + 1);
  }

  /** Lines at whole parts of the time. @param {CanvasRenderingContext2D} context @param {number} height */
  #axis(context, height) {
    const part = this.seconds / 5;
    context.strokeStyle = this.colours.line;
    context.fillStyle = this.colours.quiet;
    context.font = this.font;
    context.textBaseline = "bottom";
    context.lineWidth = 1;
    for (let at = 0; at <= 5; at += 1) {
      const x = Math.round(this.#x(this.end - at * part)) + (at === 0 ? -0.5 : 0.5);
      context.beginPath();
      context.moveTo(x, 0);
      context.lineTo(x, height - AXIS + 4);
      context.stroke();
      context.textAlign = at === 0 ? "right" : at === 5 ? "left" : "center";
      context.fillText(at === 0 ? "now" : `−${short(at * part)} s`, x, height);
    }
  }

  /** A quiet band from each request's first step to its last. @param {CanvasRenderingContext2D} context @param {Step[]} steps */
  #bands(context, steps) {
    context.fillStyle = this.colours.hover;
    for (const [request, [from, to]] of spans(steps)) {
      const left = Math.max(0, this.#x(from));
      context.beginPath();
      context.roundRect(left, this.#top({ request }) + 1, Math.max(2, this.#x(to) - left), this.lane - GAP + 1, 3);
      context.fill();
    }
  }

  /** Each step with each of its tokens. @param {CanvasRenderingContext2D} context @param {Step[]} steps */
  #cells(context, steps) {
    const { unit } = this;
    for (const step of steps) {
      const x = this.#x(step.at);
      const wide = Math.max(1, this.#wide(step) - 1);
      for (const row of step.rows) {
        let y = this.#top(row) + this.lane - GAP + 1;
        for (const [colour, tokens] of stack(row, this.deepest)) {
          this.#ink(context, colour);
          for (let token = 0; token < tokens; token += 1) {
            y -= unit;
            context.fillRect(x, y + 0.5, wide, Math.max(1, unit - 1));
            if (colour === "rejected" && wide > 2) context.strokeRect(x + 0.5, y + 1, wide - 1, Math.max(1, unit - 2));
          }
        }
      }
    }
  }

  /** Rejected tokens are pale with an edge, so that they can be told without colour. @param {CanvasRenderingContext2D} context @param {string} kind */
  #ink(context, kind) {
    context.strokeStyle = this.colours[kind];
    context.fillStyle = kind === "rejected" ? `${this.colours[kind]}59` : this.colours[kind];
  }

  /** The average of the steps in each pair of pixels. @param {CanvasRenderingContext2D} context @param {Step[]} steps */
  #averages(context, steps) {
    /** @type {Map<number, {steps: number, sums: Map<string, number>, row: Row}>} */
    const bins = new Map();
    const across = Math.ceil(this.width / BIN) + 1;
    for (const step of steps) {
      const at = Math.floor(this.#x(step.end) / BIN);
      for (const row of step.rows) {
        const key = (this.history.lanes.get(row.request) ?? 0) * across + Math.max(0, at);
        const bin = bins.get(key) ?? { steps: 0, sums: new Map(), row };
        bin.steps += 1;
        for (const [colour, tokens] of stack(row, this.deepest)) bin.sums.set(colour, (bin.sums.get(colour) ?? 0) + tokens);
        bins.set(key, bin);
      }
    }
    for (const [key, bin] of bins) {
      let y = this.#top(bin.row) + this.lane - GAP + 1;
      for (const [colour, tokens] of bin.sums) {
        const tall = (tokens / bin.steps) * this.unit;
        y -= tall;
        this.#ink(context, colour);
        context.fillRect((key % across) * BIN, y, BIN, tall);
      }
    }
  }

  /** @param {CanvasRenderingContext2D} context @param {Step[]} steps */
  #names(context, steps) {
    context.font = this.font;
    context.textBaseline = "top";
    context.textAlign = "left";
    for (const [request, [from, to]] of spans(steps)) {
      const left = Math.max(0, this.#x(from));
      const name = `#${request}`;
      const wide = context.measureText(name).width + 8;
      if (this.#x(to) - left < wide + 4) continue;
      const top = this.#top({ request }) + 2;
      context.fillStyle = this.colours.hover;
      context.globalAlpha = 0.85;
      context.fillRect(left + 1, top, wide, 15);
      context.globalAlpha = 1;
      context.fillStyle = this.colours.text;
      context.fillText(name, left + 5, top + 1);
    }
  }

  /** @param {PointerEvent|null} event */
  #point(event) {
    const box = this.canvas.getBoundingClientRect();
    this.pointer = event ? { x: event.clientX - box.left, y: event.clientY - box.top } : null;
    this.#tell();
  }

  /** Say what the step under the pointer did for its request. */
  #tell() {
    const found = this.pointer ? this.#under(this.pointer) : undefined;
    this.tip.hidden = !found;
    if (!found || !this.pointer) return;
    this.tip.textContent = described(found.step, found.row);
    this.tip.style.left = `${Math.max(0, Math.min(this.pointer.x + 12, this.width - 250))}px`;
    this.tip.style.top = `${this.#top(found.row) + this.lane}px`;
  }

  /** @param {{x: number, y: number}} point */
  #under({ x, y }) {
    const time = this.end - (1 - x / (this.width || 1)) * this.seconds;
    const lane = Math.floor(y / this.lane);
    const near = this.history.between(time - this.seconds / 100, time + this.seconds / 100);
    return near
      .flatMap((step) => step.rows.map((row) => ({ step, row, far: Math.max(step.at - time, time - step.end) })))
      .filter(({ row }) => this.history.lanes.get(row.request) === lane)
      .sort((one, other) => one.far - other.far)[0];
  }
}

/** When each request runs in these steps. @param {Step[]} steps @returns {Map<number, [number, number]>} */
function spans(steps) {
  /** @type {Map<number, [number, number]>} */
  const found = new Map();
  for (const step of steps) {
    for (const { request } of step.rows) found.set(request, [found.get(request)?.[0] ?? step.at, step.end]);
  }
  return found;
}

/** The tokens of a step from the bottom up, by colour. @param {Row} row @param {number} deepest @returns {[string, number][]} */
function stack({ drafted, accepted, emitted }, deepest) {
  if (drafted === undefined || accepted === undefined || emitted === undefined) return [["line", deepest + 1]];
  return [
    ["sampled", emitted - accepted],
    ["accepted", accepted],
    ["rejected", drafted - accepted],
  ];
}

/** @param {Step} step @param {Row} row */
function described(step, row) {
  const took = `${((step.end - step.at) * 1000).toFixed(1)} ms`;
  if (row.emitted === undefined) return `#${row.request}, step ${step.number}: ${took}, another user's request`;
  const drafts = row.drafted ? `${row.accepted} of ${row.drafted} drafted tokens accepted` : "nothing drafted";
  return `#${row.request}, step ${step.number}: ${drafts}, ${row.emitted} new, ${took}`;
}

/** @param {number} seconds */
function short(seconds) {
  return Number.isInteger(seconds) ? String(seconds) : seconds.toFixed(1);
}
