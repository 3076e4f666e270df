"""`POST /v1/completions`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import Request as HttpRequest
from fastapi import Response
from fastapi.responses import JSONResponse

from parallm_openai.api import errors
from parallm_openai.api.grammar import grammar_field, requested_grammar
from parallm_openai.api.logprobs import CompletionLogprobs, Echo, joined
from parallm_openai.api.route import body_router
from parallm_openai.api.schemas.completions import CompletionRequest, Prompt
from parallm_openai.api.server import Answer, Server, server_of, usage
from parallm_openai.api.streaming import STREAMED, collected, event_stream, frame, merged
from parallm_openai.engine.request import FinishReason, SamplingParams
from parallm_openai.text.generation import Generation, TextDelta

router = body_router()

DEFAULT_MAX_TOKENS = 16


@router.post("/v1/completions", tags=["OpenAI"], responses=STREAMED)
async def create_completion(body: CompletionRequest, request: HttpRequest) -> Response:
    """Continue one or more prompts."""
    server = server_of(request)
    server.check_model(body.model)
    _check(body)
    generations = server.open(
        await _sequences(server, body), body.stops(), salt=server.owner(request), grammar_field=grammar_field(body)
    )
    answer = Answer.new("text_completion", "cmpl", body.model)
    choices = [_Choice(index, body, server) for index in range(len(generations))]
    if body.stream:
        frames = _frames(answer, body, generations, choices)
        return event_stream(frames, generations, server.settings)
    work = _whole(answer, body, generations, choices)
    return JSONResponse(await collected(work, generations))


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


async def _sequences(server: Server, body: CompletionRequest) -> list[tuple[tuple[int, ...], SamplingParams]]:
    """Each prompt with each of its choices' parameters; the choices of one prompt stand together."""
    prompts = body.prompts()
    if not prompts:
        raise errors.invalid("'prompt' must not be an empty list.", "prompt")
    server.check_sequences(len(prompts) * _choices(body), "prompt" if len(prompts) > 1 else "n")
    grammar = await requested_grammar(server, body)
    wanted = []
    named = [(prompt, "prompt" if len(prompts) == 1 else f"prompt[{place}]") for place, prompt in enumerate(prompts)]
    infilled = [(_infilled(server, prompt, body.suffix, param), param) for prompt, param in named]
    for tokens in await server.tokens_of(infilled):
        if isinstance(tokens, errors.ApiError):
            raise tokens
        limit = server.completion_limit(tokens, body.max_tokens, DEFAULT_MAX_TOKENS, "prompt")
        for choice in range(_choices(body)):
            params = body.sampling_params(
                server.tokenizer.vocab_size,
                max_tokens=limit,
                logprobs=0 if body.logprobs is None and _ranks(body) else body.logprobs,
                prompt_logprobs=body.logprobs if body.echo else None,
                choice=choice,
                grammar=grammar,
            )
            wanted.append((tokens, params))
    return wanted


def _infilled(server: Server, prompt: Prompt, suffix: str | None, param: str) -> Prompt:
    """The prompt that asks for what stands before `suffix`."""
    if not suffix:
        return prompt
    if not isinstance(prompt, str):
        raise errors.invalid(f"With 'suffix', '{param}' must be text.", param, "invalid_type")
    infilled = server.tokenizer.infill(prompt, suffix)
    if infilled is None:
        raise errors.unsupported("suffix", "cannot be used: this model has no tokens to fill in the middle with")
    return infilled


def _choices(body: CompletionRequest) -> int:
    return max(body.best_of or 1, body.n or 1)


def _ranks(body: CompletionRequest) -> bool:
    return _choices(body) > (body.n or 1)


class _Choice:
    """What one choice needs between its deltas: the echo, still to come, and the place in its text."""

    def __init__(self, index: int, body: CompletionRequest, server: Server) -> None:
        self.index = index
        self._echo = bool(body.echo)
        self._scored = body.logprobs is not None
        self._tokenizer = server.tokenizer
        self._logprobs = CompletionLogprobs(server.tokenizer)
        self.score = 0.0
        self.length = 0

    def read(self, delta: TextDelta, generation: Generation) -> dict[str, Any]:
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
            "finish_reason": _reason(delta.finish_reason),
        }


def _reason(reason: FinishReason | None) -> str | None:
    # A sequence that the server itself cut short, on its way down, ended before its time.
    return "length" if reason is FinishReason.CANCELLED else reason


async def _frames(
    answer: Answer, body: CompletionRequest, generations: Sequence[Generation], choices: Sequence[_Choice]
) -> AsyncIterator[dict[str, str]]:
    counted = body.stream_options is not None and bool(body.stream_options.include_usage)
    more: dict[str, object] = {"usage": None} if counted else {}
    async for index, delta in merged(generations):
        if delta.text or delta.tokens or delta.finish_reason is not None:
            yield frame(answer.body([choices[index].read(delta, generations[index])], **more))
    if counted:
        yield frame(answer.body([], usage=usage(generations, n=_choices(body))))


async def _whole(
    answer: Answer, body: CompletionRequest, generations: Sequence[Generation], choices: Sequence[_Choice]
) -> dict[str, object]:
    read: list[list[dict[str, Any]]] = [[] for _ in generations]
    async for index, delta in merged(generations):
        read[index].append(choices[index].read(delta, generations[index]))
    chosen = _best(body, choices)
    finished = [_joined(read[choice.index], place) for place, choice in enumerate(chosen)]
    return answer.body(finished, usage=usage(generations, n=_choices(body)))


def _best(body: CompletionRequest, choices: Sequence[_Choice]) -> list[_Choice]:
    """The n choices of each prompt with the highest log-probability per token, or all of them in order."""
    if not _ranks(body):
        return list(choices)
    group, kept = _choices(body), []
    for start in range(0, len(choices), group):
        ranked = sorted(choices[start : start + group], key=lambda c: -c.score / max(c.length, 1))
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
