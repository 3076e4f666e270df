// What the browser keeps of the user's choices: the API key, the theme, the options of the last chat.

const PREFIX = "parallm.";
/** @type {Map<string, string>} */
const unsaved = new Map();

/** @param {string} name @returns {string} */
export function read(name) {
  try {
    return localStorage.getItem(PREFIX + name) ?? unsaved.get(name) ?? "";
  } catch {
    return unsaved.get(name) ?? "";
  }
}

/** Keep a text, or forget it if it is empty. Without storage it lasts as long as the page. @param {string} name @param {string} value */
export function write(name, value) {
  unsaved.set(name, value);
  try {
    if (value) localStorage.setItem(PREFIX + name, value);
    else localStorage.removeItem(PREFIX + name);
  } catch {
    // Private windows may have no storage.
  }
}

/** @typedef {"auto"|"light"|"dark"} Theme */
/** @type {Theme[]} */
export const THEMES = ["auto", "light", "dark"];

/** @returns {Theme} */
export function theme() {
  const kept = /** @type {Theme} */ (read("theme"));
  return THEMES.includes(kept) ? kept : "auto";
}

/** @param {Theme} value */
export function setTheme(value) {
  write("theme", value === "auto" ? "" : value);
  applyTheme();
}

export function applyTheme() {
  const chosen = theme();
  if (chosen === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = chosen;
  document.dispatchEvent(new CustomEvent("themechange"));
}
