// A chat as a tree: editing a message or asking again adds a branch, so that nothing is lost. Pure data, no DOM.

/** @typedef {{index: number, id: string, name: string, arguments: string}} Call */
/** @typedef {{text: string, tokens: number, accepted: number}} Piece a piece of an answer; of its tokens so many were drafted */
/** @typedef {{tokens: number, seconds: number, first: number, drafted: number, accepted: number}} Cost */
/**
 * @typedef {object} Message
 * @property {string} id
 * @property {string|null} parent
 * @property {"user"|"assistant"|"tool"} role
 * @property {string} content
 * @property {string} [reasoning]
 * @property {Call[]} [calls]
 * @property {string} [callId] the call that a tool's message answers
 * @property {Piece[]} [pieces]
 * @property {string} [finish] why the answer ended; "stopped" if the user stopped it
 * @property {string} [error]
 * @property {boolean} [retry]
 * @property {Cost} [cost]
 */
/**
 * @typedef {object} Chat
 * @property {string} id
 * @property {string} title empty until the first message gives it one
 * @property {number} updated
 * @property {import("./options.js").Options} options
 * @property {Record<string, Message>} messages
 * @property {string|null} leaf the last message of the branch that is shown
 */

let last = 0;

/** An id that is later in order than those before it. */
export function newId() {
  last = Math.max(last + 1, Date.now());
  return last.toString(36) + Math.random().toString(36).slice(2, 8);
}

/** @param {import("./options.js").Options} options @returns {Chat} */
export function newChat(options) {
  return { id: newId(), title: "", updated: Date.now(), options: { ...options }, messages: {}, leaf: null };
}

/**
 * Add a message behind `parent`, and show its branch.
 * @param {Chat} chat @param {string|null} parent @param {Omit<Message, "id"|"parent">} message @returns {Message}
 */
export function add(chat, parent, message) {
  const added = { id: newId(), parent, ...message };
  chat.messages[added.id] = added;
  chat.leaf = added.id;
  chat.updated = Date.now();
  if (!chat.title && message.role === "user") chat.title = titleOf(message.content);
  return added;
}

/** @param {string} text */
function titleOf(text) {
  const line = text.trim().split("\n", 1)[0];
  return line.length > 60 ? `${line.slice(0, 59)}…` : line;
}

/** The messages up to one, or of the branch that is shown. @param {Chat} chat @param {string|null} [leaf] @returns {Message[]} */
export function path(chat, leaf = chat.leaf) {
  /** @type {Message[]} */
  const found = [];
  for (let at = leaf ? chat.messages[leaf] : undefined; at; at = at.parent ? chat.messages[at.parent] : undefined) found.push(at);
  return found.reverse();
}

/** The other versions of a message and itself, oldest first. @param {Chat} chat @param {Message} message */
export function versions(chat, message) {
  return Object.values(chat.messages)
    .filter((each) => each.parent === message.parent)
    .sort((one, other) => (one.id < other.id ? -1 : 1));
}

/** Show the newest branch through a message. @param {Chat} chat @param {Message} message */
export function show(chat, message) {
  let at = message;
  for (;;) {
    const next = Object.values(chat.messages).filter((each) => each.parent === at.id);
    if (!next.length) break;
    at = next.reduce((one, other) => (one.id > other.id ? one : other));
  }
  chat.leaf = at.id;
}

/**
 * The messages as the API takes them. Answers that ended in an error or say nothing are left out.
 * @param {Chat} chat @param {string|null} leaf
 */
export function sent(chat, leaf) {
  const system = chat.options.system.trim() ? [{ role: "system", content: chat.options.system }] : [];
  return [...system, ...path(chat, leaf).filter(speaks).map(asSent)];
}

/** @param {Message} message */
function speaks(message) {
  return message.role !== "assistant" || message.content !== "" || Boolean(message.calls?.length);
}

/** @param {Message} message */
function asSent({ role, content, reasoning, calls, callId }) {
  if (role === "tool") return { role, content, tool_call_id: callId };
  if (role === "user") return { role, content };
  const tools = calls?.length
    ? { tool_calls: calls.map((call) => ({ id: call.id, type: "function", function: { name: call.name, arguments: call.arguments } })) }
    : {};
  return { role, content: content || null, ...(reasoning ? { reasoning_content: reasoning } : {}), ...tools };
}
