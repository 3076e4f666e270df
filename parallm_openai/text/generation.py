"""One sequence's text as it is generated: tokens in, pieces of text out, ended by a stop string or the engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from parallm_openai.engine.request import FinishReason, Output, TokenLogprob
from parallm_openai.engine.worker import RequestStream
from parallm_openai.text.stop import Ending, StopMatcher
from parallm_openai.text.tokenizer import Tokenizer


class GenerationError(Exception):
    """The engine failed while it generated this sequence, perhaps by the request's own fault."""

    def __init__(self, message: str, request_at_fault: bool = False) -> None:
        super().__init__(message)
        self.request_at_fault = request_at_fault


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of a sequence. The last one, and only that, has a finish reason.

    `logprobs` are those of the tokens read since the delta before; their text may still be held back.
    """

    text: str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None


@dataclass(slots=True)
class Counts:
    """What a sequence has cost so far, in tokens."""

    completion: int = 0
    drafted: int = 0
    accepted: int = 0
    cached_prompt: int = 0


class Reader:
    """Turns engine outputs into text deltas; knows nothing of where they come from.

    Special tokens are no text, but for those `shown`. Tokens count up to and including the one
    that completed a stop string, or the sequence by its `ending`.
    """

    def __init__(
        self, tokenizer: Tokenizer, stops: Sequence[str] = (), shown: Sequence[str] = (), ending: Ending | None = None
    ) -> None:
        self.counts = Counts()
        self.prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
        self._detokenizer = tokenizer.detokenizer(shown)
        self._matcher = StopMatcher(stops)
        self._ending = ending

    def read(self, output: Output) -> TextDelta:
        """The text of one engine output. Raises GenerationError where the engine failed."""
        if output.finish_reason is FinishReason.ERROR:
            raise GenerationError(output.error or "the engine failed", output.request_at_fault)
        if output.prompt_logprobs is not None:
            self.prompt_logprobs = output.prompt_logprobs
        pieces: list[str] = []
        for count, token in enumerate(output.tokens, 1):
            text = self._detokenizer.add(token)
            pieces.append(self._matcher.feed(text))
            complete = self._ending is not None and self._ending(text, token)
            if complete:
                pieces.append(self._matcher.flush())
            if complete or self._matcher.matched is not None:
                self._count(output, count)
                return TextDelta("".join(pieces), output.tokens[:count], output.logprobs[:count], FinishReason.STOP)
        self._count(output, len(output.tokens))
        if output.finish_reason is not None:
            pieces.append(self._matcher.feed(self._detokenizer.flush()))
            stopped = self._matcher.matched is not None
            pieces.append(self._matcher.flush())
            reason = FinishReason.STOP if stopped else output.finish_reason
            return TextDelta("".join(pieces), output.tokens, output.logprobs, reason)
        return TextDelta("".join(pieces), output.tokens, output.logprobs)

    def _count(self, output: Output, tokens: int) -> None:
        self.counts.completion += tokens
        self.counts.drafted += output.drafted
        self.counts.accepted += output.accepted
        self.counts.cached_prompt += output.cached_prompt_tokens


class Generation:
    """A sequence under way; iterate over it for its deltas. Leaving it early frees its row."""

    def __init__(self, stream: RequestStream, reader: Reader) -> None:
        self._stream = stream
        self._reader = reader

    @property
    def counts(self) -> Counts:
        return self._reader.counts

    @property
    def prompt_tokens(self) -> tuple[int, ...]:
        return self._stream.request.prompt

    @property
    def prompt_logprobs(self) -> tuple[TokenLogprob | None, ...] | None:
        return self._reader.prompt_logprobs

    async def __aiter__(self) -> AsyncIterator[TextDelta]:
        try:
            async for output in self._stream:
                delta = self._reader.read(output)
                if delta.finish_reason is not None:
                    # A stop string or a completed call ends the sequence before the engine knows of it.
                    self._stream.cancel(delta.finish_reason)
                yield delta
                if delta.finish_reason is not None:
                    return
        finally:
            self.cancel()

    def cancel(self) -> None:
        self._stream.cancel()
