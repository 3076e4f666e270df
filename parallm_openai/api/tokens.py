"""`/tokenize`, `/detokenize`, a dry run of the chat template, and why there are no embeddings."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import Request as HttpRequest

from parallm_openai.api import errors
from parallm_openai.api.chat import rendered
from parallm_openai.api.route import body_router
from parallm_openai.api.schemas.chat import ChatRequest
from parallm_openai.api.schemas.sampling import Body
from parallm_openai.api.server import server_of
from parallm_openai.api.tools import tool_use

router = body_router(tags=["native"])


class TokenizeRequest(Body):
    prompt: str
    model: str | None = None
    add_special_tokens: bool = True


class DetokenizeRequest(Body):
    tokens: list[int]
    model: str | None = None


@router.post("/tokenize")
async def tokenize(body: TokenizeRequest, request: HttpRequest) -> dict[str, Any]:
    """The token ids of a text, as `/v1/completions` would read it."""
    server = server_of(request)
    if body.model is not None:
        server.check_model(body.model)
    encode = partial(server.encode, body.prompt, "prompt", body.add_special_tokens)
    tokens = await server.off_loop(len(body.prompt), encode)
    return {"tokens": tokens, "count": len(tokens), "max_model_len": server.engine.context_length}


@router.post("/detokenize")
async def detokenize(body: DetokenizeRequest, request: HttpRequest) -> dict[str, Any]:
    """The text of token ids; special tokens have none."""
    server = server_of(request)
    if body.model is not None:
        server.check_model(body.model)
    tokens = server.known_tokens(body.tokens, "tokens")
    return {"prompt": await server.off_loop(len(tokens), partial(server.tokenizer.decode, tokens))}


@router.post("/v1/chat/completions/render")
async def render_chat(body: ChatRequest, request: HttpRequest) -> dict[str, Any]:
    """What the chat template makes of a request to `/v1/chat/completions`; nothing is generated."""
    server = server_of(request)
    server.check_model(body.model)
    body.check()
    prompt = await rendered(server, body, tool_use(server, body))
    tokens = await server.tokens(prompt.text, "messages", special=False)
    return {"prompt": prompt.text, "tokens": list(tokens), "count": len(tokens)}


@router.post("/v1/embeddings", tags=["OpenAI"])
async def embeddings(request: HttpRequest) -> None:
    """Always a 404: a model made to generate has no embeddings worth the name."""
    name = server_of(request).model.name
    message = f"'{name}' is a generating model: its hidden states are no embeddings. Use a server of embedding models."
    raise errors.ApiError(404, message, param="model", code="model_not_found")
