// A model's Markdown as elements that can do no harm: no scripts, no styles, nothing loaded from anywhere.

import { Marked } from "../vendor/marked.js";
import DOMPurify from "../vendor/dompurify.js";
import { h, iconButton } from "./dom.js";

const marked = new Marked({ gfm: true, breaks: true, async: false });

const TAGS = "a blockquote br code del em h1 h2 h3 h4 h5 h6 hr input li ol p pre strong sub sup table tbody td th thead tr ul".split(" ");

// An image would be loaded from elsewhere: its link stands for it.
marked.use({
  renderer: {
    image(/** @type {{href: string, text: string}} */ { href, text }) {
      return `<a href="${escape(href)}">${escape(text || href)}</a>`;
    },
    html(/** @type {{text: string}} */ { text }) {
      return escape(text);
    },
  },
});

/** @param {string} text */
function escape(text) {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll('"', "&quot;");
}

/** @param {string} text @returns {DocumentFragment} */
export function render(text) {
  const clean = DOMPurify.sanitize(/** @type {string} */ (marked.parse(text)), {
    ALLOWED_TAGS: TAGS,
    ALLOWED_ATTR: ["href", "title", "start", "align", "class", "type", "checked", "disabled"],
    ALLOWED_URI_REGEXP: /^(?:https?:|mailto:)/i,
    // The expression is for addresses, not for these.
    ADD_URI_SAFE_ATTR: ["start", "align", "type", "checked", "disabled"],
    ALLOW_DATA_ATTR: false,
    RETURN_DOM_FRAGMENT: true,
  });
  for (const link of clean.querySelectorAll("a")) {
    link.setAttribute("target", "_blank");
    link.setAttribute("rel", "noopener noreferrer nofollow");
  }
  // Of inputs, only the boxes of task lists.
  for (const input of clean.querySelectorAll("input")) {
    if (input.type !== "checkbox") input.remove();
    else input.disabled = true;
  }
  for (const element of clean.querySelectorAll("[class]")) {
    if (!/^language-[\w+#.-]+$/.test(element.className)) element.removeAttribute("class");
  }
  for (const table of clean.querySelectorAll("table")) table.replaceWith(scrolling(table));
  for (const block of clean.querySelectorAll("pre")) block.replaceWith(framed(block));
  return clean;
}

/** Wide content scrolls by itself, with the keyboard too. @param {Element} inner */
function scrolling(inner) {
  const frame = h("div.scrolling", { tabindex: "0", role: "region", "aria-label": "Table" });
  frame.append(inner.cloneNode(true));
  return frame;
}

/** Code with its language and a button that copies it. @param {HTMLPreElement} block */
function framed(block) {
  const code = block.querySelector("code");
  const language = code?.className.replace("language-", "") ?? "";
  const text = block.textContent ?? "";
  const copy = iconButton("copy", "Copy code", () => copyText(text, copy));
  return h("div.code", {}, h("div.code-head", {}, h("span", {}, language || "text"), copy), h("pre", { tabindex: "0" }, h("code", {}, text)));
}

/**
 * Copy a text, and say so on the button.
 * @param {string} text @param {HTMLElement} button
 */
export async function copyText(text, button) {
  const label = button.getAttribute("aria-label") ?? "Copy";
  const said = (await tryCopy(text)) ? "Copied" : "Could not copy";
  button.setAttribute("aria-label", said);
  button.setAttribute("title", said);
  button.classList.toggle("done", said === "Copied");
  setTimeout(() => {
    button.setAttribute("aria-label", label);
    button.setAttribute("title", label);
    button.classList.remove("done");
  }, 1500);
}

/** @param {string} text */
async function tryCopy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Without https there is no clipboard: by the old way.
    const area = h("textarea.offscreen", { "aria-hidden": "true" });
    /** @type {HTMLTextAreaElement} */ (area).value = text;
    document.body.append(area);
    /** @type {HTMLTextAreaElement} */ (area).select();
    const copied = document.execCommand("copy");
    area.remove();
    return copied;
  }
}
