"""A random-weight model and a draft that agrees with it as often as asked for, with a working tokenizer.

The draft is the target's first layers with its embeddings and head. What the target's
further layers add is scaled until the two agree as often as wanted: greedy tokens of the
target's own text after prompts such as the load generator sends, position by position.

Random heads give nearly the same probability to every token, so that sampled text would be noise that no draft
guesses and no truncation shortens. The shared head is therefore scaled until the target's likeliest token is on
average as probable as `sharpness` says, over the same text. Greedy tokens, and with them the agreement, do not
depend on that scale.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models import llama, qwen3_next
from mlx_lm.models.cache import make_prompt_cache
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from parallm_openai.bench.shape import PairShape
from parallm_openai.bench.words import lexicon, words

EOS = "<|endoftext|>"
CHAT_EOS = "<|im_end|>"
SPECIAL = [EOS, "<|im_start|>", CHAT_EOS]
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Many short answers, since a step with a large vocabulary takes about as long for many rows as for few.
PROBES, PROBE_PROMPT, PROBE_TOKENS = 64, 16, 16
# The load generator's words come from small seeds: a pair is tuned on others of the same kind.
PROBE_SEED = 1 << 20
TOLERANCE = 0.02
# The head's scale needs fewer places: all logits of an eighth of them fit into memory at any vocabulary.
SHARPNESS_STRIDE = 8
CONTEXT = 32_768


@dataclass(frozen=True)
class PairFigures:
    """What a made pair is like, measured in float32 on the target's own greedy text.

    `agreement` is the share of greedy tokens that the draft guesses, `top_probability` the mean probability of the
    target's likeliest token at temperature 1, and `overlap` the mean probability that the two distributions share
    there: the most that any way of acceptance can accept of sampled drafts.
    """

    agreement: float
    top_probability: float
    overlap: float


def make_pair(folder: Path, shape: PairShape) -> PairFigures:
    """Write `folder/target` and `folder/draft`; returns what they are like."""
    mx.random.seed(shape.seed)
    target, draft = _model(shape, shape.layers), _model(shape, shape.draft_layers)
    _silence_specials(target)
    _share(target, draft, shape)
    tokenizer = make_tokenizer(shape.vocab)
    prompts = _prompts(tokenizer)
    measured = _tune(target, draft, shape.agreement, prompts)
    figures = PairFigures(measured, *_sharpen(target, draft, shape.sharpness, prompts))
    for name, model, layers in (("target", target, shape.layers), ("draft", draft, shape.draft_layers)):
        _write(folder / name, model, shape, layers, tokenizer)
    (folder / "pair.json").write_text(json.dumps(shape.model_dump() | {"measured": asdict(figures)}, indent=2))
    return figures


def _config(shape: PairShape, layers: int) -> dict[str, object]:
    config: dict[str, object] = {
        "architectures": [{"llama": "LlamaForCausalLM", "qwen3_next": "Qwen3NextForCausalLM"}[shape.family]],
        "model_type": shape.family,
        "hidden_size": shape.hidden,
        "num_hidden_layers": layers,
        "intermediate_size": shape.ffn,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "rms_norm_eps": 1e-5,
        "vocab_size": shape.vocab,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": False,
        "eos_token_id": [0, 2],
        "bos_token_id": 0,
    }
    return config | (_hybrid_config(shape) if shape.family == "qwen3_next" else {})


def _hybrid_config(shape: PairShape) -> dict[str, object]:
    """Recurrent layers with as many heads as attention has, and no experts."""
    size = shape.hidden // shape.heads
    return {
        "full_attention_interval": 2,
        "head_dim": size,
        "partial_rotary_factor": 0.5,
        "rope_theta": 10_000.0,
        "linear_num_key_heads": shape.heads,
        "linear_num_value_heads": shape.heads,
        "linear_key_head_dim": size,
        "linear_value_head_dim": size,
        "linear_conv_kernel_dim": 4,
        "num_experts": 0,
        "num_experts_per_tok": 0,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": 0,
        "shared_expert_intermediate_size": 0,
    }


def _model(shape: PairShape, layers: int) -> nn.Module:
    module: Any = {"llama": llama, "qwen3_next": qwen3_next}[shape.family]
    model: nn.Module = module.Model(module.ModelArgs.from_dict(_config(shape, layers)))
    return model


def _silence_specials(model: nn.Module) -> None:
    """Logits of 0 among thousands around it are never likely: a benchmark's text must not end by itself."""
    rows = mx.arange(model.lm_head.weight.shape[0])[:, None]
    model.lm_head.weight = mx.where(rows < len(SPECIAL), 0.0, model.lm_head.weight)


def _share(target: nn.Module, draft: nn.Module, shape: PairShape) -> None:
    draft.model.embed_tokens.weight = target.model.embed_tokens.weight
    draft.model.layers = target.model.layers[: shape.draft_layers]
    draft.lm_head.weight = target.lm_head.weight
    if shape.agreement == 0:
        # Every token named by its neighbour's row: the draft is wrong wherever the target is not torn.
        draft.lm_head.weight = mx.roll(target.lm_head.weight, 1, 0)


def _prompts(tokenizer: Tokenizer) -> mx.array:
    """`[PROBES, PROBE_PROMPT]` tokens of made-up text."""
    # A word is a token at least.
    text = words(PROBE_SEED, PROBES * PROBE_PROMPT)
    prompts = [text[start : start + PROBE_PROMPT] for start in range(0, len(text), PROBE_PROMPT)]
    return mx.array([tokenizer.encode(" ".join(prompt)).ids[:PROBE_PROMPT] for prompt in prompts])


def _tune(target: nn.Module, draft: nn.Module, wanted: float, prompts: mx.array) -> float:
    """Scale the target's further layers by bisection of the scale's logarithm; returns the agreement reached."""
    upper = target.model.layers[len(draft.model.layers) :]
    added = [module for layer in upper for module in (_mixer_output(layer), layer.mlp.down_proj)]
    whole = [module.weight for module in added]

    def agreement(scale: float) -> float:
        for module, weight in zip(added, whole, strict=True):
            module.weight = weight * scale
        return _agreement(target, draft, prompts)

    if wanted == 0:
        return agreement(0.3)
    low, high, measured = 2.0**-12, 1.0, 0.0
    for _ in range(12):
        middle = (low * high) ** 0.5
        measured = agreement(middle)
        if abs(measured - wanted) <= TOLERANCE:
            break
        low, high = (middle, high) if measured > wanted else (low, middle)
    return measured


def _mixer_output(layer: Any) -> nn.Module:
    """What a layer's attention or recurrent part adds by."""
    module: nn.Module = layer.linear_attn.out_proj if hasattr(layer, "linear_attn") else layer.self_attn.o_proj
    return module


def _agreement(target: nn.Module, draft: nn.Module, prompts: mx.array) -> float:
    guessed = [mx.argmax(draft_logits, axis=-1) == token for _, draft_logits, token in _greedy(target, draft, prompts)]
    return float(mx.mean(mx.stack(guessed)))


def _greedy(target: nn.Module, draft: nn.Module, prompts: mx.array) -> Iterator[tuple[mx.array, mx.array, mx.array]]:
    """Continue the prompts greedily. Yields the logits `[PROBES, vocab]` of both and the target's tokens `[PROBES]`.

    Position by position: the logits of all at once would take gigabytes with a large vocabulary.
    """
    caches = [make_prompt_cache(model) for model in (target, draft)]
    text = prompts
    for _ in range(PROBE_TOKENS):
        logits = [
            model.lm_head(model.model(text, cache=cache)[:, -1])
            for model, cache in zip((target, draft), caches, strict=True)
        ]
        token = mx.argmax(logits[0], axis=-1)
        mx.eval(token, logits)
        yield *logits, token
        text = token[:, None]


def _sharpen(target: nn.Module, draft: nn.Module, wanted: float, prompts: mx.array) -> tuple[float, float]:
    """Scale the head by bisection; returns the mean probability of the likeliest token, and the overlap."""
    places = list(islice(_greedy(target, draft, prompts), 0, PROBE_TOKENS, SHARPNESS_STRIDE))
    mine = mx.concatenate([logits for logits, _, _ in places])
    others = mx.concatenate([logits for _, logits, _ in places])

    def top_probability(scale: float) -> float:
        return float(mx.mean(mx.exp(scale * mx.max(mine, axis=-1) - mx.logsumexp(scale * mine, axis=-1))))

    low, high = 0.0, 1.0
    while top_probability(high) < wanted:
        high *= 2
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if top_probability(middle) < wanted else (low, middle)
    for model in (target, draft):
        model.lm_head.weight = model.lm_head.weight * high
    shared = mx.minimum(mx.softmax(high * mine, axis=-1), mx.softmax(high * others, axis=-1))
    return top_probability(high), float(mx.mean(mx.sum(shared, axis=-1)))


def make_tokenizer(vocab: int) -> Tokenizer:
    """A byte-level BPE whose every entry a text can hold, since the words that it learns fill the vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # An entry for each word at least: the last merge of a word makes the whole of it.
    tokenizer.train_from_iterator(lexicon(1, vocab), trainer)
    assert tokenizer.get_vocab_size() == vocab
    return tokenizer


def _write(folder: Path, model: nn.Module, shape: PairShape, layers: int, tokenizer: Tokenizer) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    dtype = getattr(mx, shape.dtype)
    weights = {name: array.astype(dtype) for name, array in dict(tree_flatten(model.parameters())).items()}
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(_config(shape, layers), indent=2))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": EOS,
                "eos_token": CHAT_EOS,
                "pad_token": EOS,
                "clean_up_tokenization_spaces": False,
                "model_max_length": CONTEXT,
                "chat_template": TEMPLATE,
            },
            indent=2,
        )
    )
