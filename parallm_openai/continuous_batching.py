"""Continuous batching under names that people already use, on this project's engine."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parallm_openai.engine.request import SamplingParams
from parallm_openai.models.loading import LoadedModel
from parallm_openai.settings import EngineConfig
from parallm_openai.text.description import TextDescription
from parallm_openai.text.generation import start_generations
from parallm_openai.text.prepare import Preparer
from parallm_openai.text.request_error import RequestError
from parallm_openai.text.tokenizer import Tokenizer
from parallm_openai.text.workers import Inline

if TYPE_CHECKING:
    import mlx.nn as nn
    from mlx_lm.tokenizer_utils import TokenizerWrapper

__all__ = ["AsyncContinuousBatchingEngine", "BatchConfig"]


@dataclass(frozen=True)
class BatchConfig:
    """How many requests decode together, and for how many ms an idle engine waits for more requests."""

    max_batch_size: int = 8
    timeout_ms: float = 50


class AsyncContinuousBatchingEngine:
    """Batches all requests that it has at the same time; for use within one event loop.

    `model` and `tokenizer` are what `mlx_lm.load` returns. Float types are kept as they are.
    For speed on a Linux CPU, call `parallm_openai.prepare()` before importing mlx-lm, and load with
    `parallm_openai.models.loading.load`.
    """

    def __init__(self, model: nn.Module, tokenizer: TokenizerWrapper, config: BatchConfig | None = None) -> None:
        # Imported here: `prepare` must come before mlx, and can if importing this module imports no mlx.
        from parallm_openai.engine.async_engine import AsyncEngine

        chosen = config or BatchConfig()
        loaded = LoadedModel.of(model, tokenizer, _config_of(model), name="model", path=Path())
        self._engine = AsyncEngine(
            loaded, EngineConfig(max_batch_size=chosen.max_batch_size, batch_timeout_ms=chosen.timeout_ms)
        )
        text = Tokenizer(tokenizer, loaded.vocab_size)
        grammars = text.grammars(loaded.eos_token_ids)
        self._preparer = Preparer(text, grammars, loaded.eos_token_ids, self._engine, Inline())

    async def generate(self, prompt: str, max_tokens: int = 100, temperature: float = 0.0, **params: Any) -> str:
        """Continue one prompt; further keywords are those of `SamplingParams`. Raises RequestError for an empty one."""
        sampling = SamplingParams(max_tokens=None, temperature=temperature, **params)
        description = TextDescription(
            prompts=[prompt], sampling=sampling, default_max_tokens=max_tokens, empty_is_start=False
        )
        [prepared] = await self._preparer.text(description)
        if isinstance(prepared, RequestError):
            raise prepared
        [generation] = start_generations(self._engine, [prepared])
        return "".join([delta.text async for delta in generation])

    async def generate_batch(self, prompts: Sequence[str], max_tokens: int = 100, **params: Any) -> list[str]:
        """Continue every prompt, batched; the texts are in the prompts' order."""
        return await asyncio.gather(*(self.generate(prompt, max_tokens, **params) for prompt in prompts))

    def get_stats(self) -> dict[str, Any]:
        """The engine's numbers, as `/v1/stats` gives them."""
        return self._engine.stats()

    async def shutdown(self, timeout: float = 0.0) -> None:
        """End the engine, after `timeout` seconds for what still runs."""
        await self._engine.shutdown(timeout)


def _config_of(model: nn.Module) -> dict[str, Any]:
    args = getattr(model, "args", None)
    return dict(vars(args)) if args is not None else {}
