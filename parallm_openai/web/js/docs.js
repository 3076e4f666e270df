// The API's documentation, by Swagger UI. Requests from it carry the key that the chat page keeps.

import { read } from "./preferences.js";

/** @param {{headers: Record<string, string>}} request */
function withKey(request) {
  const key = read("key");
  if (key) request.headers.Authorization ??= `Bearer ${key}`;
  return request;
}

/** @type {any} */ (window).SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger",
  deepLinking: true,
  // The validator's badge would be loaded from elsewhere.
  validatorUrl: null,
  requestInterceptor: withKey,
});
