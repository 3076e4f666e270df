"""`GET /health`."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse

from parallm_openai.api.state import state_of

router = APIRouter()


@router.get("/health", tags=["native"])
async def health(request: HttpRequest) -> JSONResponse:
    """Whether the server can generate; needs no API key. 503 once its engine has failed."""
    state = state_of(request)
    failed = state.engine.failed
    return JSONResponse({"status": "failed" if failed else "ok", "model": state.model.name}, 503 if failed else 200)
