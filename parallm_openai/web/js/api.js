// Requests to this server. Errors are ApiErrors whose message is plain words.

import { read } from "./preferences.js";

const BASE = new URL("./", document.baseURI);

export class ApiError extends Error {
  /** @param {string} message @param {{status?: number, code?: string|null, retry?: boolean}} [facts] */
  constructor(message, { status = 0, code = null, retry = false } = {}) {
    super(message);
    /** HTTP status; 0 if no answer came. */
    this.status = status;
    this.code = code;
    /** Whether the same request may succeed later. */
    this.retry = retry;
  }

  get needsKey() {
    return this.status === 401;
  }
}

export const GONE = "The server does not answer. Check that it is still running, then try again.";
export const CUT = "The connection ended before the answer was complete.";

/** What each status means to somebody who does not know HTTP; the server's own words follow or replace it. */
const PLAIN = {
  401: () => "This server needs an API key.",
  429: () => "The server is busy: its queue is full. Try again in a moment.",
  502: () => GONE,
  503: (/** @type {string} */ said) => `The server cannot answer now. ${said}`,
  504: (/** @type {string} */ said) => said || "The server took too long.",
};

/**
 * @param {number} status
 * @param {{message?: string, code?: string|null}|null} error the server's own error, if it sent one
 */
export function apiError(status, error) {
  const said = typeof error?.message === "string" ? error.message : "";
  const plain = PLAIN[/** @type {keyof typeof PLAIN} */ (status)];
  const message = plain ? plain(said).trim() : said || `The server answered with status ${status}.`;
  return new ApiError(message, { status, code: error?.code ?? null, retry: status === 429 || status >= 500 });
}

/**
 * Fetch a path of this server with the key that the user gave. Raises ApiError, or AbortError if `signal` was used.
 * @param {string} path without a leading slash
 * @param {RequestInit} [init]
 */
export async function request(path, init = {}) {
  const headers = new Headers(init.headers);
  const key = read("key");
  // Other characters are in no key, and would not pass into a header.
  if (/^[\x21-\x7e]+$/.test(key)) headers.set("Authorization", `Bearer ${key}`);
  let response;
  try {
    response = await fetch(new URL(path, BASE), { ...init, headers });
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new ApiError(GONE, { retry: true });
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  throw apiError(response.status, body?.error ?? null);
}

/** @param {string} path @param {RequestInit} [init] @returns {Promise<any>} */
export async function json(path, init) {
  return (await request(path, init)).json();
}

/** @returns {Promise<string[]>} the names of the model served */
export async function models() {
  const found = await json("v1/models");
  return found.data.map((/** @type {{id: string}} */ model) => model.id);
}

/**
 * Start a chat completion. The deltas come as `chat.completion.chunk` objects.
 * @param {object} body @param {AbortSignal} signal
 */
export async function* completion(body, signal) {
  const response = await request("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true }),
    signal,
  });
  yield* events(response);
}

/**
 * The JSON of server-sent events up to `[DONE]`. Raises ApiError for an error in the stream or one that is cut off.
 * @param {Response} response
 */
async function* events(response) {
  for await (const data of lines(response)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw apiError(500, chunk.error);
    yield chunk;
  }
  throw new ApiError(CUT, { retry: true });
}

/** The `data` of each event. @param {Response} response */
async function* lines(response) {
  const reader = /** @type {ReadableStream<any>} */ (response.body).pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (error instanceof DOMException && error.name === "AbortError") throw error;
      throw new ApiError(CUT, { retry: true });
    }
    if (part.done) return;
    const found = (rest + part.value).split("\n");
    rest = found.pop() ?? "";
    for (const line of found) {
      if (line.startsWith("data:")) yield line.slice(5).trim();
    }
  }
}
