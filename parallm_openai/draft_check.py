"""How many of its drafts a model accepts, for `parallm-openai doctor`. Importing this imports mlx."""

from __future__ import annotations

from collections.abc import Sequence

from parallm_openai.catalog.sizes import in_bytes
from parallm_openai.doctor import Facts
from parallm_openai.engine.build import DraftSource
from parallm_openai.engine.capabilities import Capabilities, UnsupportedModelError, probe
from parallm_openai.llm import LLM
from parallm_openai.models.loading import LoadedModel
from parallm_openai.models.vocabulary import difference
from parallm_openai.results import ChatResult, GenerationResult
from parallm_openai.text.defaults import asked
from parallm_openai.text.templates import TemplateError

# Different kinds of text, as their drafts differ in how often they are accepted.
PROMPTS = {
    "a fact": "What is the capital of France, and what is it known for?",
    "a story": "Tell me a short story about a lighthouse.",
    "code": "Write a Python function that counts the words of a text.",
    "a text repeated": "Repeat this sentence three times: The quick brown fox jumps over the lazy dog.",
}
MAX_TOKENS = 64
# Long enough to show how acceptance falls off, and a common choice.
DRAFT_LENGTH = 4


def describe_drafts(target: LoadedModel, draft: DraftSource) -> Facts:
    """Name and value of what matters about a model and what drafts for it; runs a few prompts if it can draft."""
    abilities = _abilities(target)
    facts: Facts = []
    problem = "there is nothing to draft with" if draft is None else _unfit(target, abilities, "speculate")
    if isinstance(draft, LoadedModel):
        own = _abilities(draft)
        differing = difference(target.tokenizer.get_vocab(), draft.tokenizer.get_vocab())
        facts = _describe_draft_model(target, draft, differing, abilities, own)
        unlike = None if differing is None else "a draft model must have the target's tokenizer"
        problem = problem or unlike or _unfit(draft, own, "draft")
    if problem is not None:
        return [*facts, ("drafts", f"none: {problem}")]
    return [*facts, *_acceptance(target, draft)]


def _abilities(model: LoadedModel) -> Capabilities | None:
    try:
        return probe(model.model, model.vocab_size)
    except UnsupportedModelError:
        return None


def _unfit(model: LoadedModel, abilities: Capabilities | None, task: str) -> str | None:
    """Why a model cannot speculate or draft; None if it can."""
    if abilities is not None and abilities.ragged is not None:
        return None
    return f"{model.name} cannot {task} ({'it cannot be served' if abilities is None else abilities.reason})"


def _describe_draft_model(
    target: LoadedModel,
    draft: LoadedModel,
    differing: str | None,
    abilities: Capabilities | None,
    own: Capabilities | None,
) -> Facts:
    weights = f"{in_bytes(target.weight_bytes)} and {in_bytes(draft.weight_bytes)} of weights"
    caches = [0 if each is None else each.token_bytes for each in (abilities, own)]
    tokens = f", {in_bytes(caches[0])} and {in_bytes(caches[1])} a token in caches" if all(caches) else ""
    return [
        ("draft model", f"{draft.name} ({draft.path})"),
        ("tokenizers", "the same" if differing is None else f"not the same: {differing}"),
        ("memory", f"{weights}{tokens} (target and draft)"),
    ]


def _acceptance(target: LoadedModel, draft: DraftSource) -> Facts:
    """How many of the drafted tokens are accepted, prompt by prompt, as the model samples by default."""
    with LLM(target, draft_model=draft, draft_length=DRAFT_LENGTH, max_draft_tokens=DRAFT_LENGTH) as llm:
        results = _answers(llm)
    shares = [f"{name}: {_share(result)}" for name, result in zip(PROMPTS, results, strict=True)]
    drafted, accepted = (sum(getattr(each, name) for each in results) for name in ("drafted", "accepted"))
    total = (
        f"{accepted / drafted:.0%} of {drafted} tokens, drafted {DRAFT_LENGTH} at a time"
        if drafted
        else "nothing drafted"
    )
    return [("accepted drafts", f"{total} ({'; '.join(shares)})")]


def _answers(llm: LLM) -> Sequence[ChatResult | GenerationResult]:
    params = asked(max_tokens=MAX_TOKENS, seed=0)
    prompts = list(PROMPTS.values())
    try:
        return llm.chat([[{"role": "user", "content": prompt}] for prompt in prompts], params)
    except (TemplateError, ValueError):
        # A model that is not made for chats.
        return llm.generate(prompts, params, use_tqdm=False)


def _share(result: ChatResult | GenerationResult) -> str:
    return f"{result.accepted / result.drafted:.0%}" if result.drafted else "none drafted"
