// The list of chats, and the ways to the other parts of the page.

import { ask, confirm } from "./dialogs.js";
import { fill, h, icon, iconButton } from "./dom.js";
import { askForKey } from "./key.js";
import { THEMES, setTheme, theme } from "./preferences.js";

/** @typedef {import("./tree.js").Chat} Chat */
/**
 * @typedef {object} Actions
 * @property {() => void} fresh start a new chat
 * @property {(chat: Chat) => Promise<void>} save
 * @property {(chat: Chat) => Promise<void>} remove
 */

const ICONS = /** @type {const} */ ({ auto: "auto", light: "sun", dark: "moon" });
const DAY = 24 * 3600 * 1000;

export class Sidebar {
  /** @param {import("./store.js").ChatStore} store @param {Actions} actions */
  constructor(store, actions) {
    this.store = store;
    this.actions = actions;
    this.list = h("div.chats");
    this.engine = h("a.nav", { href: "#/engine" }, icon("lanes"), "Engine");
    this.themeButton = iconButton("auto", "Theme", () => this.#nextTheme());
    this.element = h(
      "nav.sidebar",
      { "aria-label": "Navigation" },
      h("div.brand", {}, h("img", { src: "page/icon.svg", alt: "", width: "26", height: "26" }), "ParaLLM OpenAI"),
      h("button.nav", { type: "button", onclick: actions.fresh }, icon("plus"), "New chat"),
      this.engine,
      h("h2", {}, "Chats"),
      this.list,
      h(
        "div.side-foot",
        {},
        h("a.icon-button", { href: "docs", title: "API documentation", "aria-label": "API documentation" }, icon("book")),
        iconButton("key", "API key", () => void askForKey()),
        this.themeButton,
      ),
    );
    this.#drawTheme();
  }

  /** @param {string} shown the id of the chat that is shown, or "engine" */
  draw(shown) {
    if (shown === "engine") this.engine.setAttribute("aria-current", "page");
    else this.engine.removeAttribute("aria-current");
    const chats = this.store.sorted;
    fill(this.list, ...grouped(chats).flatMap(([name, group]) => [h("h3", {}, name), h("ul", {}, ...group.map((chat) => this.#item(chat, chat.id === shown)))]));
    if (!chats.length) fill(this.list, h("p.hint", {}, "None yet."));
  }

  /** @param {Chat} chat @param {boolean} shown */
  #item(chat, shown) {
    return h(
      "li",
      {},
      h("a.nav", { href: `#/chat/${chat.id}`, "aria-current": shown ? "page" : null, title: chat.title }, h("span", {}, chat.title || "New chat")),
      h("span.item-tools", {}, iconButton("edit", `Rename ${chat.title}`, () => this.#rename(chat)), iconButton("trash", `Delete ${chat.title}`, () => this.#remove(chat))),
    );
  }

  /** @param {Chat} chat */
  async #rename(chat) {
    const title = await ask({ title: "Rename chat", label: "Title", value: chat.title, action: "Rename" });
    if (!title) return;
    chat.title = title;
    await this.actions.save(chat);
  }

  /** @param {Chat} chat */
  async #remove(chat) {
    if (await confirm("Delete chat", `“${chat.title}” is kept in this browser alone. It cannot be brought back.`, "Delete")) await this.actions.remove(chat);
  }

  #nextTheme() {
    setTheme(THEMES[(THEMES.indexOf(theme()) + 1) % THEMES.length]);
    this.#drawTheme();
  }

  #drawTheme() {
    const now = theme();
    const label = now === "auto" ? "Theme: as the system" : `Theme: ${now}`;
    this.themeButton.setAttribute("aria-label", label);
    this.themeButton.setAttribute("title", label);
    fill(this.themeButton, icon(ICONS[now]));
  }
}

/** Chats by the day of their last change. @param {Chat[]} chats @returns {[string, Chat[]][]} */
function grouped(chats) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  /** @type {Map<string, Chat[]>} */
  const groups = new Map();
  for (const chat of chats) {
    const name = chat.updated >= midnight ? "Today" : chat.updated >= midnight - DAY ? "Yesterday" : chat.updated >= midnight - 7 * DAY ? "Last week" : "Older";
    groups.set(name, [...(groups.get(name) ?? []), chat]);
  }
  return [...groups];
}
