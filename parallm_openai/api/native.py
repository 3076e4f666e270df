"""The native routes: generate, generate_batch, stats, configure."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import Request as HttpRequest
from fastapi import Response
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from parallm_openai.api import errors
from parallm_openai.api.grammar import grammar_field, requested_grammar
from parallm_openai.api.route import body_router
from parallm_openai.api.schemas.completions import GenerateBatchRequest, GenerateRequest, NativeFields
from parallm_openai.api.server import Server, Wanted, server_of, usage
from parallm_openai.api.setting_parameters import query_parameters
from parallm_openai.api.streaming import STREAMED, collected, event_stream, frame, merged
from parallm_openai.engine.constraint import Grammar
from parallm_openai.settings import EngineConfig
from parallm_openai.text.generation import Generation, GenerationError

router = body_router(tags=["native"])

DEFAULT_MAX_TOKENS = 256


@router.post("/v1/generate", responses=STREAMED)
async def generate(body: GenerateRequest, request: HttpRequest) -> Response:
    """Continue one prompt, as it is."""
    began = time.perf_counter()
    server = server_of(request)
    grammar = await requested_grammar(server, body)
    [sequence] = await _sequences(server, body, [(body.prompt, "prompt")], grammar)
    if isinstance(sequence, errors.ApiError):
        raise sequence
    generations = server.open([sequence], body.stops(), salt=server.owner(request), grammar_field=grammar_field(body))
    if body.stream:
        return event_stream(_frames(generations[0], server, began), generations, server.settings)
    return JSONResponse(await collected(_finished(generations[0], server, began), generations))


@router.post("/v1/generate_batch")
async def generate_batch(body: GenerateBatchRequest, request: HttpRequest) -> Response:
    """Continue several prompts; the results are in their order, an error in the place of a bad one."""
    began = time.perf_counter()
    server = server_of(request)
    server.check_sequences(len(body.prompts), "prompts")
    # What concerns all prompts is an error of the request itself.
    body.sampling_params(server.tokenizer.vocab_size, max_tokens=body.max_tokens)
    grammar = await requested_grammar(server, body)
    named = [(prompt, f"prompts[{index}]") for index, prompt in enumerate(body.prompts)]
    sequences = await _sequences(server, body, named, grammar)
    good = [each for each in sequences if not isinstance(each, errors.ApiError)]
    generations = server.open(good, body.stops(), salt=server.owner(request), grammar_field=grammar_field(body))
    started = iter(generations)
    places = [each if isinstance(each, errors.ApiError) else next(started) for each in sequences]
    results = await collected(_all_finished(places, server, began), generations)
    return JSONResponse(
        {
            "results": results,
            "model": server.model.name,
            "usage": usage(generations),
            "latency": time.perf_counter() - began,
        }
    )


async def _sequences(
    server: Server, body: NativeFields, prompts: Sequence[tuple[Any, str]], grammar: Grammar | None
) -> list[Wanted | errors.ApiError]:
    """Each prompt, given with its field's name, as a sequence to generate; an error in the place of a bad one."""
    sequences: list[Wanted | errors.ApiError] = []
    for tokens, (_, param) in zip(await server.tokens_of(prompts), prompts, strict=True):
        try:
            if isinstance(tokens, errors.ApiError):
                raise tokens
            limit = server.completion_limit(tokens, body.max_tokens, DEFAULT_MAX_TOKENS, param)
        except errors.ApiError as error:
            sequences.append(error)
        else:
            params = body.sampling_params(server.tokenizer.vocab_size, max_tokens=limit, grammar=grammar)
            sequences.append((tokens, params))
    return sequences


async def _all_finished(
    places: Sequence[Generation | errors.ApiError], server: Server, began: float
) -> list[dict[str, Any]]:
    async def result(index: int, place: Generation | errors.ApiError) -> dict[str, Any]:
        if isinstance(place, errors.ApiError):
            return {"index": index, **place.body}
        try:
            return {"index": index, **await _finished(place, server, began)}
        except GenerationError as error:
            return {"index": index, **errors.generation_failed(error).body}

    return await asyncio.gather(*(result(index, place) for index, place in enumerate(places)))


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


@router.post("/v1/configure", openapi_extra={"parameters": query_parameters(EngineConfig)})
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
