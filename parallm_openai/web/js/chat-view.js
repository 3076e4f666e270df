// A chat: its messages, and the box to write the next one.

import { fill, h, icon, iconButton } from "./dom.js";
import { MessageView } from "./message-view.js";
import { add, path, show, versions } from "./tree.js";

/** @typedef {import("./tree.js").Chat} Chat */
/** @typedef {import("./tree.js").Message} Message */

const IDEAS = ["What is the capital of France?", "Tell me a story.", "What is the weather in Paris?"];
// As far from the end, in pixels, the view still follows an answer.
const NEAR = 80;
// Drawing takes at most this part of the time: long answers are drawn less often.
const DRAWING_SHARE = 0.25;

export class ChatView {
  /**
   * @param {import("./generation.js").Generations} generations
   * @param {(chat: Chat) => Promise<void>} save
   */
  constructor(generations, save) {
    this.generations = generations;
    this.save = save;
    /** @type {Chat|null} */
    this.chat = null;
    /** @type {Map<string, MessageView>} */
    this.views = new Map();
    /** @type {number|undefined} */
    this.drawing = undefined;
    this.took = 0;
    this.follows = true;
    this.list = h("div.messages", { role: "log", "aria-label": "Messages", "aria-live": "off" });
    this.status = h("p.offscreen", { role: "status" });
    this.jump = iconButton("down", "Go to the end", () => this.toEnd(), { hidden: true });
    this.jump.classList.add("jump");
    this.scroller = h("div.scroller", { onscroll: () => this.#scrolled() }, this.list);
    this.input = /** @type {HTMLTextAreaElement} */ (
      h("textarea", { rows: "1", placeholder: "Message", "aria-label": "Message", oninput: () => this.#grow(), onkeydown: (/** @type {KeyboardEvent} */ event) => this.#key(event) })
    );
    this.button = h("button.send", { type: "submit" });
    this.composer = h("form.composer", { onsubmit: (/** @type {Event} */ event) => this.#submit(event) }, this.input, this.button);
    this.element = h("div.chat", {}, this.scroller, h("div.composer-area", {}, this.jump, this.composer), this.status);
    generations.addEventListener("change", (event) => this.#changed(/** @type {CustomEvent} */ (event).detail));
  }

  /** @param {Chat} chat */
  open(chat) {
    this.chat = chat;
    this.views.clear();
    this.list.replaceChildren();
    this.draw();
    this.toEnd();
  }

  focus() {
    // A phone's keyboard would hide half of the page.
    if (matchMedia("(hover: hover)").matches) this.input.focus();
  }

  toEnd() {
    this.follows = true;
    this.scroller.scrollTop = this.scroller.scrollHeight;
    this.#scrolled();
  }

  draw() {
    const chat = this.chat;
    if (!chat) return;
    const began = performance.now();
    const messages = path(chat);
    const running = this.generations.of(chat);
    const views = messages.map((message, at) => {
      const view = this.views.get(message.id) ?? new MessageView(message, this.#actions());
      this.views.set(message.id, view);
      view.update({ versions: versions(chat, message), running: message === running, busy: running !== null, last: at === messages.length - 1 });
      return view.element;
    });
    this.#place(views.length ? views : [this.#welcome()]);
    this.#drawButton(running !== null);
    if (this.follows) this.scroller.scrollTop = this.scroller.scrollHeight;
    this.#scrolled();
    this.took = performance.now() - began;
  }

  /** Put the elements into the list, and leave those that stand there as they are. @param {HTMLElement[]} elements */
  #place(elements) {
    const wanted = new Set(elements);
    for (const child of [...this.list.children]) if (!wanted.has(/** @type {HTMLElement} */ (child))) child.remove();
    elements.forEach((element, at) => {
      if (this.list.children[at] !== element) this.list.insertBefore(element, this.list.children[at] ?? null);
    });
  }

  #welcome() {
    const ideas = IDEAS.map((idea) => h("button.idea", { type: "button", onclick: () => this.send(idea) }, idea));
    return h("section.welcome", {}, h("h1", {}, "What shall we talk about?"), h("p", {}, "Chats stay in this browser. Answers come from ", h("strong", {}, this.chat?.options.model || "this server"), "."), h("div.ideas", {}, ...ideas));
  }

  /** @param {boolean} busy */
  #drawButton(busy) {
    const label = busy ? "Stop" : "Send";
    this.button.setAttribute("aria-label", label);
    this.button.setAttribute("title", busy ? "Stop (Esc)" : "Send (Enter)");
    this.button.classList.toggle("stop", busy);
    fill(this.button, icon(busy ? "stop" : "send"));
  }

  /** @returns {import("./message-view.js").Actions} */
  #actions() {
    const chat = /** @type {Chat} */ (this.chat);
    const answer = (/** @type {string|null} */ parent) => {
      this.follows = true;
      return parent && this.generations.answer(chat, parent);
    };
    return {
      again: (message) => void answer(message.parent),
      edit: (message, text) => void answer(add(chat, message.parent, { role: "user", content: text }).id),
      show: (message) => {
        show(chat, message);
        void this.save(chat);
        this.draw();
      },
      results: (message, results) => {
        let parent = message.id;
        message.calls?.forEach((call, at) => {
          parent = add(chat, parent, { role: "tool", content: results[at], callId: call.id }).id;
        });
        void answer(parent);
      },
    };
  }

  /** @param {string} text */
  send(text) {
    const chat = this.chat;
    if (!chat || !text.trim() || this.generations.of(chat)) return;
    const message = add(chat, chat.leaf, { role: "user", content: text });
    this.follows = true;
    void this.save(chat);
    void this.generations.answer(chat, message.id);
  }

  /** @param {Event} event */
  #submit(event) {
    event.preventDefault();
    if (!this.chat) return;
    if (this.generations.of(this.chat)) {
      this.generations.stop(this.chat);
      return;
    }
    this.send(this.input.value);
    this.input.value = "";
    this.#grow();
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      if (this.chat && !this.generations.of(this.chat)) this.composer.dispatchEvent(new Event("submit", { cancelable: true }));
    } else if (event.key === "ArrowUp" && !this.input.value) {
      const edits = this.list.querySelectorAll('.message.user button[aria-label="Edit"]');
      /** @type {HTMLElement|undefined} */ ([...edits].at(-1))?.click();
    }
  }

  #grow() {
    this.input.style.height = "auto";
    this.input.style.height = `${this.input.scrollHeight}px`;
  }

  #scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    this.follows = scrollHeight - scrollTop - clientHeight < NEAR;
    this.jump.hidden = this.follows;
  }

  /** @param {{chat: Chat, message: Message, ended: boolean}} change */
  #changed({ chat, message, ended }) {
    if (chat !== this.chat) return;
    if (ended) {
      clearTimeout(this.drawing);
      this.drawing = undefined;
      this.status.textContent = message.error ? "" : "The answer is complete.";
      this.draw();
      return;
    }
    this.drawing ??= setTimeout(() => {
      this.drawing = undefined;
      this.draw();
    }, Math.max(30, this.took / DRAWING_SHARE));
  }
}
