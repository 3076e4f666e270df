"""Put a core together from a loaded model: which caches fit it, and who drafts."""

from __future__ import annotations

from parallm_openai.config import EngineConfig
from parallm_openai.engine.runner import ModelRunner
from parallm_openai.engine.speculation.drafter import Drafter
from parallm_openai.engine.step import EngineCore
from parallm_openai.models.capabilities import Batching, probe
from parallm_openai.models.loading import LoadedModel


def build_core(model: LoadedModel, config: EngineConfig, draft: LoadedModel | None = None) -> EngineCore:
    """The engine's core for a model. Raises UnsupportedModelError where the family cannot be batched."""
    abilities = probe(model.model, model.vocab_size)
    return EngineCore(
        ModelRunner(model.model, ragged=abilities.batching is Batching.RAGGED),
        Drafter(),
        config,
        context_length=model.context_length,
        eos_ids=model.eos_token_ids,
    )
