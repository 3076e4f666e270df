"""`GET /v1/models`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest

from parallm_openai.api.error_shapes import is_anthropic
from parallm_openai.api.state import AppState, state_of

router = APIRouter()


def _described(state: AppState, name: str, request: HttpRequest) -> dict[str, Any]:
    if is_anthropic(request.scope):
        created = datetime.fromtimestamp(state.model.created, UTC).isoformat()
        limits = {"max_input_tokens": state.engine.context_length, "max_tokens": state.engine.context_length}
        return {
            "id": name,
            "type": "model",
            "display_name": name,
            "created_at": created,
            "lifecycle": "active",
            **limits,
        }
    # The names under which other servers tell how long a conversation may be.
    length = dict.fromkeys(("max_model_len", "context_length"), state.engine.context_length)
    return {"id": name, "object": "model", "created": state.model.created, "owned_by": "parallm-openai", **length}


@router.get("/v1/models", tags=["OpenAI"])
async def list_models(request: HttpRequest) -> dict[str, Any]:
    """The model served, under each of its names; in Anthropic's shape for a client that sends `anthropic-version`."""
    state = state_of(request)
    names = state.model_names
    described = [_described(state, name, request) for name in names]
    if is_anthropic(request.scope):
        return {"data": described, "has_more": False, "first_id": names[0], "last_id": names[-1]}
    return {"object": "list", "data": described}


@router.get("/v1/models/{name:path}", tags=["OpenAI"])
async def retrieve_model(name: str, request: HttpRequest) -> dict[str, Any]:
    """One model by name."""
    state = state_of(request)
    state.check_model(name)
    return _described(state, name, request)
