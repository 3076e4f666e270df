"""The grammar that a request asks for, by OpenAI's `response_format` or the usual extensions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from parallm_openai.api import errors
from parallm_openai.api.schemas.chat import ChatRequest, ResponseFormat
from parallm_openai.api.schemas.sampling import SamplingFields
from parallm_openai.api.server import Server
from parallm_openai.text.grammar import GrammarBusyError, GrammarError, TokenGrammar

ANY_OBJECT = {"type": "object"}


async def requested_grammar(server: Server, body: SamplingFields) -> TokenGrammar | None:
    """The compiled grammar, or None. Raises ApiError naming the field and what cannot be enforced."""
    wanted = _wanted(server, body)
    if len(wanted) > 1:
        fields = " and ".join(f"'{field}'" for field in wanted)
        raise errors.invalid(f"{fields} cannot be used together.", next(iter(wanted)))
    for field, compiled in wanted.items():
        return await compile_off_thread(server, field, compiled)
    return None


def grammar_field(body: SamplingFields) -> str | None:
    """The field that a grammar comes from, if there is one."""
    fields = ("response_format", "guided_regex", "guided_json", "grammar", "tools")
    return next((field for field in fields if getattr(body, field, None) is not None), None)


async def compile_off_thread(server: Server, field: str, compiled: Callable[[], TokenGrammar]) -> TokenGrammar:
    """What `compiled` returns. Raises ApiError naming the field."""
    try:
        return await off_thread(server, compiled)
    except GrammarError as error:
        raise errors.invalid(f"Invalid value for '{field}': {error}", field) from error


async def off_thread(server: Server, compiled: Callable[[], TokenGrammar]) -> TokenGrammar:
    """A large schema takes seconds to compile: on a thread for that. Raises whatever `compiled` raises."""
    try:
        return await asyncio.wrap_future(server.grammars.submit(compiled))
    except GrammarBusyError as error:
        raise errors.overloaded(f"The grammar cannot be compiled now: {error}. Please try again.") from error


def _wanted(server: Server, body: SamplingFields) -> dict[str, Callable[[], TokenGrammar]]:
    grammars = server.grammars
    wanted: dict[str, Callable[[], TokenGrammar]] = {}
    regex, schema, lark = body.guided_regex, body.guided_json, body.grammar
    if isinstance(body, ChatRequest) and (found := schema_of(body.response_format)) is not None:
        wanted["response_format"] = lambda: grammars.json_schema(found)
    if regex is not None:
        wanted["guided_regex"] = lambda: grammars.regex(regex)
    if schema is not None:
        wanted["guided_json"] = lambda: grammars.json_schema(schema)
    if lark is not None:
        wanted["grammar"] = lambda: grammars.lark(lark)
    return wanted


def schema_of(format: ResponseFormat | None) -> Mapping[str, Any] | None:
    """The schema that an answer in this format follows; None for plain text."""
    if format is None or format.type == "text":
        return None
    if format.json_schema is None:
        return ANY_OBJECT
    return format.json_schema.json_schema or {}
