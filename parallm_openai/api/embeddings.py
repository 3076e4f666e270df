"""`POST /v1/embeddings`, and what other surfaces need for theirs."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from fastapi import Request as HttpRequest
from fastapi import Response
from fastapi.responses import StreamingResponse

from parallm_openai.api import errors
from parallm_openai.api.field_names import OWN_NAMES
from parallm_openai.api.request_log import note_embedded
from parallm_openai.api.route import body_router
from parallm_openai.api.schemas.embeddings import MOST_INPUTS, EmbeddingRequest
from parallm_openai.api.state import state_of
from parallm_openai.engine.embedding_queue import EmbeddingQueue
from parallm_openai.text.description import Prompt

router = body_router()


@router.post("/v1/embeddings", tags=["OpenAI"])
async def embeddings(body: EmbeddingRequest, request: HttpRequest) -> Response:
    """The embedding of each input, of length 1. A 404 unless the model is made for embeddings."""
    state = state_of(request)
    model = state.model_named(body.model, request.state.ignored)
    vectors, tokens = await embed(request, body.inputs(), body.dimensions)
    encode = _base64 if body.encoding_format == "base64" else _numbers
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    items = (
        f'{{"object":"embedding","index":{index},"embedding":{encode(vector)}}}' for index, vector in enumerate(vectors)
    )
    tail = f'"model":{json.dumps(model)},"usage":{json.dumps(usage)}'
    return in_pieces('{"object":"list","data":[', items, f"],{tail}}}")


def check_embeds(request: HttpRequest) -> EmbeddingQueue:
    """Where inputs get their embeddings. Raises ApiError if the model is not made for them."""
    state = state_of(request)
    if state.embeddings is None:
        raise errors.no_embeddings(state.model.name)
    return state.embeddings


async def embed(
    request: HttpRequest, inputs: Sequence[Prompt], dimensions: int | None, field: str = "input", *, cut: bool = False
) -> tuple[np.ndarray, int]:
    """The embeddings of the inputs, each of length 1, and how many tokens those have.

    The request has its inputs in `field`. Those that are too long are cut if `cut`. Raises ApiError.
    """
    queue = check_embeds(request)
    if len(inputs) > MOST_INPUTS:
        raise errors.invalid(f"'{field}' may have {MOST_INPUTS} items at most, not {len(inputs)}.", field)
    with errors.in_names_of(OWN_NAMES):
        rows = await state_of(request).preparer.inputs(inputs, field, cut=cut)
        found = await queue.embed(rows)
    width = len(found[0])
    if dimensions is not None and dimensions > width:
        raise errors.invalid(f"'dimensions' may be {width} at most for this model, not {dimensions}.", "dimensions")
    tokens = sum(map(len, rows))
    note_embedded(request.scope, len(rows), tokens)
    vectors = np.stack(found)[:, :dimensions]
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny), tokens


def in_pieces(head: str, items: Iterable[str], tail: str) -> Response:
    """A JSON text, sent item by item: as one, many embeddings would keep the server from everything else."""

    def pieces() -> Iterator[str]:
        yield head
        for index, item in enumerate(items):
            yield f",{item}" if index else item
        yield tail

    return StreamingResponse(pieces(), media_type="application/json")


def _numbers(vector: np.ndarray) -> str:
    return json.dumps(vector.tolist(), separators=(",", ":"))


def _base64(vector: np.ndarray) -> str:
    return json.dumps(base64.b64encode(vector.astype("<f4").tobytes()).decode())
