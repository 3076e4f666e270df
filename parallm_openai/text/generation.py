"""One sequence as it is generated: tokens in, pieces of an answer out, ended by a stop string or the engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from parallm_openai.engine.request import FinishReason, Output, TokenLogprob
from parallm_openai.engine.worker import RequestStream
from parallm_openai.text.chat_parser import ChatParser
from parallm_openai.text.events import Content, Event
from parallm_openai.text.stop import StopStrings
from parallm_openai.text.tokenizer import Tokenizer

# Cached prompt tokens are told in steps of so many, as OpenAI does.
CACHED_STEP = 128


class GenerationError(Exception):
    """The engine failed while it generated this sequence, perhaps by the request's own fault."""

    def __init__(self, message: str, request_at_fault: bool = False, field: str | None = None) -> None:
        """`field` is the one of the request that is at fault."""
        super().__init__(message)
        self.request_at_fault = request_at_fault
        self.field = field


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of a sequence. The last one, and only that, has a finish reason.

    `logprobs` are those of the tokens read since the delta before; their text may still be held back.
    `stop_logprob` is that of the token that ended the sequence, which is none of its `tokens`.
    """

    events: tuple[Event, ...] = ()
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    stop_logprob: TokenLogprob | None = None

    @property
    def text(self) -> str:
        """The content: without a parser, all of the text."""
        return "".join(event.text for event in self.events if isinstance(event, Content))


@dataclass(slots=True)
class Counts:
    """What a sequence has cost so far, in tokens."""

    completion: int = 0
    reasoning: int = 0
    drafted: int = 0
    accepted: int = 0
    cached_prompt: int = 0


class Reader:
    """Turns engine outputs into deltas; knows nothing of where they come from.

    Special tokens are no text, but for those `shown`. Without a `parser` all text is content. Tokens count
    up to and including the one that completed a stop string in the content, or the only call that may be made.
    `grammar_field` is where the request has its grammar, which may fail in the middle.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stops: Sequence[str] = (),
        shown: Sequence[str] = (),
        parser: ChatParser | None = None,
        grammar_field: str | None = None,
    ) -> None:
        self._grammar_field = grammar_field
        self.counts = Counts()
        self.prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
        self._detokenizer = tokenizer.detokenizer(shown)
        self._parser = parser
        self._stops = StopStrings(stops)

    def read(self, output: Output) -> TextDelta:
        """What one engine output brings. Raises GenerationError if the engine failed."""
        if output.finish_reason is FinishReason.ERROR:
            message = output.error or "the engine failed"
            raise GenerationError(message, output.request_at_fault, self._grammar_field)
        if output.prompt_logprobs is not None:
            self.prompt_logprobs = output.prompt_logprobs
        events: list[Event] = []
        for count, token in enumerate(output.tokens, 1):
            events += self._events(self._detokenizer.add(token), token)
            if self._complete:
                self._count(output, count)
                events += self._rest()
                return TextDelta(tuple(events), output.tokens[:count], output.logprobs[:count], FinishReason.STOP)
        self._count(output, len(output.tokens))
        if output.finish_reason is None:
            return TextDelta(tuple(events), output.tokens, output.logprobs)
        events += self._events(self._detokenizer.flush())
        events += self._rest(output.finish_reason is FinishReason.STOP)
        reason = FinishReason.STOP if self._stops.matched else output.finish_reason
        self.counts.completion += output.stop_token is not None
        own, stop = output.logprobs[: len(output.tokens)], output.logprobs[len(output.tokens) :]
        return TextDelta(tuple(events), output.tokens, own, reason, stop[0] if stop else None)

    @property
    def _complete(self) -> bool:
        return self._stops.matched or (self._parser is not None and self._parser.complete)

    def _events(self, text: str, *tokens: int) -> list[Event]:
        if self._parser is None:
            return self._stops.feed([Content(text)] if text else [])
        return self._stops.feed(self._parser.feed(text, tokens))

    def _rest(self, natural: bool = False) -> list[Event]:
        """What parser and stop strings held back, now that nothing more comes."""
        events = self._stops.feed(self._parser.finish(natural)) if self._parser is not None else []
        return events + self._stops.finish()

    def _count(self, output: Output, tokens: int) -> None:
        self.counts.completion += tokens
        self.counts.reasoning = self._parser.reasoning_tokens if self._parser is not None else 0
        self.counts.drafted += output.drafted
        self.counts.accepted += output.accepted
        # To the token, it would let one user find out what another has sent.
        self.counts.cached_prompt += output.cached_prompt_tokens // CACHED_STEP * CACHED_STEP


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
