"""Put a core together from a loaded model: which caches fit it, and who drafts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Literal

from parallm_openai.config import EngineConfig
from parallm_openai.engine.capabilities import Capabilities, UnsupportedModelError, probe
from parallm_openai.engine.lane import Lane
from parallm_openai.engine.runner import ModelRunner
from parallm_openai.engine.speculation.draft_model import DraftModel
from parallm_openai.engine.speculation.drafter import Drafter
from parallm_openai.engine.speculation.ngram import NgramDrafter
from parallm_openai.engine.step import EngineCore
from parallm_openai.models.kernels import fast_width, forward_tokens
from parallm_openai.models.loading import LoadedModel, check_same_tokenizer

log = logging.getLogger(__name__)

Draft = LoadedModel | Literal["ngram"] | None


def build_core(model: LoadedModel, config: EngineConfig, draft: Draft = None) -> EngineCore:
    """The engine's core for a model and, perhaps, something to draft with.

    Raises UnsupportedModelError where the family cannot be batched, or the draft not un-written,
    and ModelLoadError where the draft's tokenizer is not the target's.
    """
    abilities = probe(model.model, model.vocab_size)
    log.info("%s: %s batching (%s)", model.name, abilities.batching, abilities.reason)
    make_drafter = _drafter(model, abilities, draft)
    make_runner = partial(ModelRunner, model.model, abilities.speculation, abilities.mask_axes)
    return EngineCore(
        [Lane(make_runner(), make_drafter()) for _ in range(2)],
        config,
        context_length=model.context_length,
        eos_ids=model.eos_token_ids,
        waste_limit=max(1, model.weight_bytes // max(1, abilities.token_bytes)),
        forward_tokens=forward_tokens(),
        fast_width=fast_width(model.config),
    )


def _drafter(model: LoadedModel, abilities: Capabilities, draft: Draft) -> Callable[[], Drafter]:
    """How to make a drafter; each lane gets one of its own."""
    if draft is None:
        return Drafter
    if not abilities.speculation:
        log.warning("%s cannot speculate (%s); it is served without", model.name, abilities.reason)
        return Drafter
    if draft == "ngram":
        return NgramDrafter
    check_same_tokenizer(model, draft)
    found = probe(draft.model, draft.vocab_size)
    if not found.speculation:
        raise UnsupportedModelError(f"{draft.name} cannot draft: what it has read cannot be taken back")
    return partial(DraftModel, draft.model, draft.vocab_size, model.vocab_size, found.mask_axes)
