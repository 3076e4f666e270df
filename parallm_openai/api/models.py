"""`GET /v1/models`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest

from parallm_openai.api.state import AppState, state_of

router = APIRouter()


def _described(state: AppState, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": state.model.created, "owned_by": "parallm-openai"}


@router.get("/v1/models", tags=["OpenAI"])
async def list_models(request: HttpRequest) -> dict[str, Any]:
    """The model served, under each of its names."""
    state = state_of(request)
    return {"object": "list", "data": [_described(state, name) for name in state.model_names]}


@router.get("/v1/models/{name:path}", tags=["OpenAI"])
async def retrieve_model(name: str, request: HttpRequest) -> dict[str, Any]:
    """One model by name."""
    state = state_of(request)
    state.check_model(name)
    return _described(state, name)
