"""`/v1/responses`: OpenAI's newer form of chat."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from fastapi import Query, Response
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from parallm_openai.api import errors
from parallm_openai.api.leniency import Ignored
from parallm_openai.api.response_input import Conversation, conversation, response_description, response_names
from parallm_openai.api.response_store import StoredResponse
from parallm_openai.api.response_truncation import fitting
from parallm_openai.api.response_writer import ResponseEvent, ResponseWriter
from parallm_openai.api.route import body_router
from parallm_openai.api.running import RunningResponse, start_chat
from parallm_openai.api.schemas.responses import InputTokensRequest, ResponsesRequest, check_include
from parallm_openai.api.sse import STREAMED, Chunk, json_chunk
from parallm_openai.api.state import AppState, state_of
from parallm_openai.text.description import ChatDescription

router = body_router(tags=["OpenAI"])

Include = Annotated[list[str] | None, Query()]
# OpenAI's SDK writes lists like this.
IncludeList = Annotated[list[str] | None, Query(alias="include[]")]


@router.post("/v1/responses", responses=STREAMED)
async def create_response(body: ResponsesRequest, request: HttpRequest) -> Response:
    """Answer a conversation of items."""
    state = state_of(request)
    ignored = request.state.ignored
    model = state.model_named(body.model, ignored)
    body.check(ignored)
    owner = state.owner(request)
    said = await conversation(state.responses, owner, body)
    description = response_description(body, said.messages(body.reasoning), owner)
    running = await _start(request, body, description)
    writer = ResponseWriter(body, model, state.tokenizer, state.defaults)
    exchange = _Exchange(state, owner, body, said, running, writer)
    if body.stream:
        return running.stream_events(exchange.stream_chunks(), exchange.failed)
    async with running:
        return JSONResponse(await exchange.collect())


@router.post("/v1/responses/input_tokens")
async def count_input_tokens(body: InputTokensRequest, request: HttpRequest) -> Response:
    """The tokens that a request to `/v1/responses` would read; nothing is generated."""
    state = state_of(request)
    if body.model is not None:
        state.check_model(body.model)
    body.check(request.state.ignored)
    owner = state.owner(request)
    messages = (await conversation(state.responses, owner, body)).messages(body.reasoning)
    description = response_description(body, messages, owner)
    with errors.in_names_of(response_names(body)):
        _, tokens = await state.preparer.rendered(description)
        if body.truncation == "auto" and len(tokens) >= state.engine.context_length:
            fits = await fitting(state.preparer, description, state.engine.context_length)
            _, tokens = await state.preparer.rendered(fits)
    return JSONResponse({"object": "response.input_tokens", "input_tokens": len(tokens)})


@router.get("/v1/responses/{response_id}")
async def retrieve_response(
    response_id: str,
    request: HttpRequest,
    stream: bool = False,
    starting_after: int | None = None,
    include: Include = None,
    include_list: IncludeList = None,
) -> Response:
    """A stored response. It has what it was made with, whatever `include` says now."""
    check_include([*(include or []), *(include_list or [])], Ignored(strict=True))
    found = await _stored(state_of(request), request, response_id)
    if stream or starting_after is not None:
        reason = "is for responses made in the background, which this server does not make"
        raise errors.unsupported("stream" if stream else "starting_after", reason)
    return JSONResponse(found.body)


@router.delete("/v1/responses/{response_id}")
async def delete_response(response_id: str, request: HttpRequest) -> Response:
    """Forget a stored response."""
    state = state_of(request)
    await _stored(state, request, response_id)
    await state.responses.remove(state.owner(request), response_id)
    return JSONResponse({"id": response_id, "object": "response", "deleted": True})


@router.post("/v1/responses/{response_id}/cancel")
async def cancel_response(response_id: str, request: HttpRequest) -> Response:
    """Always an error: only responses made in the background can be cancelled, and this server makes none."""
    await _stored(state_of(request), request, response_id)
    message = "Cannot cancel a synchronous response: only one made with 'background' can be cancelled."
    raise errors.invalid(message, "response_id", "response_not_cancellable")


@router.get("/v1/responses/{response_id}/input_items")
async def list_input_items(
    response_id: str,
    request: HttpRequest,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
    include: Include = None,
    include_list: IncludeList = None,
) -> Response:
    """The conversation that led to a stored response, in pages."""
    check_include([*(include or []), *(include_list or [])], Ignored(strict=True))
    items = (await _stored(state_of(request), request, response_id)).turn.input_items()
    if order == "desc":
        items.reverse()
    begin = 0
    if after is not None:
        places = [place for place, item in enumerate(items) if item["id"] == after]
        if not places:
            raise errors.invalid(f"No item with id '{after}' among the input items.", "after")
        begin = places[0] + 1
    page = items[begin : begin + limit]
    ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
    return JSONResponse({"object": "list", "data": page, **ends, "has_more": begin + limit < len(items)})


@router.post("/v1/responses/{path:path}", include_in_schema=False)
async def nothing_there(path: str) -> None:
    """Without this route, `compact` and others would be taken for the id of a response and answered with a 405."""
    raise HTTPException(404)


async def _stored(state: AppState, request: HttpRequest, response_id: str) -> StoredResponse:
    found = await state.responses.get(state.owner(request), response_id)
    if found is None:
        raise errors.ApiError(404, f"Response with id '{response_id}' not found.", param="response_id")
    return found


async def _start(request: HttpRequest, body: ResponsesRequest, description: ChatDescription) -> RunningResponse:
    """Start the answer. If the request wants that, a conversation that is too long loses its oldest turns."""
    names = response_names(body)
    # An answer that is cut to the context needs no room.
    whole = replace(description, cut_to_context=not request.state.ignored.strict)
    try:
        return await start_chat(request, description if body.truncation == "auto" else whole, names)
    except errors.ApiError as error:
        if body.truncation != "auto" or error.code != "context_length_exceeded":
            raise
    state = state_of(request)
    with errors.in_names_of(names):
        fits = await fitting(state.preparer, whole, state.engine.context_length)
    return await start_chat(request, fits, names)


@dataclass
class _Exchange:
    """One request with its answer while that is written, as a stream or as a whole."""

    state: AppState
    owner: str
    body: ResponsesRequest
    said: Conversation
    running: RunningResponse
    writer: ResponseWriter

    async def collect(self) -> dict[str, Any]:
        async for _ in self._events():
            pass
        return self.writer.body

    async def stream_chunks(self) -> AsyncIterator[Chunk]:
        async for event in self._events():
            yield _chunk(event)

    def failed(self, error: errors.ApiError) -> Chunk:
        """The last event of a stream that an error has ended: one that just ended would look whole to some clients."""
        return _chunk(self.writer.fail(str(error)))

    async def _events(self) -> AsyncIterator[ResponseEvent]:
        for event in self.writer.start():
            yield event
        reason = None
        async for _, delta in self.running.deltas():
            reason = delta.finish_reason
            for event in self.writer.read(delta):
                yield event
        for event in self.writer.finish(reason, self.running.generations[0]):
            yield event
        self.writer.stored = self.body.store is not False and await self._store()
        yield self.writer.end()

    async def _store(self) -> bool:
        items = [item.stored() for item in self.said.items]
        return await self.state.responses.put(self.owner, self.writer.body, items, self.said.previous)


def _chunk(event: ResponseEvent) -> Chunk:
    return json_chunk(event, event["type"])
