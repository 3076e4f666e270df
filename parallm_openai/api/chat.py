"""`POST /v1/chat/completions`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse

from parallm_openai.api import errors
from parallm_openai.api.grammar import requested_grammar
from parallm_openai.api.logprobs import chat_content
from parallm_openai.api.schemas.chat import ChatRequest
from parallm_openai.api.server import Answer, Server, server_of, usage
from parallm_openai.api.streaming import event_stream, frame, merged, unless_gone
from parallm_openai.engine.request import FinishReason, SamplingParams
from parallm_openai.text.generation import Generation, TextDelta
from parallm_openai.text.tokenizer import TemplateError

router = APIRouter()


@router.post("/v1/chat/completions", tags=["OpenAI"])
async def create_chat_completion(body: ChatRequest, request: HttpRequest) -> Response:
    """Answer a conversation."""
    server = server_of(request)
    server.check_model(body.model)
    body.check()
    generations = server.open(await _sequences(server, body), body.stops())
    answer = Answer.new("chat.completion", "chatcmpl", body.model)
    if body.stream:
        frames = _frames(answer.chunk(), body, generations, server)
        return event_stream(frames, generations, server.settings)
    work = _whole(answer, body, generations, server)
    return JSONResponse(await unless_gone(request, work, generations, server.settings.request_timeout))


async def _sequences(server: Server, body: ChatRequest) -> list[tuple[tuple[int, ...], SamplingParams]]:
    """The rendered conversation with the parameters of each choice."""
    prompt = await server.tokens(await _rendered(server, body), "messages", special=False)
    limit = server.completion_limit(prompt, body.completion_limit, None, "messages")
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    grammar = await requested_grammar(server, body)
    return [
        (
            prompt,
            body.sampling_params(
                server.tokenizer.vocab_size, max_tokens=limit, logprobs=logprobs, choice=choice, grammar=grammar
            ),
        )
        for choice in range(body.n or 1)
    ]


async def _rendered(server: Server, body: ChatRequest) -> str:
    messages = [message.model_dump(exclude_none=True) for message in body.messages]
    try:
        return await asyncio.to_thread(
            server.tokenizer.render,
            messages,
            continue_final=_continues(body),
            options=body.chat_template_kwargs,
        )
    except TemplateError as error:
        raise errors.invalid(str(error), "messages", "invalid_messages") from error


def _continues(body: ChatRequest) -> bool:
    """Whether the model goes on with the last message: an assistant's, unless the request says otherwise."""
    if body.continue_final_message is not None:
        return body.continue_final_message
    return body.messages[-1].role == "assistant" and not body.add_generation_prompt


def _logprobs(body: ChatRequest, delta: TextDelta, server: Server) -> dict[str, Any] | None:
    if not body.logprobs:
        return None
    return {"content": chat_content(delta.logprobs, server.tokenizer), "refusal": None}


def _reason(reason: FinishReason | None) -> str | None:
    # A sequence that the server itself cut short, on its way down, ended before its time.
    return "length" if reason is FinishReason.CANCELLED else reason


async def _frames(
    answer: Answer, body: ChatRequest, generations: Sequence[Generation], server: Server
) -> AsyncIterator[dict[str, str]]:
    """OpenAI's order for each choice: the role, the content, the reason; then the usage where asked for."""
    counted = body.stream_options is not None and bool(body.stream_options.include_usage)
    more: dict[str, object] = {"usage": None} if counted else {}

    def chunk(
        index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None, reason: str | None = None
    ) -> dict[str, str]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return frame(answer.body([choice], **more))

    for index in range(len(generations)):
        yield chunk(index, {"role": "assistant", "content": "", "refusal": None})
    async for index, delta in merged(generations):
        if delta.text or delta.logprobs:
            yield chunk(index, {"content": delta.text}, _logprobs(body, delta, server))
        if delta.finish_reason is not None:
            yield chunk(index, {}, reason=_reason(delta.finish_reason))
    if counted:
        yield frame(answer.body([], usage=usage(generations, n=len(generations))))


async def _whole(
    answer: Answer, body: ChatRequest, generations: Sequence[Generation], server: Server
) -> dict[str, object]:
    texts: list[list[str]] = [[] for _ in generations]
    scored: list[list[dict[str, Any]]] = [[] for _ in generations]
    reasons: list[str | None] = [None] * len(generations)
    async for index, delta in merged(generations):
        texts[index].append(delta.text)
        reasons[index] = _reason(delta.finish_reason)
        if body.logprobs:
            scored[index] += chat_content(delta.logprobs, server.tokenizer)
    choices: list[dict[str, object]] = [
        {
            "index": index,
            "message": {
                "role": "assistant",
                "content": "".join(texts[index]),
                "refusal": None,
                "annotations": [],
            },
            "logprobs": {"content": scored[index], "refusal": None} if body.logprobs else None,
            "finish_reason": reasons[index],
        }
        for index in range(len(generations))
    ]
    return answer.body(choices, usage=usage(generations, n=len(generations)))
