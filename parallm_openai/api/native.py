"""The native routes: generate, generate_batch, stats, configure."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from parallm_openai.api import errors
from parallm_openai.api.grammar import requested_grammar
from parallm_openai.api.schemas.completions import GenerateBatchRequest, GenerateRequest, NativeFields, Prompt
from parallm_openai.api.server import Server, server_of, usage
from parallm_openai.api.streaming import STREAMED, event_stream, frame, merged, unless_gone
from parallm_openai.config import EngineConfig
from parallm_openai.engine.constraint import Grammar
from parallm_openai.text.generation import Generation, GenerationError

router = APIRouter(tags=["native"])

DEFAULT_MAX_TOKENS = 256


@router.post("/v1/generate", responses=STREAMED)
async def generate(body: GenerateRequest, request: HttpRequest) -> Response:
    """Continue one prompt, as it is."""
    began = time.perf_counter()
    server = server_of(request)
    grammar = await requested_grammar(server, body)
    generation = await _opened(server, body.prompt, "prompt", body, grammar)
    if body.stream:
        return event_stream(_frames(generation, server, began), [generation], server.settings)
    work = _finished(generation, server, began)
    return JSONResponse(await unless_gone(request, work, [generation], server.settings.request_timeout))


@router.post("/v1/generate_batch")
async def generate_batch(body: GenerateBatchRequest, request: HttpRequest) -> Response:
    """Continue several prompts; the results are in their order, an error in the place of a bad one."""
    began = time.perf_counter()
    server = server_of(request)
    # What concerns all prompts is an error of the request itself.
    body.sampling_params(server.tokenizer.vocab_size, max_tokens=body.max_tokens)
    grammar = await requested_grammar(server, body)
    places = [await _one_of_many(server, prompt, index, body, grammar) for index, prompt in enumerate(body.prompts)]
    generations = [place for place in places if isinstance(place, Generation)]

    async def result(index: int, place: Generation | errors.ApiError) -> dict[str, Any]:
        if isinstance(place, errors.ApiError):
            return {"index": index, **place.body}
        try:
            return {"index": index, **await _finished(place, server, began)}
        except GenerationError as error:
            return {"index": index, **errors.internal(f"Generation failed: {error}").body}

    async def all_results() -> list[dict[str, Any]]:
        return await asyncio.gather(*(result(index, place) for index, place in enumerate(places)))

    results = await unless_gone(request, all_results(), generations, server.settings.request_timeout)
    return JSONResponse(
        {
            "results": results,
            "model": server.model.name,
            "usage": usage(generations),
            "latency": time.perf_counter() - began,
        }
    )


async def _one_of_many(
    server: Server, prompt: Any, index: int, body: NativeFields, grammar: Grammar | None
) -> Generation | errors.ApiError:
    param = f"prompts[{index}]"
    tokens = isinstance(prompt, list) and all(type(token) is int for token in prompt)
    if not (isinstance(prompt, str) or tokens):
        return errors.invalid(f"'{param}' must be text or a list of token ids.", param, "invalid_type")
    try:
        return await _opened(server, prompt, param, body, grammar)
    except errors.ApiError as error:
        return error


async def _opened(
    server: Server, prompt: Prompt, param: str, body: NativeFields, grammar: Grammar | None
) -> Generation:
    tokens = await server.tokens(prompt, param)
    limit = server.completion_limit(tokens, body.max_tokens, DEFAULT_MAX_TOKENS, param)
    params = body.sampling_params(server.tokenizer.vocab_size, max_tokens=limit, grammar=grammar)
    return server.open([(tokens, params)], body.stops())[0]


async def _finished(generation: Generation, server: Server, began: float) -> dict[str, Any]:
    pieces: list[str] = []
    reason: str | None = None
    async for _, delta in merged([generation]):
        pieces.append(delta.text)
        reason = delta.finish_reason
    return {"text": "".join(pieces), "finish_reason": reason, **_facts(generation, server, began)}


async def _frames(generation: Generation, server: Server, began: float) -> AsyncIterator[dict[str, str]]:
    async for _, delta in merged([generation]):
        if delta.finish_reason is not None:
            body = {"text": delta.text, "finish_reason": delta.finish_reason}
            yield frame(body | _facts(generation, server, began))
        elif delta.text:
            yield frame({"text": delta.text, "finish_reason": None})


def _facts(generation: Generation, server: Server, began: float) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "model": server.model.name,
        "usage": usage([generation]),
        "latency": time.perf_counter() - began,
    }
    drafted, accepted = generation.counts.drafted, generation.counts.accepted
    if drafted:
        facts["speculative"] = {
            "drafted": drafted,
            "accepted": accepted,
            "acceptance_rate": accepted / drafted,
        }
    return facts


@router.get("/v1/stats")
async def stats(request: HttpRequest) -> Response:
    """What the engine has done since it started; times in seconds."""
    server = server_of(request)
    return JSONResponse({"model": server.model.name, **server.engine.stats()})


@router.post("/v1/configure")
async def configure(request: HttpRequest) -> Response:
    """Change the running engine's settings by query parameters; answers with all of them."""
    changes = dict(request.query_params)
    for name in changes:
        if name not in EngineConfig.model_fields:
            known = ", ".join(EngineConfig.model_fields)
            raise errors.ApiError(
                400, f"Unknown setting '{name}'. Settings: {known}.", param=name, code="unknown_parameter"
            )
    try:
        config = server_of(request).engine.configure(**changes)
    except ValidationError as error:
        raise errors.from_validation(error.errors()) from error
    return JSONResponse(config.model_dump())
