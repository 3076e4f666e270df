"""From an engine's outputs of one sequence, which are tokens, to the events of its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from parallm_openai.engine.request import FinishReason, Output, TokenLogprob
from parallm_openai.text.call_ids import CallIds
from parallm_openai.text.chat_parser import ChatParser
from parallm_openai.text.events import CallStart, Content, Event, Finish
from parallm_openai.text.stop_condition import StopCondition
from parallm_openai.text.tokenizer import Tokenizer

# Cached prompt tokens are counted in steps of this size, as OpenAI does.
CACHED_STEP = 128


class GenerationError(Exception):
    """The engine failed while it generated this sequence, perhaps because of the request itself."""

    def __init__(self, message: str, request_at_fault: bool = False, field: str | None = None) -> None:
        """`field` is the field of the request that is at fault."""
        super().__init__(message)
        self.request_at_fault = request_at_fault
        self.field = field


@dataclass(frozen=True, slots=True)
class OutputDelta:
    """A piece of a sequence. The last event of the last one, and only that, is a Finish.

    `read` says of each event how many of the `tokens` had been read when it came; the first `accepted` of them were
    drafted. `logprobs` are those of `tokens`, whose text may still be held back. `stop_logprob` is that of the token
    that ended the sequence, which is none of its `tokens`.
    """

    events: tuple[Event, ...] = ()
    read: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()
    accepted: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    stop_logprob: TokenLogprob | None = None

    @property
    def finish_reason(self) -> FinishReason | None:
        last = self.events[-1] if self.events else None
        return last.reason if isinstance(last, Finish) else None

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


class OutputProcessor:
    """Turns the outputs of one sequence into deltas; it does not know which engine they come from.

    Special tokens have no text, except those `shown`. Without a `parser` all text is content. Tokens count up to and
    including the one that completed a stop string in the content, or the only call that may be made. Calls get
    their ids from `call_ids`. `grammar_field` is the request's field with its grammar, which may fail in the middle
    of an answer.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stops: Sequence[str] = (),
        shown: Sequence[str] = (),
        parser: ChatParser | None = None,
        call_ids: CallIds | None = None,
        grammar_field: str | None = None,
    ) -> None:
        self._grammar_field = grammar_field
        self.counts = Counts()
        self.prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
        self._detokenizer = tokenizer.detokenizer(shown)
        self._parser = parser
        self._stop = StopCondition(stops)
        self._call_ids = call_ids
        self._called = False

    def process(self, output: Output) -> OutputDelta:
        """What one engine output brings. Raises GenerationError if the engine failed."""
        if output.finish_reason is FinishReason.ERROR:
            message = output.error or "the engine failed"
            raise GenerationError(message, output.request_at_fault, self._grammar_field)
        if output.prompt_logprobs is not None:
            self.prompt_logprobs = output.prompt_logprobs
        events: list[Event] = []
        read: list[int] = []
        for count, token in enumerate(output.tokens, 1):
            events += self._events(self._detokenizer.add(token), token)
            read += [count] * (len(events) - len(read))
            if self._complete:
                self._count(output, count)
                events += self._rest()
                return self._delta(output, events, read, output.tokens[:count], FinishReason.STOP)
        self._count(output, len(output.tokens))
        if output.finish_reason is None:
            return self._delta(output, events, read, output.tokens)
        events += self._events(self._detokenizer.flush())
        events += self._rest(output.finish_reason is FinishReason.STOP)
        reason = FinishReason.STOP if self._stop.matched else output.finish_reason
        self.counts.completion += output.stop_token is not None
        stop = output.logprobs[len(output.tokens) :]
        return self._delta(output, events, read, output.tokens, reason, stop[0] if stop else None)

    def _delta(
        self,
        output: Output,
        events: Sequence[Event],
        read: Sequence[int],
        tokens: tuple[int, ...],
        reason: FinishReason | None = None,
        stop_logprob: TokenLogprob | None = None,
    ) -> OutputDelta:
        shaped = [self._with_id(event) if isinstance(event, CallStart) else event for event in events]
        if reason is not None:
            shaped.append(Finish(reason, self._called, self._stop.matched))
        # What was held back until the end came after all tokens.
        read = (*read, *[len(tokens)] * (len(shaped) - len(read)))
        accepted = min(output.accepted, len(tokens))
        return OutputDelta(tuple(shaped), read, tokens, accepted, output.logprobs[: len(tokens)], stop_logprob)

    def _with_id(self, start: CallStart) -> CallStart:
        self._called = True
        return start if self._call_ids is None else replace(start, id=self._call_ids.new(start.index, start.name))

    @property
    def _complete(self) -> bool:
        return self._stop.matched is not None or (self._parser is not None and self._parser.complete)

    def _events(self, text: str, *tokens: int) -> list[Event]:
        if self._parser is None:
            return self._stop.feed([Content(text)] if text else [])
        return self._stop.feed(self._parser.feed(text, tokens))

    def _rest(self, natural: bool = False) -> list[Event]:
        """What the parser and the stop condition held back, now that nothing more comes."""
        events = self._stop.feed(self._parser.finish(natural)) if self._parser is not None else []
        return events + self._stop.finish()

    def _count(self, output: Output, tokens: int) -> None:
        self.counts.completion += tokens
        self.counts.reasoning = self._parser.reasoning_tokens if self._parser is not None else 0
        self.counts.drafted += output.drafted
        self.counts.accepted += output.accepted
        # To the token, it would let one user find out what another has sent.
        self.counts.cached_prompt += output.cached_prompt_tokens // CACHED_STEP * CACHED_STEP
