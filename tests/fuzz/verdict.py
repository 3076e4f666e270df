"""What is wrong with an answer, in words; nothing where it is as it should be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import referencing.exceptions
import regex

from fuzz.exchange import Exchange
from fuzz.json_text import Pairs, names_a_field

ERROR_KEYS = {"message", "type", "param", "code"}
# Reasons for a 5xx, or for a 429, that lie in the server's load and not in the request.
LOAD = {"rate_limit_exceeded", "unavailable", "timeout", "overloaded"}
# Errors of the whole body, which no field is to blame for.
BODILESS = {"invalid_json", "invalid_content_type", "request_too_large"}
LONGEST_MESSAGE = 4000
REASONS = {"stop", "length", "tool_calls", "function_call"}
LAST_EVENTS = {"response.completed", "response.incomplete"}


def problems(exchange: Exchange, known: frozenset[str]) -> Iterator[str]:
    """Each begins with a few fixed words, by which problems of a kind are put together. `known`: the route's fields."""
    status = exchange.status
    if status is None:
        return
    if exchange.content_type == "text/event-stream":
        yield from _stream(exchange)
        return
    if exchange.case.method == "HEAD" or exchange.content_type == "text/html":
        return
    body = _json(exchange.body)
    if body is _BROKEN:
        yield f"{status} that is no JSON: {exchange.body[:100]!r}"
    elif status >= 400:
        yield from _error(exchange, body, known)
    elif status == 200:
        yield from _answer(exchange, body)


_BROKEN = object()


def _json(body: bytes) -> Any:
    def refused(word: str) -> Any:
        raise ValueError(word)

    try:
        return json.loads(body.decode(), parse_constant=refused)
    except (ValueError, RecursionError):
        return _BROKEN


def _error(exchange: Exchange, body: Any, known: frozenset[str]) -> Iterator[str]:
    status = exchange.status or 0
    if exchange.content_type != "application/json":
        yield f"{status} of content type {exchange.content_type!r}"
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict) or body.keys() != {"error"} or error.keys() != ERROR_KEYS:
        yield f"{status} not in OpenAI's shape: {str(body)[:200]}"
        return
    if status == 429 or status >= 500:
        if error["code"] not in LOAD:
            yield f"{status}: {error['message'][:200]}"
        return
    message, param, code = error["message"], error["param"], error["code"]
    if not (isinstance(message, str) and message and isinstance(error["type"], str)):
        yield f"{status} without a message or type: {str(error)[:200]}"
    elif len(exchange.body) > LONGEST_MESSAGE:
        yield f"{status} of more than {LONGEST_MESSAGE} bytes: {message[:100]}"
    if status in (400, 422) and code not in BODILESS and isinstance(exchange.case.value, (dict, Pairs)):
        if param is None:
            yield f"{status} names no field: {message[:200]}"
        elif not names_a_field(str(param), exchange.case.value, known):
            yield f"{status} names {str(param)[:80]!r}, which the request has not got: {message[:200]}"


def _answer(exchange: Exchange, body: Any) -> Iterator[str]:
    case = exchange.case
    match case.path.partition("?")[0]:
        case "/v1/chat/completions" | "/v1/completions":
            yield from _choices(exchange, body)
        case "/v1/responses" if case.method == "POST":
            yield from _response(body)
        case "/v1/generate":
            if body.get("finish_reason") not in REASONS or not isinstance(body.get("text"), str):
                yield f"200 without a reason or text: {str(body)[:200]}"
        case "/v1/generate_batch":
            prompts = case.value["prompts"] if isinstance(case.value, dict) else None
            if isinstance(prompts, list) and len(body["results"]) != len(prompts):
                yield f"200 with {len(body['results'])} results for {len(prompts)} prompts"
            for result in body["results"]:
                if "error" in result and result["error"]["type"] == "server_error":
                    yield f"a server_error among results: {result['error']['message'][:200]}"
        case "/tokenize":
            if body["count"] != len(body["tokens"]):
                yield "200 with a count that is not that of its tokens"


def _choices(exchange: Exchange, body: Any) -> Iterator[str]:
    value = exchange.case.value if isinstance(exchange.case.value, dict) else {}
    choices, usage = body.get("choices"), body.get("usage")
    if not choices or not isinstance(usage, dict):
        yield f"200 without choices or usage: {str(body)[:200]}"
        return
    if usage["total_tokens"] != usage["prompt_tokens"] + usage["completion_tokens"]:
        yield f"usage does not add up: {usage}"
    if len(choices) % (value.get("n") or 1):
        yield f"{len(choices)} choices for n = {value.get('n')}"
    for choice in choices:
        if choice.get("finish_reason") not in REASONS:
            yield f"a choice without a reason to end: {choice.get('finish_reason')!r}"
        elif choice["finish_reason"] == "stop":
            yield from _bound(exchange, choice["message"]["content"] if "message" in choice else choice["text"])


def _bound(exchange: Exchange, text: str | None) -> Iterator[str]:
    """Whether a whole answer is what the request's grammar allows, as another reader of it says."""
    if exchange.case.binding is None:
        return
    kind, what = exchange.case.binding
    try:
        if kind == "schema":
            jsonschema.Draft202012Validator(what).validate(json.loads(text or ""))
        elif not regex.fullmatch(what, text or "", timeout=1):
            yield f"an answer that the expression does not match: {text!r}"
    except (json.JSONDecodeError, jsonschema.ValidationError) as error:
        if getattr(error, "validator", None) == "multipleOf":
            return  # The other reader divides floats: 750900.2 is a multiple of 3.7.
        yield f"an answer that breaks its schema: {str(error).splitlines()[0][:200]} in {text!r}"
    except (jsonschema.SchemaError, referencing.exceptions.Unresolvable, regex.error, TimeoutError):
        return  # Nothing to compare with: the other reader cannot read it.


def _response(body: Any) -> Iterator[str]:
    if body.get("status") not in ("completed", "incomplete") or not body.get("output"):
        yield f"200 that is no whole response: {str(body)[:200]}"
    elif (usage := body.get("usage")) is None or usage["total_tokens"] != usage["input_tokens"] + usage[
        "output_tokens"
    ]:
        yield f"usage does not add up: {usage}"


def _stream(exchange: Exchange) -> Iterator[str]:
    """A stream's frames are JSON and its end is an end, without an error in between."""
    data = [line[5:].strip() for line in exchange.body.split(b"\n") if line.startswith(b"data:")]
    if exchange.status != 200 or not data:
        yield f"a stream of status {exchange.status} with {len(data)} frames"
        return
    responses = exchange.case.path.startswith("/v1/responses")
    whole = data if responses else data[:-1]
    for text in whole:
        frame = _json(text)
        if not isinstance(frame, dict):
            yield f"a frame that is no JSON: {text[:100]!r}"
        elif isinstance(frame.get("error"), dict) and frame["error"].get("code") not in LOAD:
            yield f"a frame with an error: {frame['error'].get('message', '')[:200]}"
            return
    if not responses:
        if data[-1] != b"[DONE]":
            yield f"a stream that ends in {data[-1][:100]!r}"
        return
    last = _json(data[-1])
    if last is _BROKEN or last.get("type") not in LAST_EVENTS:
        yield f"a stream of events that ends in {data[-1][:300]!r}"
