// One message of a chat: what it says, what the model thought and called, and what can be done with it.

import { fill, h, icon, iconButton } from "./dom.js";
import { copyText, render } from "./markdown.js";

/** @typedef {import("./tree.js").Message} Message */
/**
 * @typedef {object} Actions
 * @property {(message: Message) => void} again
 * @property {(message: Message, text: string) => void} edit
 * @property {(message: Message) => void} show
 * @property {(message: Message, results: string[]) => void} results
 */

const ENDED = {
  length: "The answer reached its longest length.",
  stopped: "You stopped this answer.",
};

export class MessageView {
  /** @param {Message} message @param {Actions} actions */
  constructor(message, actions) {
    this.message = message;
    this.actions = actions;
    this.marked = false;
    this.editing = false;
    this.thoughtsOpen = false;
    this.drawn = "";
    this.state = { versions: [message], running: false, busy: false, last: false };
    this.thoughts = h("details.thoughts", { ontoggle: () => (this.thoughtsOpen = this.thoughts.hasAttribute("open")) });
    this.body = h("div.body");
    this.calls = h("div.calls");
    this.notes = h("div.notes");
    this.foot = h("div.foot");
    this.element = h(`article.message.${message.role}`, { "aria-label": SPEAKER[message.role] }, this.thoughts, this.body, this.calls, this.notes, this.foot);
  }

  /**
   * @param {{versions: Message[], running: boolean, busy: boolean, last: boolean}} state `busy` if any answer of the
   *   chat is being written
   */
  update(state) {
    this.state = state;
    const drawn = signature(this.message, state);
    // What stays as it is keeps its selection, its focus and what is open in it.
    if (drawn === this.drawn && !this.editing) return;
    this.drawn = drawn;
    this.element.classList.toggle("running", state.running);
    this.element.setAttribute("aria-busy", String(state.running));
    if (this.editing) return;
    this.#drawThoughts();
    this.drawBody();
    this.#drawCalls();
    this.#drawNotes();
    this.#drawFoot();
  }

  #drawThoughts() {
    const { reasoning, content } = this.message;
    this.thoughts.hidden = !reasoning;
    if (!reasoning) return;
    const thinking = this.state.running && !content;
    fill(this.thoughts, h("summary", {}, thinking ? "Thinking…" : "Thoughts"), h("div.thought", {}, reasoning));
    this.thoughts.toggleAttribute("open", this.thoughtsOpen || thinking);
  }

  drawBody() {
    const { role, content, callId } = this.message;
    if (role === "user") fill(this.body, content);
    else if (role === "tool") fill(this.body, h("div.call-head", {}, icon("tool"), `Result ${callId ? `of ${callId}` : ""}`), h("pre", { tabindex: "0" }, content));
    else if (this.marked) fill(this.body, ...this.#pieces());
    else fill(this.body, render(content));
  }

  /** The text with its drafted tokens marked, and what the colours mean. */
  #pieces() {
    const text = h("div.pieces");
    for (const { text: said, tokens, accepted } of this.message.pieces ?? []) {
      const kind = accepted === 0 ? "sampled" : accepted === tokens ? "accepted" : "mixed";
      text.append(h(`span.${kind}`, { title: `${accepted} of ${tokens} tokens drafted` }, said));
    }
    return [h("p.legend", {}, h("span.accepted", {}, "drafted and accepted"), h("span.sampled", {}, "chosen by the model itself")), text];
  }

  #drawCalls() {
    const { calls = [] } = this.message;
    const waits = calls.length > 0 && this.state.last && !this.state.busy;
    if (waits && this.calls.querySelector("form")) return;
    const cards = calls.map((call) => h("div.call", {}, h("div.call-head", {}, icon("tool"), call.name), h("pre", { tabindex: "0" }, pretty(call.arguments))));
    fill(this.calls, ...(waits ? [this.#resultForm(cards)] : cards));
  }

  /** The user plays the tools. @param {HTMLElement[]} cards */
  #resultForm(cards) {
    const inputs = cards.map((card) => {
      const input = /** @type {HTMLInputElement} */ (h("input", { type: "text", required: true, placeholder: 'Its result, such as {"temperature": 21}', "aria-label": "Result of this call" }));
      card.append(input);
      return input;
    });
    const submit = (/** @type {Event} */ event) => {
      event.preventDefault();
      this.actions.results(this.message, inputs.map((input) => input.value));
    };
    return h("form", { onsubmit: submit }, ...cards, h("button", { type: "submit" }, cards.length > 1 ? "Send results" : "Send result"));
  }

  #drawNotes() {
    const { role, error, retry, finish } = this.message;
    if (error) {
      const button = retry && this.state.last && !this.state.busy ? h("button", { type: "button", onclick: () => this.actions.again(this.message) }, "Try again") : null;
      fill(this.notes, h("div.error", { role: "alert" }, h("span", {}, error), button));
      return;
    }
    const interrupted = role === "assistant" && !finish && !this.state.running;
    const note = interrupted ? "This answer was interrupted." : ENDED[/** @type {keyof typeof ENDED} */ (finish)];
    fill(this.notes, note ? h("p.note", {}, note) : null);
  }

  #drawFoot() {
    const { message, state } = this;
    if (state.running) {
      fill(this.foot);
      return;
    }
    const copy = iconButton("copy", "Copy", () => copyText(message.content, copy));
    const tools = [...this.#switcher(), message.content ? copy : null];
    if (message.role === "user" && !state.busy) tools.push(iconButton("edit", "Edit", () => this.#edit()));
    if (message.role === "assistant" && !state.busy) tools.push(iconButton("again", "Regenerate", () => this.actions.again(message)));
    if (message.pieces?.some((piece) => piece.accepted)) tools.push(this.#marker());
    fill(this.foot, ...tools, this.#cost());
  }

  #marker() {
    const toggle = iconButton("tokens", "Show drafted tokens", () => {
      this.marked = !this.marked;
      toggle.setAttribute("aria-pressed", String(this.marked));
      this.drawBody();
      this.element.scrollIntoView({ block: "nearest" });
    });
    toggle.setAttribute("aria-pressed", String(this.marked));
    return toggle;
  }

  /** @returns {HTMLElement[]} */
  #switcher() {
    const { versions, busy } = this.state;
    if (versions.length < 2) return [];
    const at = versions.indexOf(this.message);
    const step = (/** @type {number} */ by) => () => this.actions.show(versions[at + by]);
    return [
      h(
        "span.versions",
        {},
        iconButton("left", "Previous version", step(-1), { disabled: busy || at === 0 }),
        h("span", {}, `${at + 1}/${versions.length}`),
        iconButton("right", "Next version", step(1), { disabled: busy || at === versions.length - 1 }),
      ),
    ];
  }

  #cost() {
    const { cost } = this.message;
    if (!cost) return null;
    const parts = [`${cost.tokens} token${cost.tokens === 1 ? "" : "s"}`];
    if (cost.tokens > 1) parts.push(`${Math.round(cost.tokens / cost.seconds)} tokens/s`);
    if (cost.accepted) parts.push(`${Math.round((100 * cost.accepted) / cost.tokens)} % drafted`);
    return h("span.cost", { title: `First token after ${Math.round(cost.first * 1000)} ms` }, parts.join(" · "));
  }

  #edit() {
    this.editing = true;
    const area = /** @type {HTMLTextAreaElement} */ (h("textarea", { rows: "3", "aria-label": "Edit the message" }));
    area.value = this.message.content;
    const end = () => {
      this.editing = false;
      this.drawn = "";
      this.element.classList.remove("editing");
      this.update(this.state);
    };
    const send = () => {
      if (!area.value.trim()) return;
      end();
      this.actions.edit(this.message, area.value);
    };
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") end();
      else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send();
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    this.element.classList.add("editing");
    fill(this.body, area);
    fill(this.foot, h("button", { type: "button", onclick: end }, "Cancel"), h("button.primary", { type: "button", onclick: send }, "Send"));
    area.focus();
  }
}

const SPEAKER = { user: "You", assistant: "Assistant", tool: "Tool" };

/** All that a view of a message hangs on. @param {Message} message @param {MessageView["state"]} state */
function signature({ content, reasoning, calls, finish, error, cost }, { versions, running, busy, last }) {
  const said = [content.length, reasoning?.length, calls?.map((call) => call.arguments.length), finish, error, cost !== undefined];
  return JSON.stringify([said, versions.map((version) => version.id), running, busy, last]);
}

/** JSON with line breaks, or the text itself while it is no JSON yet. @param {string} text */
function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
