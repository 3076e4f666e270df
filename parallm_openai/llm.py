"""Offline generation in this process: `LLM(model).generate(prompts, SamplingParams(...))`."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm.auto import tqdm

from parallm_openai.engine.build import DraftSource, build_core
from parallm_openai.engine.request import FinishReason, Output, Request, SamplingParams
from parallm_openai.engine.worker import Engine
from parallm_openai.models.loading import LoadedModel, load
from parallm_openai.settings import EngineConfig
from parallm_openai.text.generation import GenerationError, Reader
from parallm_openai.text.tokenizer import Tokenizer

Prompt = str | Sequence[int]

__all__ = ["LLM", "GenerationResult", "SamplingParams"]


@dataclass(frozen=True)
class GenerationResult:
    """What one prompt became. `drafted` and `accepted` count speculated tokens."""

    prompt: Prompt
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    prompt_tokens: int
    drafted: int
    accepted: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class LLM:
    """A model with an engine of its own.

    `model` and `draft_model` are folders, hub ids or loaded models (`draft_model` may also be
    "ngram"); further keywords are fields of `EngineConfig`. Raises ModelLoadError or
    UnsupportedModelError. Use it as a context manager, or `close` it, to free the engine's thread.
    """

    def __init__(
        self,
        model: str | Path | LoadedModel,
        draft_model: str | Path | DraftSource = None,
        config: EngineConfig | None = None,
        **settings: Any,
    ) -> None:
        self.model = model if isinstance(model, LoadedModel) else load(model)
        draft = load(draft_model) if isinstance(draft_model, str | Path) and draft_model != "ngram" else draft_model
        # A queue without an end: everything comes from one caller.
        settings = {"max_queue": 10**9, **settings}
        config = (config or EngineConfig()).model_copy(update=EngineConfig(**settings).model_dump(include={*settings}))
        self.tokenizer = Tokenizer(self.model.tokenizer, self.model.vocab_size)
        self._outputs: queue.SimpleQueue[list[Output]] = queue.SimpleQueue()
        self._engine = Engine(partial(build_core, self.model, config, draft), self._outputs.put)  # type: ignore[arg-type]

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        stop: Sequence[str] = (),
        use_tqdm: bool = True,
    ) -> list[GenerationResult]:
        """Continue every prompt (text or token ids), batched; the results are in the prompts' order.

        Raises ValueError for a prompt that is empty, too long or has an unknown id, before
        anything starts, and GenerationError where the engine fails.
        """
        listed = _as_list(prompts)
        params = _as_params(sampling_params, len(listed))
        requests = [Request(self._tokens(prompt), each) for prompt, each in zip(listed, params, strict=True)]
        readers = {request.id: Reader(self.tokenizer, stop) for request in requests}
        pieces: dict[int, list[str]] = {request.id: [] for request in requests}
        tokens: dict[int, list[int]] = {request.id: [] for request in requests}
        reasons: dict[int, FinishReason] = {}
        for request in requests:
            self._engine.submit(request)
        with tqdm(total=len(requests), desc="Generating", unit="prompt", disable=not use_tqdm) as progress:
            while len(reasons) < len(requests):
                for output in self._outputs.get():
                    identity = output.request_id
                    if identity in reasons or identity not in readers:
                        continue
                    try:
                        delta = readers[identity].read(output)
                    except GenerationError:
                        self._abandon(requests, reasons)
                        raise
                    pieces[identity].append(delta.text)
                    tokens[identity] += delta.tokens
                    if delta.finish_reason is not None:
                        reasons[identity] = delta.finish_reason
                        self._engine.cancel(identity, delta.finish_reason)
                        progress.update()
        return [
            GenerationResult(
                prompt=prompt,
                text="".join(pieces[request.id]),
                token_ids=tuple(tokens[request.id]),
                finish_reason=str(reasons[request.id]),
                prompt_tokens=len(request.prompt),
                drafted=readers[request.id].counts.drafted,
                accepted=readers[request.id].counts.accepted,
            )
            for prompt, request in zip(listed, requests, strict=True)
        ]

    def _abandon(self, requests: Sequence[Request], reasons: dict[int, FinishReason]) -> None:
        for request in requests:
            if request.id not in reasons:
                self._engine.cancel(request.id)

    def _tokens(self, prompt: Prompt) -> tuple[int, ...]:
        tokens = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        if not tokens:
            raise ValueError("a prompt must not be empty")
        if unknown := self.tokenizer.unknown_ids(tokens):
            raise ValueError(f"{unknown[0]} is not a token id of this model")
        if len(tokens) >= self.model.context_length:
            raise ValueError(
                f"a prompt of {len(tokens)} tokens leaves no room in a context of {self.model.context_length}"
            )
        return tuple(tokens)

    def stats(self) -> dict[str, Any]:
        """The engine's numbers, as `/v1/stats` gives them."""
        return self._engine.stats()

    def close(self) -> None:
        """End the engine's thread; running requests are cancelled."""
        self._engine.stop()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    if prompts and isinstance(prompts[0], int):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]


def _as_params(params: SamplingParams | Sequence[SamplingParams] | None, count: int) -> list[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    if len(params) != count:
        raise ValueError(f"{len(params)} sampling parameters for {count} prompts")
    return list(params)
