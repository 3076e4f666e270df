"""Put a core together from a loaded model: which caches fit it, and who drafts."""

from __future__ import annotations

import logging
from typing import Literal

from parallm_openai.distributed.operations import Leader, Share, follow
from parallm_openai.engine.cache.ragged import Ragged
from parallm_openai.engine.capabilities import Capabilities, UnsupportedModelError, probe
from parallm_openai.engine.row import DRAFT, TARGET
from parallm_openai.engine.runner import ModelRunner
from parallm_openai.engine.scheduler import ModelTraits
from parallm_openai.engine.speculation.draft_model import DraftModel
from parallm_openai.engine.speculation.drafter import Drafter
from parallm_openai.engine.speculation.mtp import MTPHead
from parallm_openai.engine.speculation.portfolio import Portfolio
from parallm_openai.engine.speculation.suffix import SuffixDrafter
from parallm_openai.engine.step import EngineCore
from parallm_openai.engine.warm_up import warm_up
from parallm_openai.models.kernels import fast_width, forward_tokens, on_gpu, prefill_tokens
from parallm_openai.models.language_model import LanguageModel
from parallm_openai.models.loading import LoadedModel, ModelLoadError, check_same_tokenizer
from parallm_openai.models.mtp import load_head
from parallm_openai.settings import EngineConfig

log = logging.getLogger(__name__)

DraftSource = LoadedModel | Literal["auto", "mtp", "suffix"] | None
"""What drafts: a draft model, the model's own head for multi-token prediction, what stood in the text and in earlier
answers before, or nothing. Whatever else drafts, texts are copied from as well. "auto" is the head if there is one."""


def build_core(model: LoadedModel, config: EngineConfig, draft: DraftSource = None) -> EngineCore:
    """The engine's core for a model and, perhaps, something to draft with.

    Raises UnsupportedModelError if the family cannot be batched, or the draft not rolled back,
    and ModelLoadError if the draft's tokenizer is not the target's, or the checkpoint has no head that was asked for.
    """
    # From here on in the same order as in `follow_core`: what computes forwards of a shared model waits for all ranks.
    leader = None if model.ranks is None else Leader(model.ranks.lead())
    abilities = probe(model.model, model.vocab_size)
    log.info("%s: %s batching (%s)", model.name, abilities.batching, abilities.reason)
    if leader is not None:
        _required(abilities, f"{model.name} cannot be shared by processes")
    traits = ModelTraits(
        ragged=abilities.ragged is not None,
        recurrent=abilities.ragged is not None and abilities.ragged.recurrent,
        padding_limit=max(1, model.weight_bytes // max(1, abilities.token_bytes)),
        forward_tokens=forward_tokens(),
        prefill_tokens=prefill_tokens(),
        fast_width=fast_width(model.config),
        runs_ahead=abilities.ragged is not None and on_gpu() and leader is None,
        token_bytes=abilities.token_bytes,
        state_bytes=abilities.state_bytes,
    )
    drafter = _drafter(model, abilities, draft, leader)
    target = ModelRunner(
        model.model,
        TARGET,
        ragged=abilities.ragged,
        keeps_hidden_states=drafter.reads_hidden_states,
        make_cache=None if leader is None else leader.makes(TARGET),
    )
    core = EngineCore(
        target,
        drafter,
        config,
        traits,
        context_length=model.context_length,
        eos_ids=model.eos_token_ids,
    )
    if leader is not None:
        core.confirm = leader.confirm
    warm_up(core)
    return core


def follow_core(model: LoadedModel, draft: LoadedModel | None = None) -> None:
    """What `build_core` does at rank 0, at any other: compute this rank's shares of the models, until rank 0 ends.

    `draft` is given if it is shared as well. Raises UnsupportedModelError as `build_core` does.
    """
    assert model.ranks is not None
    operations = model.ranks.follow()
    ragged = _required(probe(model.model, model.vocab_size), f"{model.name} cannot be shared by processes")
    shares = {}
    if draft is not None:
        ragged_draft = _ragged(draft)
        shares[DRAFT] = Share(LanguageModel(draft.model), ragged_draft)
    shares[TARGET] = Share(LanguageModel(model.model), ragged)
    follow(operations, shares)


def _drafter(model: LoadedModel, abilities: Capabilities, draft: DraftSource, leader: Leader | None) -> Drafter:
    if draft is None:
        return Drafter()
    if abilities.ragged is None:
        # Nobody may have asked for drafts.
        level = logging.INFO if draft in ("auto", "suffix") else logging.WARNING
        log.log(level, "%s cannot speculate (%s); it is served without", model.name, abilities.reason)
        return Drafter()
    if draft == "suffix":
        return SuffixDrafter()
    if draft in ("auto", "mtp"):
        head = None if leader is not None else _head(model)
        if head is None and draft == "mtp":
            reason = "has no head for multi-token prediction that could draft; --draft suffix needs none"
            if leader is not None:
                reason = "is shared by processes, which cannot draft by its own head"
            raise ModelLoadError(f"{model.name} {reason}")
        return SuffixDrafter() if head is None else Portfolio(head, SuffixDrafter())
    assert isinstance(draft, LoadedModel)
    check_same_tokenizer(model, draft)
    computing = DraftModel(
        draft.model,
        draft.vocab_size,
        model.vocab_size,
        _ragged(draft),
        context_length=draft.context_length,
        # Other ranks must be told a forward's tokens.
        asynchronous=on_gpu() and leader is None,
        make_cache=leader.makes(DRAFT) if leader is not None and draft.ranks is not None else None,
    )
    return Portfolio(computing, SuffixDrafter())


def _ragged(draft: LoadedModel) -> Ragged:
    return _required(probe(draft.model, draft.vocab_size), f"{draft.name} cannot draft")


def _required(abilities: Capabilities, refusal: str) -> Ragged:
    """How a ragged cache serves a model that needs one."""
    if abilities.ragged is None:
        raise UnsupportedModelError(f"{refusal}: {abilities.reason}")
    return abilities.ragged


def _head(model: LoadedModel) -> MTPHead | None:
    """The model's own head, if its checkpoint has one and it can be run."""
    head = load_head(model)
    # Asked last, because finding it out takes forwards, and most models have no head.
    if head is None or not LanguageModel(model.model).has_head:
        return None
    try:
        found = probe(head, model.vocab_size)
    except UnsupportedModelError as error:
        log.warning("the head for multi-token prediction of %s cannot draft: %s", model.name, error)
        return None
    if found.ragged is None or not LanguageModel(head).has_head:
        log.warning("the head for multi-token prediction of %s cannot draft: %s", model.name, found.reason)
        return None
    return MTPHead(head, model.vocab_size, found.ragged, asynchronous=on_gpu())
