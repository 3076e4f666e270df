// The panel with a chat's options.

import { open } from "./dialogs.js";
import { h } from "./dom.js";
import { NUMBERS, fault, keepOptions, toolsFault } from "./options.js";

/** @typedef {import("./options.js").Options} Options */

/**
 * Let the user change a chat's options; resolves when the panel is closed.
 * @param {Options} options changed in place, as the user types
 * @param {string[]} models
 */
export async function editOptions(options, models) {
  await open("Options", () => [modelField(options, models), systemField(options), h("div.numbers", {}, ...NUMBERS.map((number) => numberField(options, number))), toolsField(options)], "sheet");
  keepOptions(options);
}

/** @param {string} label @param {HTMLElement} input @param {string} hint */
function field(label, input, hint) {
  const note = h("small", { role: "status" }, hint);
  const element = h("label.field", {}, h("span", {}, label), input, note);
  /** @param {string} wrong */
  const judge = (wrong) => {
    note.textContent = wrong || hint;
    element.classList.toggle("wrong", Boolean(wrong));
    input.setAttribute("aria-invalid", String(Boolean(wrong)));
  };
  return { element, judge };
}

/** @param {Options} options @param {string[]} models */
function modelField(options, models) {
  const names = models.includes(options.model) || !options.model ? models : [options.model, ...models];
  const select = /** @type {HTMLSelectElement} */ (h("select", {}, ...names.map((name) => h("option", { selected: name === options.model }, name))));
  select.addEventListener("change", () => (options.model = select.value));
  return field("Model", select, "").element;
}

/** @param {Options} options */
function systemField(options) {
  const area = /** @type {HTMLTextAreaElement} */ (h("textarea", { rows: "4", placeholder: "You are a helpful assistant." }));
  area.value = options.system;
  area.addEventListener("input", () => (options.system = area.value));
  return field("System prompt", area, "Said to the model before the first message").element;
}

/** @param {Options} options @param {typeof NUMBERS[number]} number */
function numberField(options, number) {
  const input = /** @type {HTMLInputElement} */ (
    h("input", { type: "text", inputmode: number.step === "1" ? "numeric" : "decimal", placeholder: "Default", autocomplete: "off", name: number.field })
  );
  input.value = options[number.name];
  const { element, judge } = field(number.label, input, number.hint);
  const check = () => judge(fault(number, input.value));
  input.addEventListener("input", () => {
    options[number.name] = input.value;
    check();
  });
  check();
  return element;
}

/** @param {Options} options */
function toolsField(options) {
  const area = /** @type {HTMLTextAreaElement} */ (h("textarea.mono", { rows: "6", spellcheck: "false", placeholder: '[{"name": "get_weather", "parameters": {…}}]' }));
  area.value = options.tools;
  const { element, judge } = field("Tools", area, "A JSON list of functions that the model may call; you answer for them");
  const check = () => judge(toolsFault(area.value));
  area.addEventListener("input", () => {
    options.tools = area.value;
    check();
  });
  check();
  return element;
}
