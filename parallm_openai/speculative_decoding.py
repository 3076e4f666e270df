"""Speculative decoding under names that people already use, on this project's engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parallm_openai.engine.request import SamplingParams
from parallm_openai.llm import LLM, GenerationResult
from parallm_openai.text.description import Prompt

__all__ = ["SpeculativeConfig", "SpeculativeDecodingEngine"]


@dataclass(frozen=True)
class SpeculativeConfig:
    """Which models, and how many tokens to draft at most. Without a draft model, drafts are copied from the text."""

    target_model_path: str | Path
    draft_model_path: str | Path | None = None
    max_draft_tokens: int = 5
    acceptance: str = "coupled"


class SpeculativeDecodingEngine:
    """Generates with a target model and a draft; the output is the target's own."""

    def __init__(self, config: SpeculativeConfig) -> None:
        self.config = config
        self.llm = LLM(
            config.target_model_path,
            draft_model=config.draft_model_path or "auto",
            max_draft_tokens=config.max_draft_tokens,
            speculative_acceptance=config.acceptance,
        )

    def generate(
        self, prompt: Prompt, max_tokens: int = 100, temperature: float = 0.0, **params: Any
    ) -> GenerationResult:
        """Continue one prompt; further keywords are those of `SamplingParams`."""
        chosen = SamplingParams(max_tokens=max_tokens, temperature=temperature, **params)
        return self.llm.generate([prompt], chosen, use_tqdm=False)[0]

    def get_stats(self) -> dict[str, Any]:
        """Acceptance and draft lengths so far: the `speculative_stats` of `/v1/stats`."""
        stats: dict[str, Any] = self.llm.stats()["speculative_stats"]
        return stats

    def close(self) -> None:
        self.llm.close()
