// The live view of the engine: lanes of its rows, and what they add up to.

import { ApiError, json } from "./api.js";
import { fill, h, icon } from "./dom.js";
import { History } from "./engine-history.js";
import { withKey } from "./key.js";
import { Lanes } from "./lanes.js";
import { Bars, Sparkline, Tile, duration, meter, milliseconds, size, whole } from "./tiles.js";

const POLL = 500;
const AGAIN = 2000;
// The picture is this much behind, in seconds, so that steps have come when their time is shown.
const BEHIND = 0.6;
// It stands still so long after the last step: what an idle engine did last stays in sight.
const REST = 0.3;
const ZOOMS = [1, 5, 20, 60];
// Numbers that change are those of so many seconds.
const RECENT = 5;
const FRAME = 80;
const ROWS = 16;

export class EngineView {
  constructor() {
    this.history = new History();
    this.lanes = new Lanes(this.history);
    this.live = false;
    this.paused = false;
    /** @type {number|undefined} */
    this.polling = undefined;
    this.drawn = 0;
    this.notice = h("p.notice", { hidden: true, role: "status" });
    this.tiles = {
      output: new Tile("Output", "Tokens a second, over the last 5 seconds"),
      batch: new Tile("Batch", "Rows decoded together in a step, on average of the last 5 seconds"),
      acceptance: new Tile("Accepted", "The share of drafted tokens that the model accepted, in the last 5 seconds"),
      draft: new Tile("Draft length", "Tokens drafted for a row in a step, on average of the last 5 seconds"),
      first: new Tile("First token", "Time to the first token: half of the last 512 requests waited less"),
      between: new Tile("Between tokens", "Mean time from one token to the next: for half of the last 512 requests it was less"),
      queue: new Tile("Queue", "Requests that wait for a place in the batch"),
      memory: new Tile("Memory", "What the model's arrays take"),
      prefix: new Tile("Prefix cache", "Requests that found their beginning computed already"),
      requests: new Tile("Requests", "Since the server started"),
    };
    this.spark = new Sparkline();
    this.depths = new Bars("Acceptance by depth", "How often the first, second, … drafted token is accepted, lately", "Nothing has been drafted yet.");
    this.lengths = new Bars("Draft lengths", "How often each was chosen for a step; the last one is marked", "No step has run yet.");
    this.table = h("tbody");
    this.pause = h("button", { type: "button", onclick: () => this.#togglePause() });
    this.zooms = ZOOMS.map((seconds) => h("button", { type: "button", onclick: () => this.#zoom(seconds) }, `${seconds} s`));
    this.element = this.#layout();
    this.#zoom(5);
    this.#drawPause();
    document.addEventListener("themechange", () => this.lanes.readColours());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.lanes.readColours());
    document.addEventListener("visibilitychange", () => this.live && !document.hidden && this.#poll());
  }

  #layout() {
    const key = (/** @type {string} */ kind, /** @type {string} */ text) => h("span", {}, h(`i.${kind}`), text);
    const legend = h("p.keys", {}, key("sampled", "chosen by the model"), key("accepted", "drafted, accepted"), key("rejected", "drafted, rejected"));
    const columns = ["Request", "Tokens", "Tokens/s", "Steps", "Drafted", "Accepted"].map((name) => h("th", { scope: "col" }, name));
    return h(
      "div.engine",
      { tabindex: "-1" },
      this.notice,
      h("section.tiles", { "aria-label": "Numbers" }, ...Object.values(this.tiles).map((tile) => tile.element)),
      h(
        "section.panel",
        { "aria-label": "Rows over time" },
        h("div.panel-head", {}, h("h3", {}, "Rows over time"), legend, h("div.zoom", { role: "group", "aria-label": "Time shown" }, ...this.zooms), this.pause),
        this.lanes.element,
      ),
      h("div.columns", {}, this.depths.element, this.lengths.element),
      h("section.panel", {}, h("h3", {}, "Requests of the last minute"), h("div.scrolling", { tabindex: "0", role: "region", "aria-label": "Requests" }, h("table", {}, h("thead", {}, h("tr", {}, ...columns)), this.table))),
    );
  }

  start() {
    if (this.live) return;
    this.live = true;
    this.lanes.readColours();
    void this.#poll();
    requestAnimationFrame((time) => this.#frame(time));
  }

  stop() {
    this.live = false;
    clearTimeout(this.polling);
  }

  async #poll() {
    clearTimeout(this.polling);
    let wait = POLL;
    try {
      await withKey(() => this.#read());
    } catch (error) {
      const asks = error instanceof ApiError && error.needsKey;
      this.#say(error instanceof Error ? error.message : String(error), asks ? h("button", { type: "button", onclick: () => this.#poll() }, "Enter the key") : null);
      // Who has just refused to give a key is not asked again and again.
      if (asks) return;
      wait = AGAIN;
    }
    // A page that nobody sees asks for nothing.
    if (this.live && !document.hidden) this.polling = setTimeout(() => this.#poll(), wait);
  }

  /** @param {string} text @param {HTMLElement|null} [action] */
  #say(text, action = null) {
    this.notice.hidden = !text;
    fill(this.notice, h("span", {}, text), action);
  }

  async #read() {
    const [steps, stats] = await Promise.all([json(`v1/engine/steps?after=${this.history.last}`), json("v1/stats")]);
    if (!this.history.add(steps)) return;
    this.#say(this.history.totals(RECENT).hidden ? "Requests of other keys are shown without their tokens." : "");
    if (this.paused) return;
    this.#numbers(stats);
    this.#charts(stats);
    this.#requests();
  }

  /** @param {number} time */
  #frame(time) {
    if (!this.live) return;
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches ? POLL : FRAME;
    if (!this.paused && time - this.drawn >= calm) {
      this.drawn = time;
      const last = this.history.steps.at(-1)?.end ?? 0;
      this.lanes.draw(Math.min(this.history.now - BEHIND, last + REST));
    }
    requestAnimationFrame((next) => this.#frame(next));
  }

  /** @param {any} stats */
  #numbers(stats) {
    const { tiles } = this;
    const recent = this.history.totals(RECENT);
    const { running, prefilling, waiting, max_batch_size: places } = stats.batching_stats;
    const rate = recent.tokens / recent.seconds;
    const rows = recent.steps ? recent.rows / recent.steps : 0;
    const share = recent.drafted ? recent.accepted / recent.drafted : 0;
    this.spark.set(this.history.rates(0.5, 60));
    tiles.output.set(whole(rate), "tokens/s", this.spark.element);
    tiles.batch.set(rows.toFixed(1), `of ${places} rows`, meter(rows / places));
    tiles.acceptance.set(recent.drafted ? String(Math.round(100 * share)) : "–", recent.drafted ? "%" : "", meter(share));
    tiles.draft.set(recent.rows ? (recent.drafted / recent.rows).toFixed(1) : "–", recent.rows ? "tokens" : "", `${whole(recent.drafted)} drafted, ${whole(recent.accepted)} accepted`);
    tiles.first.set(...latency(stats.recent_latency.time_to_first_token));
    tiles.between.set(...latency(stats.recent_latency.inter_token_latency));
    tiles.queue.set(whole(waiting), "waiting", `${prefilling} reading their prompt, ${running} decoding`);
    tiles.memory.set(...size(stats.memory.active_bytes), `at most ${size(stats.memory.peak_bytes).join(" ")}; process ${size(stats.memory.resident_bytes).join(" ")}`);
    tiles.prefix.set(whole(stats.prefix_cache.hits), stats.prefix_cache.hits === 1 ? "hit" : "hits", `${whole(stats.prefix_cache.hit_tokens)} tokens not read again`);
    tiles.requests.set(whole(stats.total_requests), "in all", `in ${duration(stats.uptime)}`);
    this.lanes.canvas.setAttribute("aria-label", `${running} requests running, ${whole(rate)} tokens a second, ${Math.round(100 * share)} % of drafted tokens accepted`);
  }

  /** @param {any} stats */
  #charts({ speculative_stats: speculation }) {
    const rates = speculation.recent_acceptance_by_position;
    this.depths.set(rates.map((/** @type {number} */ rate, /** @type {number} */ at) => ({ name: String(at + 1), share: rate, text: `${Math.round(100 * rate)} %` })));
    const steps = Object.entries(speculation.steps_by_draft_length).map(([length, count]) => ({ length, count: Number(count) }));
    const all = steps.reduce((sum, { count }) => sum + count, 0);
    this.lengths.set(
      steps.map(({ length, count }) => ({ name: length, share: count / all, text: `${((100 * count) / all).toFixed(count / all < 0.1 ? 1 : 0)} %` })),
      String(speculation.current_draft_length),
    );
  }

  #requests() {
    const rows = this.history.requests().slice(0, ROWS);
    const cell = (/** @type {string} */ text) => h("td", {}, text);
    fill(
      this.table,
      ...rows.map((row) => {
        const seconds = row.last - row.first;
        const hidden = row.hidden ? "–" : "";
        return h(
          "tr",
          {},
          h("th", { scope: "row" }, `#${row.request}`),
          cell(hidden || whole(row.tokens)),
          cell(hidden || (seconds > 0 ? whole(row.tokens / seconds) : "–")),
          cell(whole(row.steps)),
          cell(hidden || whole(row.drafted)),
          cell(row.drafted ? `${Math.round((100 * row.accepted) / row.drafted)} %` : "–"),
        );
      }),
      rows.length ? null : h("tr", {}, h("td.hint", { colspan: "6" }, "None. Send a chat, and its row appears here.")),
    );
  }

  /** @param {number} seconds */
  #zoom(seconds) {
    this.lanes.seconds = seconds;
    this.zooms.forEach((button, at) => button.setAttribute("aria-pressed", String(ZOOMS[at] === seconds)));
    if (this.paused) this.lanes.draw(this.lanes.end);
  }

  #togglePause() {
    this.paused = !this.paused;
    this.#drawPause();
  }

  #drawPause() {
    this.pause.setAttribute("aria-pressed", String(this.paused));
    fill(this.pause, icon(this.paused ? "play" : "pause"), this.paused ? "Go on" : "Pause");
  }
}

/** @param {{p50: number, p90: number, p99: number}} seconds @returns {[string, string, string]} */
function latency({ p50, p90, p99 }) {
  return [milliseconds(p50), "ms", `p90 ${milliseconds(p90)}, p99 ${milliseconds(p99)}`];
}
