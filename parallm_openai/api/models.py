"""`GET /v1/models`, and `/health`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse

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
        raise errors.model_not_found(name, server.model_names)
    return _described(server, name)


@router.head("/health", include_in_schema=False)
@router.get("/health", tags=["native"])
async def health(request: HttpRequest) -> JSONResponse:
    """Whether the server can generate; needs no API key. 503 once its engine has failed."""
    server = server_of(request)
    failed = server.engine.failed
    return JSONResponse({"status": "failed" if failed else "ok", "model": server.model.name}, 503 if failed else 200)
