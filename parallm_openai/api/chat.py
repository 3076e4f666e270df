"""`POST /v1/chat/completions`, and a dry run of its chat template."""

from __future__ import annotations

from typing import Any

from fastapi import Request as HttpRequest
from fastapi import Response
from fastapi.responses import JSONResponse

from parallm_openai.api.chat_answer import ChatAnswer
from parallm_openai.api.chat_description import chat_description, chat_names
from parallm_openai.api.errors import in_names_of
from parallm_openai.api.route import body_router
from parallm_openai.api.running import start_chat
from parallm_openai.api.schemas.chat import ChatRequest
from parallm_openai.api.sse import STREAMED
from parallm_openai.api.state import state_of

router = body_router()


@router.post("/v1/chat/completions", tags=["OpenAI"], responses=STREAMED)
async def create_chat_completion(body: ChatRequest, request: HttpRequest) -> Response:
    """Answer a conversation."""
    state = state_of(request)
    ignored = request.state.ignored
    model = state.model_named(body.model, ignored)
    body.check(ignored)
    description = chat_description(body, state.owner(request), strict=ignored.strict)
    running = await start_chat(request, description, chat_names(body))
    answer = ChatAnswer(body, model, running, state.tokenizer)
    if body.stream:
        return running.stream(answer.stream_chunks())
    async with running:
        return JSONResponse(await answer.collect())


@router.post("/v1/chat/completions/render", tags=["native"])
async def render_chat(body: ChatRequest, request: HttpRequest) -> dict[str, Any]:
    """What the chat template makes of a request to `/v1/chat/completions`; nothing is generated."""
    state = state_of(request)
    ignored = request.state.ignored
    state.model_named(body.model, ignored)
    body.check(ignored)
    with in_names_of(chat_names(body)):
        description = chat_description(body, state.owner(request), strict=ignored.strict)
        prompt, tokens = await state.preparer.rendered(description)
    return {"prompt": prompt, "tokens": list(tokens), "count": len(tokens)}
