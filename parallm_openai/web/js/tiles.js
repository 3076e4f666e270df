// Numbers and small charts of the engine's view.

import { fill, h } from "./dom.js";

/** A number with a name, and what else there is to say. */
export class Tile {
  /** @param {string} name @param {string} [title] an explanation */
  constructor(name, title = "") {
    this.value = h("span.value", {}, "–");
    this.unit = h("span.unit");
    this.more = h("div.more");
    this.element = h("div.tile", { title: title || null }, h("h3", {}, name), h("p", {}, this.value, " ", this.unit), this.more);
  }

  /** @param {string} value @param {string} unit @param {...(string|Node)} more */
  set(value, unit, ...more) {
    this.value.textContent = value;
    this.unit.textContent = unit;
    fill(this.more, ...more);
  }
}

/** A line through values, without axes. */
export class Sparkline {
  constructor() {
    const space = "http://www.w3.org/2000/svg";
    this.element = document.createElementNS(space, "svg");
    this.element.setAttribute("class", "spark");
    this.element.setAttribute("viewBox", "0 0 100 24");
    this.element.setAttribute("preserveAspectRatio", "none");
    this.element.setAttribute("aria-hidden", "true");
    this.line = document.createElementNS(space, "path");
    this.element.append(this.line);
  }

  /** @param {number[]} values */
  set(values) {
    const most = Math.max(1e-9, ...values);
    const points = values.map((value, at) => `${((100 * at) / (values.length - 1)).toFixed(2)} ${(23 - (22 * value) / most).toFixed(2)}`);
    this.line.setAttribute("d", `M${points.join("L")}`);
  }
}

/** A share as a bar. @param {number} share from 0 to 1 */
export function meter(share) {
  const bar = h("span");
  bar.style.width = `${Math.round(100 * Math.max(0, Math.min(1, share)))}%`;
  return h("div.meter", { "aria-hidden": "true" }, bar);
}

/** Named shares as rows of bars, for eyes and screen readers. */
export class Bars {
  /** @param {string} title @param {string} hint @param {string} empty what to say if there is nothing */
  constructor(title, hint, empty) {
    this.empty = empty;
    this.list = h("dl.bars");
    this.element = h("section.panel", {}, h("h3", {}, title), h("p.hint", {}, hint), this.list);
  }

  /** @param {{name: string, share: number, text: string}[]} bars @param {string} [marked] the name of one that stands out */
  set(bars, marked) {
    if (!bars.length) {
      fill(this.list, h("p.hint", {}, this.empty));
      return;
    }
    fill(this.list, ...bars.map(({ name, share, text }) => h(name === marked ? "div.marked" : "div", {}, h("dt", {}, name), h("dd", {}, meter(share), h("span", {}, text)))));
  }
}

/** @param {number} value */
export function whole(value) {
  return Math.round(value).toLocaleString("en");
}

/** Seconds as milliseconds, with as many digits as mean something. @param {number} seconds */
export function milliseconds(seconds) {
  const value = seconds * 1000;
  return value < 10 ? value.toFixed(1) : whole(value);
}

/** @param {number} bytes @returns {[string, string]} value and unit */
export function size(bytes) {
  return bytes >= 2 ** 30 ? [(bytes / 2 ** 30).toFixed(1), "GiB"] : [whole(bytes / 2 ** 20), "MiB"];
}

/** Seconds in words. @param {number} seconds */
export function duration(seconds) {
  if (seconds < 120) return `${whole(seconds)} seconds`;
  if (seconds < 7200) return `${whole(seconds / 60)} minutes`;
  return seconds < 172800 ? `${whole(seconds / 3600)} hours` : `${whole(seconds / 86400)} days`;
}
