"""The shape of an error on each surface: OpenAI's, unless the request is to another's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel
from starlette.datastructures import Headers
from starlette.types import Scope

if TYPE_CHECKING:
    from parallm_openai.api.errors import ApiError


class AnthropicDetail(BaseModel):
    type: str
    message: str


class AnthropicError(BaseModel):
    type: Literal["error"]
    error: AnthropicDetail
    request_id: str | None


# For the OpenAPI document: any of Anthropic's routes may answer like this.
DOCUMENTED_ANTHROPIC: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": AnthropicError, "description": "The request cannot be carried out; the message names the field."},
    "5XX": {"model": AnthropicError, "description": "The server cannot carry it out now, or failed."},
}
ANTHROPIC_PATH = "/v1/messages"


class OllamaError(BaseModel):
    error: str


# The same for Ollama's.
DOCUMENTED_OLLAMA: dict[int | str, dict[str, Any]] = {
    status: {**described, "model": OllamaError} for status, described in DOCUMENTED_ANTHROPIC.items()
}
OLLAMA_PATH = "/api/"

# Anthropic's types of errors, by status.
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def shaped(error: ApiError, scope: Scope) -> dict[str, Any]:
    """The body of the answer to the request of `scope` that failed with this error."""
    if is_anthropic(scope):
        return anthropic_error(error, scope)
    if scope["path"].startswith(OLLAMA_PATH):
        return ollama_error(error)
    return error.body


def is_anthropic(scope: Scope) -> bool:
    """Whether the client speaks Anthropic's protocol."""
    path: str = scope["path"]
    return (
        path == ANTHROPIC_PATH or path.startswith(f"{ANTHROPIC_PATH}/") or "anthropic-version" in Headers(scope=scope)
    )


def ollama_error(error: ApiError) -> dict[str, Any]:
    return {"error": error.message}


def anthropic_error(error: ApiError, scope: Scope) -> dict[str, Any]:
    kind = _ANTHROPIC_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    message = error.message
    if error.code == "context_length_exceeded" and error.body["error"]["param"] != "max_tokens":
        # By these words, clients know that they must make the conversation shorter.
        message = f"prompt is too long: {message}"
    request_id = scope.get("state", {}).get("request_id")
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}
