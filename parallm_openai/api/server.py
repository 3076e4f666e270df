"""What every route works with: the engine, the model's text side, and the checks before a response starts."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from fastapi import Request as HttpRequest

from parallm_openai import __version__
from parallm_openai.api import errors
from parallm_openai.api.response_store import ResponseStore
from parallm_openai.api.schemas.completions import Prompt
from parallm_openai.api.settings import ServerSettings
from parallm_openai.engine.request import Request, SamplingParams
from parallm_openai.engine.worker import AsyncEngine, EngineStoppedError, QueueFullError
from parallm_openai.models.loading import LoadedModel
from parallm_openai.text.generation import Generation, Reader
from parallm_openai.text.grammar_compiler import Grammars
from parallm_openai.text.stop import Ending
from parallm_openai.text.tokenizer import Tokenizer

# Encoding this much text takes milliseconds; more of it goes to a thread.
INLINE_TEXT = 20_000


@dataclass(frozen=True)
class Server:
    """One per app, at `app.state.server`."""

    engine: AsyncEngine
    model: LoadedModel
    tokenizer: Tokenizer
    settings: ServerSettings
    grammars: Grammars
    responses: ResponseStore

    @property
    def model_names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.settings.served_model_names, self.model.name)))

    def check_model(self, name: str) -> None:
        if name not in self.model_names:
            raise errors.model_not_found(name)

    async def tokens(self, prompt: Prompt, param: str, *, special: bool = True) -> tuple[int, ...]:
        """A prompt's token ids, checked against the vocabulary. Raises ApiError."""
        if isinstance(prompt, str):
            encode = self.tokenizer.encode
            if len(prompt) > INLINE_TEXT:
                tokens = await asyncio.to_thread(encode, prompt, special=special)
            else:
                tokens = encode(prompt, special=special)
        else:
            tokens = prompt
            unknown = self.tokenizer.unknown_ids(tokens)
            if unknown:
                raise errors.invalid(
                    f"Invalid token id in '{param}': {unknown[0]} is not in the vocabulary "
                    f"(0 to {self.tokenizer.vocab_size - 1}).",
                    param,
                )
        if not tokens and (start := self.tokenizer.start_token) is not None:
            tokens = [start]
        if not tokens:
            raise errors.invalid(f"'{param}' must not be empty.", param)
        return tuple(tokens)

    def completion_limit(self, prompt: Sequence[int], wanted: int | None, default: int | None, param: str) -> int:
        """How many tokens may be generated after `prompt`. Raises ApiError where they do not fit the context.

        `default` (None: all that fit) holds where the request does not say, and gives way to the context.
        """
        limit = self.engine.context_length
        room = limit - len(prompt)
        if wanted is not None:
            if wanted > room:
                raise errors.context_exceeded(limit, len(prompt), wanted, param)
            return wanted
        if room < 1:
            raise errors.context_exceeded(limit, len(prompt), default or 1, param)
        return room if default is None else min(default, room)

    def open(
        self,
        wanted: Sequence[tuple[tuple[int, ...], SamplingParams]],
        stops: Sequence[str],
        shown: Sequence[str] = (),
        ending: Callable[[], Ending] | None = None,
    ) -> list[Generation]:
        """Start a sequence for each prompt and parameters, all or none. Raises ApiError.

        `shown` are special tokens that the text is to hold all the same; `ending` makes what ends each
        sequence besides stop strings.
        """
        opened: list[Generation] = []
        try:
            for prompt, params in wanted:
                reader = Reader(self.tokenizer, stops, shown, ending() if ending is not None else None)
                opened.append(Generation(self.engine.open(Request(prompt, params)), reader))
        except Exception as error:
            for generation in opened:
                generation.cancel()
            if isinstance(error, QueueFullError):
                raise errors.overloaded(f"The server is busy: {error}. Please try again.") from error
            if isinstance(error, EngineStoppedError):
                raise errors.shutting_down() from error
            raise
        return opened


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


def usage(generations: Sequence[Generation], *, n: int = 1, reasoning: int = 0) -> dict[str, object]:
    """OpenAI's usage of one answer; each prompt counts once, however many choices it has."""
    prompt = sum(len(generation.prompt_tokens) for generation in generations[::n])
    cached = sum(generation.counts.cached_prompt for generation in generations[::n])
    completion = sum(generation.counts.completion for generation in generations)
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
