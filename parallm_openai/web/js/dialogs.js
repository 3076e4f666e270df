// Modal questions. The browser's own dialog element keeps the focus inside and closes with Escape.

import { h, iconButton } from "./dom.js";

/**
 * Show a dialog; resolves with what `answer` gave, or null if it was closed.
 * @template T
 * @param {string} title
 * @param {(answer: (value: T|null) => void) => Node[]} content
 * @param {string} [kind] a class: "sheet" for a panel at the side
 * @returns {Promise<T|null>}
 */
export function open(title, content, kind = "card") {
  return new Promise((resolve) => {
    /** @type {T|null} */
    let given = null;
    const dialog = /** @type {HTMLDialogElement} */ (h(`dialog.${kind}`, { "aria-label": title, onclose: end, onclick: outside }));
    /** @param {T|null} value */
    function answer(value) {
      given = value;
      dialog.close();
    }
    function end() {
      dialog.remove();
      resolve(given);
    }
    /** @param {MouseEvent} event */
    function outside(event) {
      if (event.target === dialog) dialog.close();
    }
    const head = h("header", {}, h("h2", {}, title), iconButton("close", "Close", () => dialog.close()));
    dialog.append(h("div.dialog-body", {}, head, ...content(answer)));
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** @param {string} title @param {string} text @param {string} action @returns {Promise<boolean>} */
export async function confirm(title, text, action) {
  const answer = await open(title, (/** @type {(value: boolean|null) => void} */ give) => [
    h("p", {}, text),
    h(
      "footer",
      {},
      h("button", { type: "button", onclick: () => give(null) }, "Cancel"),
      h("button.danger", { type: "button", autofocus: true, onclick: () => give(true) }, action),
    ),
  ]);
  return answer === true;
}

/**
 * Ask for a text. Resolves with null if nothing was given.
 * @param {{title: string, label: string, value?: string, hint?: string, type?: string, action: string, optional?: boolean}} question
 * @returns {Promise<string|null>}
 */
export function ask({ title, label, value = "", hint = "", type = "text", action, optional = false }) {
  return open(title, (/** @type {(value: string|null) => void} */ give) => {
    const input = /** @type {HTMLInputElement} */ (
      h("input", { type, value, autofocus: true, autocomplete: "off", spellcheck: "false", required: !optional })
    );
    const form = h(
      "form",
      {
        onsubmit: (/** @type {Event} */ event) => {
          event.preventDefault();
          give(input.value.trim());
        },
      },
      hint ? h("p.hint", {}, hint) : null,
      h("label.field", {}, h("span", {}, label), input),
      h("footer", {}, h("button", { type: "button", onclick: () => give(null) }, "Cancel"), h("button.primary", { type: "submit" }, action)),
    );
    return [form];
  });
}
