"""What every route works with: the engine, the model's text side, and the checks before a response starts."""

from __future__ import annotations

import asyncio
import hashlib
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from fastapi import Request as HttpRequest

from parallm_openai import __version__
from parallm_openai.api import errors
from parallm_openai.api.middleware import given_keys
from parallm_openai.api.response_store import ResponseStore
from parallm_openai.api.schemas.completions import Prompt
from parallm_openai.api.timed_threads import TimedThreads
from parallm_openai.engine.request import Request, SamplingParams
from parallm_openai.engine.worker import AsyncEngine, EngineStoppedError, QueueFullError
from parallm_openai.models.loading import LoadedModel
from parallm_openai.settings import ServerSettings
from parallm_openai.text.chat_parser import ChatParser
from parallm_openai.text.generation import Generation, Reader
from parallm_openai.text.grammar_compiler import Grammars
from parallm_openai.text.tokenizer import Tokenizer, TokenizerError

T = TypeVar("T")
Wanted = tuple[tuple[int, ...], SamplingParams]
"""A sequence to generate."""

# Characters or tokens that take long enough to be kept apart from others.
LARGE_TEXT = 100_000
# Of a text with more characters than this for each token of the context, the beginning is tokenised first: that alone
# is too long as a rule. Cutting the text changes its tokens by less than the margin.
PROBED_CHARACTERS = 16
PROBE_MARGIN = 1024


@dataclass(frozen=True)
class Server:
    """One per app, at `app.state.server`."""

    engine: AsyncEngine
    model: LoadedModel
    tokenizer: Tokenizer
    settings: ServerSettings
    grammars: Grammars
    responses: ResponseStore
    # Held by whoever tokenises something large.
    large: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))
    rendering: TimedThreads = field(default_factory=TimedThreads)

    @property
    def model_names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.settings.served_model_names, self.model.name)))

    def check_model(self, name: str) -> None:
        if name not in self.model_names:
            raise errors.model_not_found(name, self.model_names)

    def owner(self, request: HttpRequest) -> str:
        """Who sends a request, by its key. Those without one are all the same."""
        known = {key.encode() for key in (*self.settings.api_keys, *self.settings.admin_keys)}
        given = [key for key in given_keys(request.headers) if key in known]
        return hashlib.sha256(given[0]).hexdigest() if given else ""

    async def tokens(self, prompt: Prompt, param: str, *, special: bool = True) -> tuple[int, ...]:
        """A prompt's token ids, checked against the vocabulary and the context. Raises ApiError."""
        [found] = await self.tokens_of([(prompt, param)], special=special)
        if isinstance(found, errors.ApiError):
            raise found
        return found

    async def tokens_of(
        self, prompts: Sequence[tuple[Any, str]], *, special: bool = True
    ) -> list[tuple[int, ...] | errors.ApiError]:
        """The same for several prompts, each with the name of its field; an error in the place of a bad one."""

        def checked(prompt: Any, param: str) -> tuple[int, ...] | errors.ApiError:
            try:
                return self._prompt_tokens(prompt, param, special)
            except errors.ApiError as error:
                return error

        size = sum(len(prompt) for prompt, _ in prompts if isinstance(prompt, (str, list)))
        return await self.off_loop(size, lambda: [checked(prompt, param) for prompt, param in prompts])

    async def off_loop(self, size: int, work: Callable[[], T]) -> T:
        """Run `work` on `size` characters or tokens on a thread; what is large waits for its like, and nothing else."""
        if size <= LARGE_TEXT:
            return await asyncio.to_thread(work)
        async with self.large:
            return await asyncio.to_thread(work)

    def _prompt_tokens(self, prompt: Any, param: str, special: bool) -> tuple[int, ...]:
        if isinstance(prompt, str):
            tokens = self.encode(prompt, param, special)
        elif isinstance(prompt, list) and all(type(token) is int for token in prompt):
            tokens = self.known_tokens(prompt, param)
        else:
            raise errors.invalid(f"'{param}' must be text or a list of token ids.", param, "invalid_type")
        if not tokens and (start := self.tokenizer.start_token) is not None:
            tokens = [start]
        if not tokens:
            raise errors.invalid(f"'{param}' must not be empty.", param)
        return tuple(tokens)

    def encode(self, text: str, param: str, special: bool = True) -> list[int]:
        """A text's token ids. Raises ApiError, sooner than all of it is tokenised, if it cannot fit the context."""
        limit = self.engine.context_length
        if len(text) > self.tokenizer.most_characters(limit):
            raise errors.text_too_long(limit, len(text), param)
        beginning = PROBED_CHARACTERS * limit
        try:
            if len(text) > beginning and len(self.tokenizer.encode(text[:beginning])) > limit + PROBE_MARGIN:
                raise errors.text_too_long(limit, len(text), param)
            return self.tokenizer.encode(text, special=special)
        except TokenizerError as error:
            raise errors.invalid(f"Invalid value for '{param}': {error}.", param) from error

    def known_tokens(self, tokens: list[int], param: str) -> list[int]:
        """The same ids. Raises ApiError for one that is not in the vocabulary."""
        unknown = self.tokenizer.unknown_ids(tokens)
        if unknown:
            raise errors.invalid(
                f"Invalid token id in '{param}': {str(unknown[0])[:30]} is not in the vocabulary "
                f"(0 to {self.tokenizer.vocab_size - 1}).",
                param,
            )
        return tokens

    def check_sequences(self, count: int, param: str) -> None:
        """Raise ApiError for more sequences than could ever run and wait together."""
        if count > self.engine.capacity:
            raise errors.invalid(
                f"'{param}' asks for {count} sequences; this server runs and queues {self.engine.capacity} at most.",
                param,
            )

    def completion_limit(
        self,
        prompt: Sequence[int],
        wanted: int | None,
        default: int | None,
        param: str,
        wanted_param: str = "max_tokens",
    ) -> int:
        """How many tokens may be generated after `prompt`. Raises ApiError where they do not fit the context.

        `default` (None: all that fit) holds where the request does not say, and gives way to the context.
        """
        limit = self.engine.context_length
        room = limit - len(prompt)
        if wanted is not None:
            if wanted > room:
                raise errors.context_exceeded(limit, len(prompt), wanted, param, wanted_param)
            return wanted
        if room < 1:
            raise errors.context_exceeded(limit, len(prompt), default or 1, param)
        return room if default is None else min(default, room)

    def open(
        self,
        wanted: Sequence[Wanted],
        stops: Sequence[str],
        shown: Sequence[str] = (),
        parser: Callable[[], ChatParser] | None = None,
        *,
        salt: str,
        grammar_field: str | None = None,
    ) -> list[Generation]:
        """Start a sequence for each prompt and parameters, all or none. Raises ApiError.

        `shown` are special tokens that the text is to hold all the same; `parser` makes what reads each
        sequence, if it is more than text. `salt` tells apart those who must not know what others have cached.
        """
        readers = [
            Reader(self.tokenizer, stops, shown, parser() if parser is not None else None, grammar_field)
            for _ in wanted
        ]
        try:
            streams = self.engine.open([Request(prompt, params, salt) for prompt, params in wanted])
        except QueueFullError as error:
            raise errors.overloaded(f"The server is busy: {error}. Please try again.") from error
        except EngineStoppedError as error:
            raise errors.unavailable(f"The server cannot generate: {error}.") from error
        return [Generation(stream, reader) for stream, reader in zip(streams, readers, strict=True)]


def server_of(request: HttpRequest) -> Server:
    server: Server = request.app.state.server
    return server


@dataclass(frozen=True)
class Answer:
    """What all chunks of one answer share."""

    kind: str
    model: str
    id: str
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def new(cls, kind: str, prefix: str, model: str) -> Answer:
        return cls(kind, model, f"{prefix}-{uuid.uuid4().hex}")

    def body(self, choices: list[dict[str, object]], **more: object) -> dict[str, object]:
        return {
            "id": self.id,
            "object": self.kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
            "system_fingerprint": f"fp_{__version__.replace('.', '_')}",
            **more,
        }

    def chunk(self) -> Answer:
        return replace(self, kind=f"{self.kind}.chunk")


def usage(generations: Sequence[Generation], *, n: int = 1) -> dict[str, object]:
    """OpenAI's usage of one answer; each prompt counts once, however many choices it has."""
    prompt = sum(len(generation.prompt_tokens) for generation in generations[::n])
    cached = sum(generation.counts.cached_prompt for generation in generations[::n])
    completion = sum(generation.counts.completion for generation in generations)
    reasoning = sum(generation.counts.reasoning for generation in generations)
    drafted = sum(generation.counts.drafted for generation in generations)
    accepted = sum(generation.counts.accepted for generation in generations)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": reasoning,
            "audio_tokens": 0,
            "accepted_prediction_tokens": accepted,
            "rejected_prediction_tokens": drafted - accepted,
        },
    }
