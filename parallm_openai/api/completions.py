"""`POST /v1/completions`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import Request as HttpRequest
from fastapi import Response
from fastapi.responses import JSONResponse

from parallm_openai.api import errors
from parallm_openai.api.answer_head import AnswerHead, finish_reason, usage
from parallm_openai.api.field_names import FieldNames
from parallm_openai.api.logprobs import CompletionLogprobs, Echo, joined
from parallm_openai.api.route import body_router
from parallm_openai.api.running import RunningResponse, start_texts
from parallm_openai.api.schemas.completions import CompletionRequest
from parallm_openai.api.sse import STREAMED, Chunk, json_chunk
from parallm_openai.api.state import state_of
from parallm_openai.text.description import TextDescription
from parallm_openai.text.generation import Generation
from parallm_openai.text.output import OutputDelta
from parallm_openai.text.tokenizer import Tokenizer

router = body_router()

DEFAULT_MAX_TOKENS = 16


@router.post("/v1/completions", tags=["OpenAI"], responses=STREAMED)
async def create_completion(body: CompletionRequest, request: HttpRequest) -> Response:
    """Continue one or more prompts."""
    state = state_of(request)
    model = state.model_named(body.model, request.state.ignored)
    _check(body)
    running = await start_texts(request, _description(body, state.owner(request)), _names(body))
    choices = [_Choice(index, body, state.tokenizer) for index in range(len(running.generations))]
    head = AnswerHead.new("text_completion", "cmpl", model)
    if body.stream:
        return running.stream(_stream_chunks(head, body, running, choices))
    async with running:
        return JSONResponse(await _collect(head, body, running, choices))


def _check(body: CompletionRequest) -> None:
    if body.suffix and body.echo:
        raise errors.invalid("'suffix' and 'echo' cannot be used together.", "suffix")
    best_of, n = body.best_of or body.n or 1, body.n or 1
    if best_of < n:
        raise errors.invalid(f"'best_of' ({best_of}) must not be less than 'n' ({n}).", "best_of")
    if best_of > n and body.stream:
        raise errors.invalid("'best_of' cannot be streamed.", "best_of")
    if body.stream_options is not None and not body.stream:
        raise errors.invalid("'stream_options' is only allowed with 'stream'.", "stream_options")
    if body.max_tokens == 0 and not body.echo:
        raise errors.invalid("'max_tokens' must be at least 1 unless 'echo' is set.", "max_tokens")


def _description(body: CompletionRequest, salt: str) -> TextDescription:
    """Each prompt with all of its choices, also those that are only ranked."""
    logprobs = 0 if body.logprobs is None and _ranks(body) else body.logprobs
    return TextDescription(
        prompts=body.prompts(),
        suffix=body.suffix,
        sampling=body.sampling(
            max_tokens=body.max_tokens, logprobs=logprobs, prompt_logprobs=body.logprobs if body.echo else None
        ),
        default_max_tokens=DEFAULT_MAX_TOKENS,
        n=_choices(body),
        stops=body.stops(),
        formats=body.formats(),
        salt=salt,
    )


def _names(body: CompletionRequest) -> FieldNames:
    single = {"prompts[0]": "prompt"} if len(body.prompts()) == 1 else {}
    return FieldNames({"prompts": "prompt", **single})


def _choices(body: CompletionRequest) -> int:
    return max(body.best_of or 1, body.n or 1)


def _ranks(body: CompletionRequest) -> bool:
    return _choices(body) > (body.n or 1)


class _Choice:
    """One choice as it grows. Between its deltas it keeps the echo that is still to come and the place in its text."""

    def __init__(self, index: int, body: CompletionRequest, tokenizer: Tokenizer) -> None:
        self.index = index
        self._echo = bool(body.echo)
        self._scored = body.logprobs is not None
        self._tokenizer = tokenizer
        self._logprobs = CompletionLogprobs(tokenizer)
        self.score = 0.0
        self.length = 0

    def read(self, delta: OutputDelta, generation: Generation) -> dict[str, Any]:
        """A delta in OpenAI's shape; the first one carries the echoed prompt."""
        text, pieces = delta.text, []
        if self._echo:
            self._echo = False
            echo = Echo.of(generation.prompt_tokens, self._tokenizer)
            text = echo.text + text
            if self._scored:
                pieces.append(self._logprobs.prompt(echo, generation.prompt_logprobs or ()))
        entries = delta.logprobs if delta.stop_logprob is None else (*delta.logprobs, delta.stop_logprob)
        if self._scored:
            pieces.append(self._logprobs.piece([entry.token for entry in entries], entries))
        self.score += sum(entry.logprob for entry in entries)
        self.length += len(entries)
        return {
            "index": self.index,
            "text": text,
            "logprobs": joined(pieces) if pieces else None,
            "finish_reason": finish_reason(delta.finish_reason),
        }


async def _stream_chunks(
    head: AnswerHead, body: CompletionRequest, running: RunningResponse, choices: Sequence[_Choice]
) -> AsyncIterator[Chunk]:
    counted = body.stream_options is not None and bool(body.stream_options.include_usage)
    more: dict[str, object] = {"usage": None} if counted else {}
    async for index, delta in running.deltas():
        if delta.text or delta.tokens or delta.finish_reason is not None:
            yield json_chunk(head.body([choices[index].read(delta, running.generations[index])], **more))
    if counted:
        yield json_chunk(head.body([], usage=usage(running.generations, n=_choices(body))))


async def _collect(
    head: AnswerHead, body: CompletionRequest, running: RunningResponse, choices: Sequence[_Choice]
) -> dict[str, object]:
    read: list[list[dict[str, Any]]] = [[] for _ in choices]
    async for index, delta in running.deltas():
        read[index].append(choices[index].read(delta, running.generations[index]))
    chosen = _best(body, choices)
    finished = [_joined(read[choice.index], place) for place, choice in enumerate(chosen)]
    return head.body(finished, usage=usage(running.generations, n=_choices(body)))


def _best(body: CompletionRequest, choices: Sequence[_Choice]) -> list[_Choice]:
    """The n choices of each prompt with the highest log-probability per token, or all of them in order."""
    if not _ranks(body):
        return list(choices)
    group, kept = _choices(body), []
    for first in range(0, len(choices), group):
        ranked = sorted(choices[first : first + group], key=lambda c: -c.score / max(c.length, 1))
        kept += ranked[: body.n or 1]
    return kept


def _joined(deltas: list[dict[str, Any]], index: int) -> dict[str, Any]:
    pieces = [delta["logprobs"] for delta in deltas if delta["logprobs"] is not None]
    return {
        "index": index,
        "text": "".join(delta["text"] for delta in deltas),
        "logprobs": joined(pieces) if pieces else None,
        "finish_reason": deltas[-1]["finish_reason"],
    }
