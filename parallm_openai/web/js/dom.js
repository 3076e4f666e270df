// Small helpers around the DOM. All text is set as text, never as HTML.

/**
 * Make an element.
 * @param {string} spec tag and classes: "button.primary.small"
 * @param {Record<string, any>} [props] `on…` are listeners; booleans and strings are attributes
 * @param {...(Node|string|null|undefined|false)} children
 * @returns {HTMLElement}
 */
export function h(spec, props = {}, ...children) {
  const [tag, ...classes] = spec.split(".");
  const element = document.createElement(tag);
  if (classes.length) element.classList.add(...classes);
  for (const [name, value] of Object.entries(props)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const PATHS = {
  plus: "M12 5v14M5 12h14",
  menu: "M4 7h16M4 12h16M4 17h16",
  sliders: "M4 8h9.5M18 8h2M13.5 8a2.25 2.25 0 1 0 4.5 0 2.25 2.25 0 1 0-4.5 0M4 16h2M10.5 16H20M6 16a2.25 2.25 0 1 0 4.5 0 2.25 2.25 0 1 0-4.5 0",
  send: "M12 19V5m-6 6 6-6 6 6",
  stop: "M7.5 7.5h9v9h-9z",
  copy: "M9 9h10v10H9zM15 9V5H5v10h4",
  check: "m5 13 4.5 4.5L19 7",
  edit: "M4 20h4L19 9l-4-4L4 16zM13.5 6.5l4 4",
  again: "M19 12a7 7 0 1 1-2.2-5.1M19 4v4h-4",
  trash: "M5 7h14M10 7V5h4v2M7 7l1 12h8l1-12",
  left: "m14 6-6 6 6 6",
  right: "m10 6 6 6-6 6",
  close: "M6 6l12 12M18 6 6 18",
  chat: "M5 5h14v10H10l-5 4z",
  lanes: "M4 6h6m3 0h7M4 12h11m3 0h2M4 18h4m3 0h9",
  book: "M5 5h6a1 1 0 0 1 1 1v13a1 1 0 0 0-1-1H5zM19 5h-6a1 1 0 0 0-1 1v13a1 1 0 0 1 1-1h6z",
  key: "M14.5 9.5a4 4 0 1 0-3.7 4l1.7 1.7h2v2h2v2h3v-3l-5.3-5.3c.2-.4.3-.9.3-1.4zM9.5 9.4v.2",
  sun: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM12 3v2M12 19v2M3 12h2M19 12h2M5.6 5.6 7 7M17 17l1.4 1.4M18.4 5.6 17 7M7 17l-1.4 1.4",
  moon: "M19 14.5A7.5 7.5 0 0 1 9.5 5a7.5 7.5 0 1 0 9.5 9.5z",
  auto: "M12 4a8 8 0 1 0 0 16zM12 4a8 8 0 0 1 0 16",
  down: "M12 5v14m6-6-6 6-6-6",
  tool: "M14 6a4 4 0 0 0-4.9 5L4 16l4 4 5-5.1A4 4 0 0 0 18 10l-2.5 1.5-3-3z",
  tokens: "M4 7h7v4H4zM14 7h6v4h-6zM4 14h4v4H4zM11 14h9v4h-9z",
  pause: "M9 6v12M15 6v12",
  play: "M8 5.5v13l10-6.5z",
};

/**
 * An icon, hidden from screen readers.
 * @param {keyof typeof PATHS} name
 */
export function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(space, "path");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}

/**
 * A button that shows an icon alone; its label is read and shown as a tip.
 * @param {keyof typeof PATHS} name @param {string} label @param {() => void} onclick @param {Record<string, any>} [more]
 */
export function iconButton(name, label, onclick, more = {}) {
  return h("button.icon-button", { type: "button", title: label, "aria-label": label, onclick, ...more }, icon(name));
}

/** Replace what an element holds. @param {HTMLElement} element @param {...(Node|string|null|undefined|false)} children */
export function fill(element, ...children) {
  element.replaceChildren(...children.filter((child) => child !== null && child !== undefined && child !== false));
}
