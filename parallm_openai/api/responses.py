"""`/v1/responses`: OpenAI's newer form of the same, on the same engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from fastapi import Request as HttpRequest
from fastapi import Response
from fastapi.responses import JSONResponse

from parallm_openai.api import errors
from parallm_openai.api.chat import opened
from parallm_openai.api.response_input import Message, chat_request, new_messages
from parallm_openai.api.response_store import StoredResponse
from parallm_openai.api.response_writer import ResponseEvent, ResponseWriter
from parallm_openai.api.route import body_router
from parallm_openai.api.schemas.chat import ChatRequest
from parallm_openai.api.schemas.responses import ResponsesRequest
from parallm_openai.api.server import Server, server_of
from parallm_openai.api.streaming import STREAMED, collected, frame, merged, sse, within
from parallm_openai.text.generation import Generation, GenerationError

router = body_router(tags=["OpenAI"])


@router.post("/v1/responses", responses=STREAMED)
async def create_response(body: ResponsesRequest, request: HttpRequest) -> Response:
    """Answer a conversation of items."""
    server = server_of(request)
    server.check_model(body.model)
    body.check()
    messages = [*_earlier(server, body), *new_messages(body)]
    if not messages:
        raise errors.invalid("'input' must not be empty.", "input")
    generations, parsers, use = await opened(server, _checked_chat(body, messages))
    writer = ResponseWriter(body, parsers[0], server.tokenizer, use.many)
    exchange = _Exchange(server, body, messages, generations[0], writer)
    if body.stream:
        return sse(exchange.frames(), server.settings)
    work = exchange.whole()
    return JSONResponse(await collected(work, generations))


@router.get("/v1/responses/{response_id}")
async def retrieve_response(response_id: str, request: HttpRequest) -> Response:
    """A stored response."""
    return JSONResponse(_stored(server_of(request), response_id).body)


@router.delete("/v1/responses/{response_id}")
async def delete_response(response_id: str, request: HttpRequest) -> Response:
    """Forget a stored response."""
    server = server_of(request)
    _stored(server, response_id)
    server.responses.remove(response_id)
    return JSONResponse({"id": response_id, "object": "response", "deleted": True})


def _stored(server: Server, response_id: str) -> StoredResponse:
    found = server.responses.get(response_id)
    if found is None:
        raise errors.ApiError(404, f"Response with id '{response_id}' not found.", param="response_id")
    return found


def _earlier(server: Server, body: ResponsesRequest) -> tuple[Message, ...]:
    if body.previous_response_id is None:
        return ()
    found = server.responses.get(body.previous_response_id)
    if found is None:
        message = f"Previous response with id '{body.previous_response_id}' not found."
        raise errors.invalid(message, "previous_response_id", "previous_response_not_found")
    return found.messages


def _checked_chat(body: ResponsesRequest, messages: list[Message]) -> ChatRequest:
    chat = chat_request(body, messages)
    chat.check()
    return chat


@dataclass
class _Exchange:
    """One request under way, told as a stream or as a whole."""

    server: Server
    body: ResponsesRequest
    messages: list[Message]
    generation: Generation
    writer: ResponseWriter

    async def whole(self) -> dict[str, object]:
        async for _ in self._events():
            pass
        return self.writer.body

    async def frames(self) -> AsyncIterator[dict[str, str]]:
        try:
            async for event in within(self._events(), self.server.settings.request_timeout):
                yield _frame(event)
        except TimeoutError:
            for last in self.writer.fail("The request took longer than this server's limit."):
                yield _frame(last)
        except GenerationError as error:
            for last in self.writer.fail(f"Generation failed: {error}"):
                yield _frame(last)
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
        last = self.writer.finish(reason, self.generation)
        if self.body.store is not False:
            conversation = (*self.messages, *self.writer.messages())
            self.server.responses.put(StoredResponse(self.writer.body, conversation))
        for event in last:
            yield event


def _frame(event: ResponseEvent) -> dict[str, str]:
    return {"event": event["type"], **frame(event)}
