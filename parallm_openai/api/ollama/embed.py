"""`POST /api/embed`, and `POST /api/embeddings`, which was there before it."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

from fastapi import Request as HttpRequest
from fastapi import Response
from fastapi.responses import JSONResponse
from pydantic import Field

from parallm_openai.api.embeddings import check_embeds, embed, in_pieces
from parallm_openai.api.error_shapes import DOCUMENTED_OLLAMA
from parallm_openai.api.ollama.models import model_named
from parallm_openai.api.ollama.schemas import Options
from parallm_openai.api.route import body_router
from parallm_openai.api.schemas.completions import FAIL_FAST
from parallm_openai.api.schemas.sampling import Body
from parallm_openai.api.state import state_of

router = body_router(tags=["Ollama"], responses=DOCUMENTED_OLLAMA, any_content_type=True)


class EmbedFields(Body):
    model: str | None = None
    # Those of sampling and loading cannot change the answer, and the model is always loaded.
    options: Options | None = None
    keep_alive: Any = None


class EmbedRequest(EmbedFields):
    input: str | Annotated[list[str], FAIL_FAST]
    truncate: bool | None = None
    dimensions: int | None = Field(None, ge=1)


class EmbeddingsRequest(EmbedFields):
    prompt: str


@router.post("/api/embed")
async def embed_inputs(body: EmbedRequest, request: HttpRequest) -> Response:
    """The embedding of each input, of length 1. Inputs that are too long are cut, unless `truncate` is false."""
    began = time.monotonic_ns()
    model = model_named(state_of(request), body.model, request.state.ignored)
    inputs = [body.input] if isinstance(body.input, str) else body.input
    check_embeds(request)
    if inputs in ([], [""]):
        # How a client has the model loaded.
        return JSONResponse({"model": model, "embeddings": []})
    vectors, tokens = await embed(request, inputs, body.dimensions, cut=body.truncate is not False)
    rows = (json.dumps(vector.tolist()) for vector in vectors)
    times = {"total_duration": time.monotonic_ns() - began, "load_duration": 0, "prompt_eval_count": tokens}
    tail = json.dumps(times).removeprefix("{")
    return in_pieces(f'{{"model":{json.dumps(model)},"embeddings":[', rows, f"],{tail}")


@router.post("/api/embeddings")
async def embed_prompt(body: EmbeddingsRequest, request: HttpRequest) -> Response:
    """The embedding of one prompt."""
    model_named(state_of(request), body.model, request.state.ignored)
    check_embeds(request)
    if not body.prompt:
        return JSONResponse({"embedding": []})
    vectors, _ = await embed(request, [body.prompt], None, "prompt", cut=True)
    return JSONResponse({"embedding": vectors[0].tolist()})
