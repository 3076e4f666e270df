"""What travels into the engine and out of it: tokens and numbers, never text."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType

from parallm_openai.engine.constraint import Grammar

_request_numbers = itertools.count()


LEAST_TEMPERATURE = 1e-5
# The parameters for which a model or a server may have defaults of its own.
DEFAULTABLE = frozenset(("temperature", "top_p", "top_k", "min_p", "repetition_penalty"))


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one request samples. Defaults are "no change to the model's distribution".

    `temperature` below 1e-5 is greedy. `top_k` 0 and `min_p` 0 are off. Penalties follow
    OpenAI (`presence_penalty`, `frequency_penalty`: tokens generated so far) and
    CTRL (`repetition_penalty`: prompt and generated tokens; arXiv 1909.05858).
    `logprobs` asks for the chosen token's log-probability and that many
    alternatives (0 is none but the chosen); `prompt_logprobs` does so for the
    prompt's tokens. Both are the model's own distribution, before penalties,
    bias, temperature and truncation.
    A `seed` of None draws one, so that every request is a function of its own
    parameters alone. `max_tokens` None means up to the context's end. `grammar` says which
    tokens may follow; a sequence whose grammar allows no more ends with `stop`.
    `unsaid` names parameters that a request leaves to the defaults of the model and the server; none are left when it
    reaches the engine.
    """

    max_tokens: int | None = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    use_speculative: bool | None = None
    grammar: Grammar | None = None
    unsaid: frozenset[str] = frozenset()

    @property
    def greedy(self) -> bool:
        # A smaller temperature would divide logits beyond what a float32 holds.
        return self.temperature < LEAST_TEMPERATURE or self.top_k == 1

    @property
    def penalised(self) -> bool:
        return self.presence_penalty != 0 or self.frequency_penalty != 0 or self.repetition_penalty != 1


@dataclass(frozen=True, slots=True)
class Request:
    """One sequence to generate. `prompt` is never empty and its ids are within the vocabulary.

    Requests share computed prefixes only with those of the same `cache_salt`: how much of a prompt is cached
    would tell one user what another has sent.
    """

    prompt: tuple[int, ...]
    params: SamplingParams
    cache_salt: str = ""
    id: int = field(default_factory=lambda: next(_request_numbers))


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's log-probability and the most likely tokens in its place, best first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Output:
    """What one engine step produced for one request.

    The last output of a request, and only that, has a `finish_reason`; its
    `tokens` may be empty. A stopping token (EOS or one of `stop_token_ids`) is
    reported in `stop_token`, not in `tokens`; its log-probability is the last of `logprobs`.
    `prompt_logprobs` comes once, with the first output: None for the first prompt token, which nothing
    precedes. `drafted` and `accepted` count this output's step alone. `error` says why a request ended
    with an error, and `request_at_fault` whether the cause lies in the request itself: it would fail again.
    The first output with tokens says when the request left the queue, by `time.perf_counter`.
    """

    request_id: int
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    finish_reason: FinishReason | None = None
    stop_token: int | None = None
    error: str | None = None
    request_at_fault: bool = False
    drafted: int = 0
    accepted: int = 0
    cached_prompt_tokens: int = 0
    admitted_at: float | None = None

    def by_token(self) -> Iterator[Output]:
        """The same, token by token and then the end: how a step groups them depends on what was drafted."""
        if not self.tokens:
            yield self
            return
        rest = replace(self, finish_reason=None, stop_token=None, error=None)
        for place, token in enumerate(self.tokens):
            logprobs = self.logprobs[place : place + 1]
            yield replace(rest, tokens=(token,), logprobs=logprobs, accepted=int(place < self.accepted))
            # What was said once is not said again.
            rest = replace(rest, prompt_logprobs=None, drafted=0, cached_prompt_tokens=0)
        if self.finish_reason is not None:
            ended = replace(self, tokens=(), logprobs=self.logprobs[len(self.tokens) :], prompt_logprobs=None)
            yield replace(ended, drafted=0, accepted=0, cached_prompt_tokens=0)
