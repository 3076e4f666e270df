"""`/v1/responses`: OpenAI's newer form of the same, on the same engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import Query, Response
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from parallm_openai.api import errors
from parallm_openai.api.chat import opened
from parallm_openai.api.response_input import (
    ChatMessage,
    Conversation,
    chat_request,
    conversation,
    in_own_names,
)
from parallm_openai.api.response_store import StoredResponse
from parallm_openai.api.response_truncation import fitting, prompt_length
from parallm_openai.api.response_writer import ResponseEvent, ResponseWriter
from parallm_openai.api.route import body_router
from parallm_openai.api.schemas.responses import InputTokensRequest, ResponsesRequest, check_include
from parallm_openai.api.server import Server, server_of
from parallm_openai.api.streaming import STREAMED, collected, error_of, frame, merged, sse, within
from parallm_openai.text.generation import Generation

router = body_router(tags=["OpenAI"])

Include = Annotated[list[str] | None, Query()]
# The SDK writes lists so.
IncludeList = Annotated[list[str] | None, Query(alias="include[]")]


@router.post("/v1/responses", responses=STREAMED)
async def create_response(body: ResponsesRequest, request: HttpRequest) -> Response:
    """Answer a conversation of items."""
    server = server_of(request)
    server.check_model(body.model)
    body.check()
    owner = server.owner(request)
    talk = conversation(server.responses, owner, body)
    messages = talk.messages(body.reasoning)
    try:
        generations = await _opened(server, owner, body, messages)
    except errors.ApiError as error:
        raise in_own_names(error) from error
    writer = ResponseWriter(body, server.tokenizer, server.tokenizer.call_ids(messages))
    exchange = _Exchange(server, owner, body, talk, generations[0], writer)
    if body.stream:
        return sse(exchange.frames(), server.settings)
    work = exchange.whole()
    return JSONResponse(await collected(work, generations))


@router.post("/v1/responses/input_tokens")
async def count_input_tokens(body: InputTokensRequest, request: HttpRequest) -> Response:
    """The tokens that a request to `/v1/responses` would read; nothing is generated."""
    server = server_of(request)
    model = server.model.name if body.model is None else body.model
    server.check_model(model)
    body.check()
    messages = conversation(server.responses, server.owner(request), body).messages(body.reasoning)
    try:
        chat_request(body, messages, model).check()
        tokens = await prompt_length(server, body, messages, model)
        if body.truncation == "auto" and tokens >= server.engine.context_length:
            tokens = await prompt_length(server, body, await fitting(server, body, messages, model), model)
    except errors.ApiError as error:
        raise in_own_names(error) from error
    return JSONResponse({"object": "response.input_tokens", "input_tokens": tokens})


@router.get("/v1/responses/{response_id}")
async def retrieve_response(
    response_id: str,
    request: HttpRequest,
    stream: bool = False,
    starting_after: int | None = None,
    include: Include = None,
    include_list: IncludeList = None,
) -> Response:
    """A stored response; it holds what it was made with, whatever `include` says now."""
    check_include([*(include or []), *(include_list or [])])
    found = _stored(server_of(request), request, response_id)
    if stream or starting_after is not None:
        reason = "is for responses made in the background, which this server does not make"
        raise errors.unsupported("stream" if stream else "starting_after", reason)
    return JSONResponse(found.body)


@router.delete("/v1/responses/{response_id}")
async def delete_response(response_id: str, request: HttpRequest) -> Response:
    """Forget a stored response."""
    server = server_of(request)
    _stored(server, request, response_id)
    server.responses.remove(server.owner(request), response_id)
    return JSONResponse({"id": response_id, "object": "response", "deleted": True})


@router.post("/v1/responses/{response_id}/cancel")
async def cancel_response(response_id: str, request: HttpRequest) -> Response:
    """Always an error: only responses made in the background can be cancelled, and there are none."""
    _stored(server_of(request), request, response_id)
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
    check_include([*(include or []), *(include_list or [])])
    items = _stored(server_of(request), request, response_id).turn.input_items()
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
    """Else `compact` and others to come would be taken for the id of a response, and answered with a 405."""
    raise HTTPException(404)


def _stored(server: Server, request: HttpRequest, response_id: str) -> StoredResponse:
    found = server.responses.get(server.owner(request), response_id)
    if found is None:
        raise errors.ApiError(404, f"Response with id '{response_id}' not found.", param="response_id")
    return found


async def _opened(server: Server, owner: str, body: ResponsesRequest, messages: list[ChatMessage]) -> list[Generation]:
    chat = chat_request(body, messages, body.model)
    chat.check()
    try:
        return (await opened(server, chat, owner))[0]
    except errors.ApiError as error:
        if body.truncation != "auto" or error.body["error"]["code"] != "context_length_exceeded":
            raise
    fits = await fitting(server, body, messages, body.model)
    return (await opened(server, chat_request(body, fits, body.model), owner))[0]


@dataclass
class _Exchange:
    """One request under way, told as a stream or as a whole."""

    server: Server
    owner: str
    body: ResponsesRequest
    talk: Conversation
    generation: Generation
    writer: ResponseWriter

    async def whole(self) -> dict[str, Any]:
        async for _ in self._events():
            pass
        return self.writer.body

    async def frames(self) -> AsyncIterator[dict[str, str]]:
        try:
            async for event in within(self._events(), self.server.settings.request_timeout):
                yield _frame(event)
        except Exception as error:
            # The headers are out: a stream that just ended would look like an answer to some clients.
            told = error_of(error, self.server.settings.request_timeout)
            yield _frame(self.writer.fail(str(told)))
        finally:
            self.generation.cancel()

    async def _events(self) -> AsyncIterator[ResponseEvent]:
        for event in self.writer.start():
            yield event
        reason = None
        async for _, delta in merged([self.generation]):
            reason = delta.finish_reason
            for event in self.writer.read(delta):
                yield event
        for event in self.writer.finish(reason, self.generation):
            yield event
        self.writer.stored = self.body.store is not False and self._store()
        yield self.writer.end()

    def _store(self) -> bool:
        items = [item.stored() for item in self.talk.items]
        return self.server.responses.put(self.owner, self.writer.body, items, self.talk.previous)


def _frame(event: ResponseEvent) -> dict[str, str]:
    return {"event": event["type"], **frame(event)}
