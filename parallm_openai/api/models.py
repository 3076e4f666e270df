"""`GET /v1/models`, and `/health`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest

from parallm_openai.api import errors
from parallm_openai.api.server import Server, server_of

router = APIRouter()


def _described(server: Server, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": server.model.created, "owned_by": "parallm-openai"}


@router.get("/v1/models", tags=["OpenAI"])
async def list_models(request: HttpRequest) -> dict[str, Any]:
    """The model served, under each of its names."""
    server = server_of(request)
    return {"object": "list", "data": [_described(server, name) for name in server.model_names]}


@router.get("/v1/models/{name:path}", tags=["OpenAI"])
async def retrieve_model(name: str, request: HttpRequest) -> dict[str, Any]:
    """One model by name."""
    server = server_of(request)
    if name not in server.model_names:
        raise errors.model_not_found(name)
    return _described(server, name)


@router.get("/health", tags=["native"])
async def health(request: HttpRequest) -> dict[str, Any]:
    """Whether the server answers; needs no API key."""
    return {"status": "ok", "model": server_of(request).model.name}
