"""The native routes that generate: `/v1/generate` and `/v1/generate_batch`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import Request as HttpRequest
from fastapi import Response
from fastapi.responses import JSONResponse

from parallm_openai.api import errors
from parallm_openai.api.answer_head import usage
from parallm_openai.api.field_names import OWN_NAMES, FieldNames
from parallm_openai.api.route import body_router
from parallm_openai.api.running import RunningResponse, begin, start, start_texts
from parallm_openai.api.schemas.completions import GenerateBatchRequest, GenerateRequest, NativeFields
from parallm_openai.api.sse import STREAMED, Chunk, json_chunk
from parallm_openai.api.state import AppState, state_of
from parallm_openai.text.description import TextDescription
from parallm_openai.text.generation import Generation
from parallm_openai.text.output import GenerationError
from parallm_openai.text.prepare import Prepared
from parallm_openai.text.request_error import RequestError

router = body_router(tags=["native"])

DEFAULT_MAX_TOKENS = 256
ONE_PROMPT = FieldNames({"prompts[0]": "prompt"})


@router.post("/v1/generate", responses=STREAMED)
async def generate(body: GenerateRequest, request: HttpRequest) -> Response:
    """Continue one prompt, as it is."""
    began = time.perf_counter()
    state = state_of(request)
    description = _description(body, [body.prompt], state.owner(request))
    running = await start_texts(request, description, ONE_PROMPT)
    if body.stream:
        return running.stream(_stream_chunks(running, state, began))
    async with running:
        return JSONResponse(await _collect(running.generations[0], state, began))


@router.post("/v1/generate_batch")
async def generate_batch(body: GenerateBatchRequest, request: HttpRequest) -> Response:
    """Continue several prompts; the results are in their order, an error in the place of a bad one."""
    began = time.perf_counter()
    state = state_of(request)
    description = _description(body, body.prompts, state.owner(request))
    begin(request, description)
    with errors.in_names_of(OWN_NAMES):
        prepared = await state.preparer.text(description)
        running = start(request, [each for each in prepared if isinstance(each, Prepared)], OWN_NAMES)
    async with running:
        started = iter(running.generations)
        places = [each if isinstance(each, RequestError) else next(started) for each in prepared]
        results = await _collect_all(running, places, state, began)
        return JSONResponse(
            {
                "results": results,
                "model": state.model.name,
                "usage": usage(running.generations),
                "latency": time.perf_counter() - began,
            }
        )


def _description(body: NativeFields, prompts: Sequence[Any], salt: str) -> TextDescription:
    return TextDescription(
        prompts=prompts,
        sampling=body.sampling(max_tokens=body.max_tokens),
        default_max_tokens=DEFAULT_MAX_TOKENS,
        stops=body.stops(),
        formats=body.formats(),
        salt=salt,
    )


async def _collect_all(
    running: RunningResponse, places: Sequence[Generation | RequestError], state: AppState, began: float
) -> list[dict[str, Any]]:
    async def result(index: int, place: Generation | RequestError) -> dict[str, Any]:
        try:
            if isinstance(place, RequestError):
                raise place
            return {"index": index, **await _collect(place, state, began)}
        except (RequestError, GenerationError) as error:
            return {"index": index, **running.error_of(error).body}

    return await asyncio.gather(*(result(index, place) for index, place in enumerate(places)))


async def _collect(generation: Generation, state: AppState, began: float) -> dict[str, Any]:
    pieces: list[str] = []
    reason: str | None = None
    async for delta in generation:
        pieces.append(delta.text)
        reason = delta.finish_reason
    return {"text": "".join(pieces), "finish_reason": reason, **_facts(generation, state, began)}


async def _stream_chunks(running: RunningResponse, state: AppState, began: float) -> AsyncIterator[Chunk]:
    async for index, delta in running.deltas():
        if delta.finish_reason is not None:
            body = {"text": delta.text, "finish_reason": delta.finish_reason}
            yield json_chunk(body | _facts(running.generations[index], state, began))
        elif delta.text:
            yield json_chunk({"text": delta.text, "finish_reason": None})


def _facts(generation: Generation, state: AppState, began: float) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "model": state.model.name,
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
