"""`POST /v1/embeddings`, which there are none of."""

from __future__ import annotations

from fastapi import Request as HttpRequest

from parallm_openai.api import errors
from parallm_openai.api.route import body_router
from parallm_openai.api.state import state_of

router = body_router()


@router.post("/v1/embeddings", tags=["OpenAI"])
async def embeddings(request: HttpRequest) -> None:
    """Always a 404: a model made to generate has no embeddings worth the name."""
    raise errors.no_embeddings(state_of(request).model.name)
