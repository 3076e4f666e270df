"""`POST /api/chat` and `POST /api/generate`, which stream unless told not to."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

from fastapi import Request as HttpRequest
from fastapi import Response
from fastapi.responses import JSONResponse

from parallm_openai.api.error_shapes import DOCUMENTED_OLLAMA, ollama_error
from parallm_openai.api.ndjson import STREAMED_LINES, json_line
from parallm_openai.api.ollama.models import model_named
from parallm_openai.api.ollama.schemas import ChatRequest, GenerateRequest
from parallm_openai.api.ollama.translation import (
    GENERATE_NAMES,
    chat_description,
    chat_names,
    prompt_description,
    text_description,
)
from parallm_openai.api.ollama.writer import Kind, OllamaWriter, nothing_to_say
from parallm_openai.api.route import body_router
from parallm_openai.api.running import RunningResponse, start_chat, start_texts
from parallm_openai.api.state import state_of

router = body_router(tags=["Ollama"], responses=DOCUMENTED_OLLAMA, any_content_type=True)


@router.post("/api/chat", responses=STREAMED_LINES)
async def chat(body: ChatRequest, request: HttpRequest) -> Response:
    """Answer a conversation in Ollama's shape."""
    began = time.monotonic_ns()
    state = state_of(request)
    ignored = request.state.ignored
    model = model_named(state, body.model, ignored)
    body.check(ignored)
    if not body.messages:
        return JSONResponse(nothing_to_say("chat", model, body.keep_alive))
    reasons = state.tokenizer.chat_format.reasons
    description = chat_description(body, state.owner(request), ignored, reasons=reasons)
    running = await start_chat(request, description, chat_names(body))
    return await _answer("chat", model, running, began, streams=body.streams)


@router.post("/api/generate", responses=STREAMED_LINES)
async def generate(body: GenerateRequest, request: HttpRequest) -> Response:
    """Answer a prompt in Ollama's shape: as a question, or with `raw` or `suffix` as the text that it is."""
    began = time.monotonic_ns()
    state = state_of(request)
    ignored = request.state.ignored
    model = model_named(state, body.model, ignored)
    body.check(ignored)
    if not body.prompt and not body.suffix:
        return JSONResponse(nothing_to_say("generate", model, body.keep_alive))
    owner = state.owner(request)
    if body.raw or body.suffix:
        running = await start_texts(request, text_description(body, owner, ignored), GENERATE_NAMES)
    else:
        reasons = state.tokenizer.chat_format.reasons
        description = prompt_description(body, owner, ignored, reasons=reasons)
        running = await start_chat(request, description, GENERATE_NAMES)
    return await _answer("generate", model, running, began, streams=body.streams)


async def _answer(kind: Kind, model: str, running: RunningResponse, began: int, *, streams: bool) -> Response:
    writer = OllamaWriter(kind, model, running.generations[0], began)
    if streams:
        return running.stream_lines(_lines(running, writer), lambda error: json_line(ollama_error(error)))
    async with running:
        async for _, delta in running.deltas():
            writer.read(delta.events)
        return JSONResponse(writer.whole())


async def _lines(running: RunningResponse, writer: OllamaWriter) -> AsyncIterator[str]:
    async for _, delta in running.deltas():
        for piece in writer.read(delta.events):
            yield json_line(piece)
