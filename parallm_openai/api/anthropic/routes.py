"""`POST /v1/messages` and `POST /v1/messages/count_tokens`."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fastapi import Request as HttpRequest
from fastapi import Response
from fastapi.responses import JSONResponse

from parallm_openai.api.anthropic.schemas import CountTokensRequest, MessagesRequest
from parallm_openai.api.anthropic.translation import message_description, message_names, prompt_description
from parallm_openai.api.anthropic.writer import PING, MessageEvent, MessageWriter
from parallm_openai.api.error_shapes import DOCUMENTED_ANTHROPIC, anthropic_error
from parallm_openai.api.errors import ApiError, in_names_of
from parallm_openai.api.route import body_router
from parallm_openai.api.running import RunningResponse, start_chat
from parallm_openai.api.sse import STREAMED, Chunk, json_chunk
from parallm_openai.api.state import state_of

router = body_router(tags=["Anthropic"], responses=DOCUMENTED_ANTHROPIC)


@router.post("/v1/messages", responses=STREAMED)
async def create_message(body: MessagesRequest, request: HttpRequest) -> Response:
    """Answer a conversation in Anthropic's shape."""
    state = state_of(request)
    ignored = request.state.ignored
    model = state.model_named(body.model, ignored)
    body.check(ignored)
    description = message_description(body, state.owner(request), ignored, reasons=state.tokenizer.chat_format.reasons)
    running = await start_chat(request, description, message_names(body))
    writer = MessageWriter(body, model, running.generations[0])
    if body.stream:

        def failed(error: ApiError) -> Chunk:
            return _chunk(anthropic_error(error, request.scope))

        return running.stream_events(_chunks(running, writer), failed, _chunk(PING))
    async with running:
        async for _, delta in running.deltas():
            writer.read(delta.events)
        return JSONResponse(writer.message())


@router.post("/v1/messages/count_tokens")
async def count_tokens(body: CountTokensRequest, request: HttpRequest) -> Response:
    """The tokens that a request to `/v1/messages` would read; nothing is generated."""
    state = state_of(request)
    ignored = request.state.ignored
    state.model_named(body.model, ignored)
    body.check(ignored)
    reasons = state.tokenizer.chat_format.reasons
    with in_names_of(message_names(body)):
        description = prompt_description(body, state.owner(request), ignored, reasons=reasons)
        _, tokens = await state.preparer.rendered(description)
    return JSONResponse({"input_tokens": len(tokens)})


async def _chunks(running: RunningResponse, writer: MessageWriter) -> AsyncIterator[Chunk]:
    for event in writer.start():
        yield _chunk(event)
    async for _, delta in running.deltas():
        for event in writer.read(delta.events):
            yield _chunk(event)


def _chunk(event: MessageEvent) -> Chunk:
    return json_chunk(event, event["type"])
