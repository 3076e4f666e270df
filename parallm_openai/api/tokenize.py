"""`/tokenize`, `/detokenize` and `/tokenizer_info`."""

from __future__ import annotations

from typing import Any

from fastapi import Request as HttpRequest

from parallm_openai.api.errors import in_names_of
from parallm_openai.api.field_names import OWN_NAMES
from parallm_openai.api.route import body_router
from parallm_openai.api.schemas.sampling import Body
from parallm_openai.api.state import state_of

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
    state = state_of(request)
    if body.model is not None:
        state.check_model(body.model)
    with in_names_of(OWN_NAMES):
        tokens = await state.preparer.tokenized(body.prompt, "prompt", special=body.add_special_tokens)
    return {"tokens": tokens, "count": len(tokens), "max_model_len": state.engine.context_length}


@router.post("/detokenize")
async def detokenize(body: DetokenizeRequest, request: HttpRequest) -> dict[str, Any]:
    """The text of token ids; special tokens have none."""
    state = state_of(request)
    if body.model is not None:
        state.check_model(body.model)
    with in_names_of(OWN_NAMES):
        return {"prompt": await state.preparer.detokenized(body.tokens, "tokens")}


@router.get("/tokenizer_info")
async def tokenizer_info(request: HttpRequest) -> dict[str, Any]:
    """The tokenizer's special tokens and its chat template; `model_max_length` is the length of the context."""
    state = state_of(request)
    return {**state.tokenizer.description, "model_max_length": state.engine.context_length}
