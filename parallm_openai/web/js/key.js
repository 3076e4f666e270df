// The API key: asked for once, kept in this browser.

import { ask } from "./dialogs.js";
import { read, write } from "./preferences.js";

/** @type {Promise<boolean>|null} */
let asking = null;

/**
 * Ask for the key, once for all requests that miss it. Resolves with whether one was given.
 * @param {boolean} [refused] whether the server has just refused a request
 * @returns {Promise<boolean>}
 */
export function askForKey(refused = false) {
  asking ??= dialog(refused).finally(() => {
    asking = null;
  });
  return asking;
}

/** @param {boolean} refused */
async function dialog(refused) {
  const had = read("key");
  const kept = refused ? "The server does not know the key that this browser keeps." : "This browser keeps a key.";
  const key = await ask({
    title: "API key",
    label: "Key",
    type: "password",
    action: "Save",
    optional: true,
    hint: had
      ? `${kept} Enter another one to replace it, or leave the field empty to forget it.`
      : "Enter the key of this server. It is kept in this browser and sent to this server alone.",
  });
  if (key === null) return false;
  write("key", key);
  return key !== "";
}

/**
 * Do what may need a key; if it does, ask for one and do it again.
 * @template T @param {() => Promise<T>} work @returns {Promise<T>}
 */
export async function withKey(work) {
  for (;;) {
    try {
      return await work();
    } catch (error) {
      const needed = error instanceof Error && "needsKey" in error && error.needsKey;
      if (!needed || !(await askForKey(true))) throw error;
    }
  }
}
