// The chats, kept in this browser's IndexedDB. They never leave it but as requests to this server. Other tabs of this
// page are told of each change, and what two of them add to one chat is joined.

/** @typedef {import("./tree.js").Chat} Chat */

const STORE = "chats";

/** @template T @param {IDBRequest<T>} request @returns {Promise<T>} */
function done(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

async function open() {
  const opening = indexedDB.open("parallm", 1);
  opening.onupgradeneeded = () => opening.result.createObjectStore(STORE, { keyPath: "id" });
  return done(opening);
}

/** Emits `change` with a chat's id as its detail when another tab has changed or removed that chat. */
export class ChatStore extends EventTarget {
  /** @param {IDBDatabase|null} database */
  constructor(database) {
    super();
    this.database = database;
    this.channel = new BroadcastChannel("parallm.chats");
    this.channel.onmessage = ({ data }) => void this.#follow(data);
    /** @type {Map<string, Chat>} */
    this.chats = new Map();
    /** @type {Set<string>} */
    this.removed = new Set();
  }

  /** The chats of this browser; some private windows keep none. */
  static async open() {
    try {
      const database = await open();
      const store = new ChatStore(database);
      const kept = await done(database.transaction(STORE).objectStore(STORE).getAll());
      for (const chat of kept) store.chats.set(chat.id, chat);
      return store;
    } catch {
      return new ChatStore(null);
    }
  }

  /** Whether chats outlast the page. */
  get lasting() {
    return this.database !== null;
  }

  /** Newest first. */
  get sorted() {
    return [...this.chats.values()].sort((one, other) => other.updated - one.updated);
  }

  /** @param {string|null} id */
  get(id) {
    return id ? this.chats.get(id) : undefined;
  }

  /** Keep a chat, unless it was removed. Raises an error if the browser has no room for it. @param {Chat} chat */
  async save(chat) {
    if (this.removed.has(chat.id)) return;
    this.chats.set(chat.id, chat);
    if (!this.database) return;
    const chats = this.database.transaction(STORE, "readwrite").objectStore(STORE);
    join(chat, await done(chats.get(chat.id)));
    await done(chats.put(chat));
    this.channel.postMessage({ id: chat.id });
  }

  /** @param {string} id */
  async remove(id) {
    this.removed.add(id);
    this.chats.delete(id);
    if (this.database) await done(this.database.transaction(STORE, "readwrite").objectStore(STORE).delete(id));
    this.channel.postMessage({ id, removed: true });
  }

  /** @param {{id: string, removed?: boolean}} change what another tab has done */
  async #follow({ id, removed }) {
    if (removed) {
      this.removed.add(id);
      this.chats.delete(id);
    } else if (this.database) {
      /** @type {Chat|undefined} */
      const theirs = await done(this.database.transaction(STORE).objectStore(STORE).get(id));
      const own = this.chats.get(id);
      if (own && theirs) follow(own, theirs);
      else if (theirs) this.chats.set(id, theirs);
    }
    this.dispatchEvent(new CustomEvent("change", { detail: id }));
  }
}

/**
 * Take over the messages of another copy of a chat. They have ids of their own, whichever tab they come from, and only
 * grow: the larger is the newer.
 * @param {Chat} chat @param {Chat|undefined} other
 */
function join(chat, other) {
  for (const [id, theirs] of Object.entries(other?.messages ?? {})) {
    const own = chat.messages[id];
    if (!own) chat.messages[id] = theirs;
    else if (JSON.stringify(theirs).length > JSON.stringify(own).length) Object.assign(own, theirs);
  }
}

/** Take over what another tab has made of a chat. @param {Chat} chat @param {Chat} theirs */
function follow(chat, theirs) {
  const { messages } = chat;
  Object.assign(chat, theirs, { messages });
  join(chat, theirs);
}
