// The page: what is shown where, and which part of it the address names.

import { ApiError, models } from "./api.js";
import { ChatView } from "./chat-view.js";
import { fill, h, iconButton } from "./dom.js";
import { EngineView } from "./engine-view.js";
import { Generations } from "./generation.js";
import { withKey } from "./key.js";
import { lastOptions } from "./options.js";
import { editOptions } from "./options-panel.js";
import { applyTheme } from "./preferences.js";
import { Sidebar } from "./sidebar.js";
import { ChatStore } from "./store.js";
import { newChat } from "./tree.js";

/** @typedef {import("./tree.js").Chat} Chat */

class Page {
  /** @param {ChatStore} store */
  constructor(store) {
    this.store = store;
    /** @type {string[]} */
    this.models = [];
    const save = (/** @type {Chat} */ chat) => this.save(chat);
    this.generations = new Generations(save);
    this.chatView = new ChatView(this.generations, save);
    this.engineView = new EngineView();
    this.sidebar = new Sidebar(store, { fresh: () => this.fresh(), save, remove: (chat) => this.remove(chat) });
    this.notice = h("div.notices", { role: "status" });
    this.heading = h("h1.title");
    this.options = iconButton("sliders", "Options", () => void this.changeOptions());
    this.menu = iconButton("menu", "Menu", () => this.toggleMenu(true), { "aria-expanded": "false" });
    this.menu.classList.add("menu");
    this.backdrop = h("div.backdrop", { onclick: () => this.toggleMenu(false) });
    this.view = h("div.view");
    this.main = h("main", { id: "main", tabindex: "-1" }, h("header.top", {}, this.menu, this.heading, this.options), this.notice, this.view);
    fill(/** @type {HTMLElement} */ (document.getElementById("app")), this.sidebar.element, this.backdrop, this.main);
    addEventListener("hashchange", () => this.route());
    store.addEventListener("change", (event) => this.follow(/** @type {CustomEvent<string>} */ (event).detail));
    addEventListener("keydown", (event) => this.#key(event));
  }

  async start() {
    this.route();
    await this.findModels();
  }

  async findModels() {
    try {
      this.models = await withKey(models);
    } catch (error) {
      const retry = h("button", { type: "button", onclick: () => void this.findModels() }, "Try again");
      this.say(error instanceof ApiError ? error.message : String(error), retry);
      return;
    }
    this.say(this.store.lasting ? "" : "This browser keeps no chats: they end with this page.");
    const { chat } = this.chatView;
    if (chat) this.chooseModel(chat);
    this.chatView.draw();
  }

  /** A model that is served, if the chat names none or one that is not. @param {Chat} chat */
  chooseModel({ options }) {
    if (!this.models.includes(options.model)) options.model = this.models[0] ?? options.model;
  }

  /** @param {string} text @param {HTMLElement} [action] */
  say(text, action) {
    fill(this.notice, text ? h("p.notice", {}, h("span", {}, text), action) : null);
  }

  route() {
    const [, where, id] = location.hash.split("/");
    this.toggleMenu(false);
    const engine = where === "engine";
    this.options.hidden = engine;
    if (engine) this.showEngine();
    else this.showChat(this.store.get(id) ?? this.blank());
  }

  showEngine() {
    this.shown = "engine";
    this.title("Engine");
    fill(this.view, this.engineView.element);
    this.engineView.start();
    this.sidebar.draw("engine");
  }

  /** @param {Chat} chat */
  showChat(chat) {
    this.engineView.stop();
    this.shown = chat.id;
    this.chooseModel(chat);
    this.title(chat.title);
    fill(this.view, this.chatView.element);
    this.chatView.open(chat);
    this.chatView.focus();
    this.sidebar.draw(chat.id);
  }

  /** @param {string} text */
  title(text) {
    this.heading.textContent = text || "New chat";
    document.title = text ? `${text} – ParaLLM OpenAI` : "ParaLLM OpenAI";
  }

  /** A chat that is kept once it has a message. */
  blank() {
    return newChat(lastOptions());
  }

  fresh() {
    if (location.hash === "" || location.hash === "#/") this.route();
    else location.hash = "#/";
  }

  /** @param {Chat} chat */
  async save(chat) {
    const added = !this.store.get(chat.id);
    try {
      await this.store.save(chat);
    } catch {
      this.say("This browser has no room left for this chat. Delete others to make some.");
    }
    if (this.shown === chat.id) {
      this.title(chat.title);
      if (added) history.replaceState(null, "", `#/chat/${chat.id}`);
    }
    this.sidebar.draw(this.shown ?? "");
  }

  /** @param {Chat} chat */
  async remove(chat) {
    this.generations.stop(chat);
    await this.store.remove(chat.id);
    if (this.shown === chat.id) this.fresh();
    else this.sidebar.draw(this.shown ?? "");
  }

  /** Another tab has changed or removed a chat. @param {string} id */
  follow(id) {
    const chat = this.store.get(id);
    if (this.shown === id && !chat) this.fresh();
    else if (this.shown === id && chat) {
      this.title(chat.title);
      this.chatView.draw();
    }
    this.sidebar.draw(this.shown ?? "");
  }

  async changeOptions() {
    const chat = this.chatView.chat;
    if (!chat) return;
    await editOptions(chat.options, this.models);
    if (this.store.get(chat.id)) await this.save(chat);
  }

  /** @param {boolean} open */
  toggleMenu(open) {
    document.body.classList.toggle("menu-open", open);
    this.menu.setAttribute("aria-expanded", String(open));
    if (open) /** @type {HTMLElement} */ (this.sidebar.element.querySelector(".nav"))?.focus();
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
    if (document.body.classList.contains("menu-open")) this.toggleMenu(false);
    else if (this.chatView.chat && this.shown === this.chatView.chat.id) this.generations.stop(this.chatView.chat);
  }
}

applyTheme();
void new Page(await ChatStore.open()).start();
