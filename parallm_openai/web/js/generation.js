// Answers while they are written. They go on when another chat is shown.

import { ApiError, completion, models } from "./api.js";
import { askForKey } from "./key.js";
import { fields } from "./options.js";
import { add, sent } from "./tree.js";

/** @typedef {import("./tree.js").Chat} Chat */
/** @typedef {import("./tree.js").Message} Message */

const SAVE_EVERY = 2000;

/** Emits `change` with `{chat, message, ended}` as details. */
export class Generations extends EventTarget {
  /** @param {(chat: Chat) => Promise<void>} save */
  constructor(save) {
    super();
    this.save = save;
    /** @type {Map<string, {message: Message, controller: AbortController}>} */
    this.running = new Map();
  }

  /** The answer that a chat is getting. @param {Chat} chat */
  of(chat) {
    return this.running.get(chat.id)?.message ?? null;
  }

  /** @param {Chat} chat */
  stop(chat) {
    this.running.get(chat.id)?.controller.abort();
  }

  /** Answer the branch that ends with `parent`. @param {Chat} chat @param {string} parent */
  async answer(chat, parent) {
    if (this.running.has(chat.id)) return;
    const controller = new AbortController();
    /** @type {Record<string, unknown>} */
    const body = { ...fields(chat.options), messages: sent(chat, parent), stream_options: { include_usage: true }, return_speculative: true };
    const message = add(chat, parent, { role: "assistant", content: "" });
    this.running.set(chat.id, { message, controller });
    try {
      await this.#run(chat, message, body, controller.signal);
    } finally {
      this.running.delete(chat.id);
      this.#tell(chat, message, true);
      await this.save(chat);
    }
  }

  /** @param {Chat} chat @param {Message} message @param {Record<string, unknown>} body @param {AbortSignal} signal */
  async #run(chat, message, body, signal) {
    for (;;) {
      try {
        // The page has not heard of a model yet if the server was gone.
        body.model ||= (await models())[0];
        await this.#read(chat, message, body, signal);
        return;
      } catch (error) {
        if (signal.aborted) message.finish = "stopped";
        else if (error instanceof ApiError && error.needsKey && (await askForKey(true))) continue;
        else fail(message, error);
        return;
      }
    }
  }

  /** @param {Chat} chat @param {Message} message @param {object} body @param {AbortSignal} signal */
  async #read(chat, message, body, signal) {
    const began = performance.now();
    let first = 0;
    let saved = began;
    this.#tell(chat, message, false);
    for await (const chunk of completion(body, signal)) {
      const now = performance.now();
      const said = extend(message, chunk);
      if (said && !first) first = now;
      if (chunk.usage) message.cost = cost(chunk.usage, (now - began) / 1000, ((first || now) - began) / 1000);
      this.#tell(chat, message, false);
      if (now - saved > SAVE_EVERY) {
        saved = now;
        await this.save(chat);
      }
    }
  }

  /** @param {Chat} chat @param {Message} message @param {boolean} ended */
  #tell(chat, message, ended) {
    this.dispatchEvent(new CustomEvent("change", { detail: { chat, message, ended } }));
  }
}

/** @param {Message} message @param {unknown} error */
function fail(message, error) {
  message.error = error instanceof Error ? error.message : String(error);
  message.retry = !(error instanceof ApiError) || error.retry || error.needsKey;
}

/**
 * Take in one chunk. Returns whether it said anything.
 * @param {Message} message @param {any} chunk
 */
function extend(message, chunk) {
  const choice = chunk.choices?.[0];
  if (!choice) return false;
  const { content, reasoning_content: thought, tool_calls: calls } = choice.delta ?? {};
  if (content) {
    message.content += content;
    if (choice.speculative) (message.pieces ??= []).push({ text: content, ...choice.speculative });
  }
  if (thought) message.reasoning = (message.reasoning ?? "") + thought;
  for (const call of calls ?? []) extendCall((message.calls ??= []), call);
  if (choice.finish_reason) message.finish = choice.finish_reason;
  return Boolean(content || thought || calls?.length);
}

/** @param {import("./tree.js").Call[]} calls @param {any} delta */
function extendCall(calls, delta) {
  let call = calls.find((each) => each.index === delta.index);
  if (!call) {
    call = { index: delta.index, id: delta.id ?? "", name: "", arguments: "" };
    calls.push(call);
  }
  call.name ||= delta.function?.name ?? "";
  call.arguments += delta.function?.arguments ?? "";
}

/** @param {any} usage @param {number} seconds @param {number} first @returns {import("./tree.js").Cost} */
function cost(usage, seconds, first) {
  const details = usage.completion_tokens_details ?? {};
  const accepted = details.accepted_prediction_tokens ?? 0;
  return { tokens: usage.completion_tokens, seconds, first, accepted, drafted: accepted + (details.rejected_prediction_tokens ?? 0) };
}
