"""Errors as OpenAI has them: `{"error": {"message", "type", "param", "code"}}`. `error_shapes.py` has the others."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.types import Scope

from parallm_openai.api.error_shapes import shaped
from parallm_openai.api.field_names import FieldNames
from parallm_openai.api.request_log import note_error
from parallm_openai.engine.embedding_queue import EmbeddingFailed
from parallm_openai.engine.worker import EngineStoppedError, QueueFullError
from parallm_openai.text.output import GenerationError
from parallm_openai.text.request_error import RequestError

log = logging.getLogger(__name__)


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    error: ErrorDetail


# For the OpenAPI document: any route may answer like this.
DOCUMENTED: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorAnswer, "description": "The request cannot be carried out; `param` names the field."},
    "5XX": {"model": ErrorAnswer, "description": "The server cannot carry it out now, or failed."},
}

LONGEST_MESSAGE = 600
LONGEST_KEY = 100

# The SDK retries 5xx answers by itself; a generation that failed once would fail again.
NO_RETRY = {"x-should-retry": "false"}


class ApiError(Exception):
    """An error as an answer."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        # It may quote a client's own text.
        message = message if len(message) <= LONGEST_MESSAGE else message[:LONGEST_MESSAGE] + "…"
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.body = {"error": {"message": message, "type": type, "param": param, "code": code}}
        self.headers = dict(headers or {})

    def response(self, scope: Scope | None = None) -> JSONResponse:
        """The answer to the request of this ASGI scope, in the shape of its surface."""
        if scope is None:
            return JSONResponse(self.body, self.status, self.headers)
        note_error(scope, self.message)
        return JSONResponse(shaped(self, scope), self.status, self.headers)


def invalid(message: str, param: str | None = None, code: str | None = "invalid_value") -> ApiError:
    return ApiError(400, message, param=param, code=code)


def unsupported(param: str, reason: str = "is not supported by this server") -> ApiError:
    return ApiError(400, f"'{param}' {reason}.", param=param, code="unsupported_parameter")


def missing(param: str | None) -> ApiError:
    return invalid(f"Missing required parameter: '{param or 'body'}'.", param, "missing_required_parameter")


def model_not_found(name: str, served: Sequence[str]) -> ApiError:
    message = f"The model '{name[:200]}' does not exist. This server has: {', '.join(served)}."
    return ApiError(404, message, param="model", code="model_not_found")


def no_embeddings(name: str) -> ApiError:
    message = f"'{name}' is a generating model: its hidden states are no embeddings. Use a server of embedding models."
    return ApiError(404, message, param="model", code="model_not_found")


def no_generation(name: str) -> ApiError:
    message = f"'{name}' is an embedding model: it writes no text. Use /v1/embeddings."
    return ApiError(404, message, param="model", code="model_not_found")


def overloaded(message: str) -> ApiError:
    return ApiError(429, message, type="rate_limit_error", code="rate_limit_exceeded", headers={"Retry-After": "1"})


def expected(error: Exception, names: FieldNames) -> ApiError | None:
    """How an answer says what went wrong, with fields as the surface names them; None for what must not happen."""
    match error:
        case ApiError():
            return error
        case RequestError():
            return _from_request(error, names)
        case GenerationError():
            return _from_generation(error, names)
        case QueueFullError():
            return overloaded(f"The server is busy: {error}. Please try again.")
        case EngineStoppedError():
            return unavailable(f"The server cannot generate: {error}.")
        case EmbeddingFailed():
            return internal(f"The embeddings could not be computed: {error}")
    return None


@contextmanager
def in_names_of(names: FieldNames) -> Iterator[None]:
    """Have every expected error leave as an ApiError, with fields as the surface names them."""
    try:
        yield
    except Exception as error:
        known = expected(error, names)
        if known is None or known is error:
            raise
        raise known from error


def _from_request(error: RequestError, names: FieldNames) -> ApiError:
    message = error.message(names)
    if error.kind == "busy":
        return overloaded(message)
    return invalid(message, None if error.field is None else names(error.field), error.kind)


def _from_generation(error: GenerationError, names: FieldNames) -> ApiError:
    """A grammar can meet its limits in the middle of an answer, which is the request's own fault."""
    if error.request_at_fault:
        field = None if error.field is None else names(error.field)
        return invalid(f"Generation failed: {error}.", field, "invalid_grammar")
    return internal(f"Generation failed: {error}")


def unexpected(error: Exception) -> ApiError:
    log.error("a stream failed", exc_info=error)
    return internal()


def unavailable(message: str) -> ApiError:
    return ApiError(
        503,
        message,
        type="server_error",
        code="unavailable",
        headers={"Retry-After": "5"},
    )


def shutting_down() -> ApiError:
    return unavailable("The server is shutting down.")


def timed_out(seconds: float) -> ApiError:
    message = f"The request took longer than this server's limit of {seconds:g} seconds."
    return ApiError(504, message, type="server_error", code="timeout", headers=NO_RETRY)


def no_websockets() -> ApiError:
    return ApiError(400, "This server has no WebSockets; it streams by server-sent events.", code="no_websockets")


def internal(message: str = "The server had an error while processing your request.") -> ApiError:
    return ApiError(500, message, type="server_error", code="internal_error", headers=NO_RETRY)


def from_validation(errors: Sequence[Any]) -> ApiError:
    """The first of pydantic's errors, naming the field."""
    error = errors[0]
    location = error["loc"][1:] if error["loc"][:1] in (("body",), ("query",)) else error["loc"]
    kind = error["type"]
    # The last part of these is a key as the client wrote it, or should have written it.
    named = location[-1:] if kind in ("extra_forbidden", "missing") else ()
    param = path(location[: len(location) - len(named)], named)
    if kind == "json_invalid":
        return ApiError(
            400,
            f"The body is not valid JSON: {error.get('ctx', {}).get('error', error['msg'])}",
            code="invalid_json",
        )
    if kind == "extra_forbidden":
        return ApiError(400, f"Unrecognized request argument supplied: {param}", param=param, code="unknown_parameter")
    if kind == "missing":
        return missing(param)
    code = "invalid_type" if kind.endswith("_type") else "invalid_value"
    reason = error["msg"].removeprefix("Value error, ")
    if kind == "too_short" and error.get("ctx", {}).get("min_length") == 1:
        reason = "it must not be empty"
    return invalid(f"Invalid value for '{param or 'body'}': {reason}.", param, code)


def path(location: Sequence[str | int], named: Sequence[str | int] = ()) -> str | None:
    """`messages[0].content` for ("messages", 0, "content", …). The names of a union's branches are left out.

    The parts of `named` follow as they are.
    """
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part.isidentifier() and not part[0].isupper() and part not in ("str", "int", "list", "float", "bool"):
            text += f".{part}" if text else part
    for part in named:
        key = str(part)[:LONGEST_KEY]
        text += f".{key}" if text else key
    return text if text or named else None


def install(app: Starlette) -> None:
    """Answer every exception that is meant for a client, FastAPI's own included, in the surface's shape."""

    async def on_api_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        return error.response(request.scope)

    async def on_validation(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        if isinstance(error.body, bytes):
            # Only a body whose content type is not JSON is still bytes, for example from `curl -d` without a header.
            message = "The body must be JSON, sent with the header 'Content-Type: application/json'."
            return invalid(message, code="invalid_content_type").response(request.scope)
        return from_validation(error.errors()).response(request.scope)

    async def on_http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        if error.status_code == 404:
            message = f"Invalid URL ({request.method} {request.url.path})"
        elif error.status_code == 405:
            message = f"Not allowed to {request.method} on {request.url.path}"
        else:
            message = str(error.detail or HTTPStatus(error.status_code).phrase)
        return ApiError(error.status_code, message, headers=error.headers).response(request.scope)

    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(HTTPException, on_http)
