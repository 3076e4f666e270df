// The options of a chat: what a request says besides its messages.

import { read, write } from "./preferences.js";

/**
 * @typedef {object} Options texts as the user wrote them; an empty one leaves the choice to the server
 * @property {string} model
 * @property {string} system
 * @property {string} temperature
 * @property {string} topP
 * @property {string} topK
 * @property {string} maxTokens
 * @property {string} seed
 * @property {string} tools a JSON list of functions
 */

/** @type {Options} */
const EMPTY = { model: "", system: "", temperature: "", topP: "", topK: "", maxTokens: "", seed: "", tools: "" };

/**
 * The numbers: field of the request, label, what it does, range and step.
 * @type {{name: keyof Options, field: string, label: string, hint: string, min: number, max: number, step: string}[]}
 */
export const NUMBERS = [
  { name: "temperature", field: "temperature", label: "Temperature", hint: "0 always takes the likeliest token", min: 0, max: 2, step: "0.05" },
  { name: "topP", field: "top_p", label: "Top-p", hint: "1 keeps all tokens", min: 0, max: 1, step: "0.01" },
  { name: "topK", field: "top_k", label: "Top-k", hint: "0 keeps all tokens", min: 0, max: 1000000, step: "1" },
  { name: "maxTokens", field: "max_tokens", label: "Max tokens", hint: "The longest answer", min: 1, max: 10000000, step: "1" },
  { name: "seed", field: "seed", label: "Seed", hint: "The same seed gives the same answer", min: 0, max: Number.MAX_SAFE_INTEGER, step: "1" },
];

/** The options that the last chat had. @returns {Options} */
export function lastOptions() {
  try {
    const kept = JSON.parse(read("options") || "{}");
    return { ...EMPTY, ...Object.fromEntries(Object.entries(kept).filter(([name, value]) => name in EMPTY && typeof value === "string")) };
  } catch {
    return { ...EMPTY };
  }
}

/** @param {Options} options */
export function keepOptions(options) {
  write("options", JSON.stringify(options));
}

/**
 * Why a text is no value of a number's field; empty if it is one.
 * @param {typeof NUMBERS[number]} number @param {string} text
 */
export function fault(number, text) {
  if (!text.trim()) return "";
  const value = Number(text);
  if (!Number.isFinite(value) || (number.step === "1" && !Number.isInteger(value))) return `${number.label} must be a ${number.step === "1" ? "whole " : ""}number.`;
  if (value < number.min || value > number.max) return `${number.label} must be between ${number.min} and ${number.max}.`;
  return "";
}

/** Why a text is no list of tools; empty if it is one, or empty. @param {string} text */
export function toolsFault(text) {
  try {
    return Array.isArray(parsedTools(text)) ? "" : "Tools must be a JSON list.";
  } catch (error) {
    return `Tools are not valid JSON: ${error instanceof Error ? error.message : error}`;
  }
}

/** @param {string} text */
function parsedTools(text) {
  const found = text.trim() ? JSON.parse(text) : [];
  if (!Array.isArray(found)) return null;
  // A bare function is wrapped as the API wants it.
  return found.map((each) => (each && typeof each === "object" && !("function" in each) && "name" in each ? { type: "function", function: each } : each));
}

/** The fields of a request. @param {Options} options */
export function fields(options) {
  /** @type {Record<string, unknown>} */
  const body = { model: options.model };
  for (const number of NUMBERS) {
    if (options[number.name].trim() && !fault(number, options[number.name])) body[number.field] = Number(options[number.name]);
  }
  const tools = toolsFault(options.tools) ? [] : parsedTools(options.tools);
  if (tools?.length) body.tools = tools;
  return body;
}
