"""A random-weight Llama and a draft that agrees with it as often as asked for, with a working tokenizer.

The draft is the target's first layers with its embeddings and head. What the target's
further layers add is scaled until the two agree as often as wanted: greedy tokens of the
target's own text after prompts such as the load generator sends, position by position.
"""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from mlx_lm.models.cache import make_prompt_cache
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from parallm_openai.bench.shape import PairShape
from parallm_openai.bench.words import words

EOS = "<|endoftext|>"
CHAT_EOS = "<|im_end|>"
SPECIAL = [EOS, "<|im_start|>", CHAT_EOS]
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
PROBES, PROBE_PROMPT, PROBE_TOKENS = 16, 16, 64
# The load generator's words come from small seeds: a pair is tuned on others of the same kind.
PROBE_SEED = 1 << 20
TOLERANCE = 0.02


def make_pair(folder: Path, shape: PairShape) -> float:
    """Write `folder/target` and `folder/draft`; returns the measured agreement."""
    mx.random.seed(shape.seed)
    target, draft = _llama(shape, shape.layers), _llama(shape, shape.draft_layers)
    _silence_eos(target)
    _share(target, draft, shape)
    tokenizer = _tokenizer(shape)
    measured = _tune(target, draft, shape.agreement, _prompts(tokenizer))
    for name, model, layers in (("target", target, shape.layers), ("draft", draft, shape.draft_layers)):
        _write(folder / name, model, shape, layers, tokenizer)
    (folder / "pair.json").write_text(json.dumps(shape.model_dump() | {"measured_agreement": measured}, indent=2))
    return measured


def _config(shape: PairShape, layers: int) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "num_hidden_layers": layers,
        "intermediate_size": shape.ffn,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "rms_norm_eps": 1e-5,
        "vocab_size": shape.vocab,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
        "eos_token_id": [0, 2],
        "bos_token_id": 0,
    }


def _llama(shape: PairShape, layers: int) -> nn.Module:
    return llama.Model(llama.ModelArgs.from_dict(_config(shape, layers)))


def _silence_eos(model: nn.Module) -> None:
    """Logits of 0 among thousands around it never win: a benchmark's text must not end by itself."""
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
    """Scale the target's further layers by bisection; returns the agreement reached."""
    upper = target.model.layers[len(draft.model.layers) :]
    whole = [(layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight) for layer in upper]

    def agreement(scale: float) -> float:
        for layer, (attention, mlp) in zip(upper, whole, strict=True):
            layer.self_attn.o_proj.weight = attention * scale
            layer.mlp.down_proj.weight = mlp * scale
        return _agreement(target, draft, prompts)

    if wanted == 0:
        return agreement(0.3)
    low, high, measured = 0.0, 1.0, 0.0
    for _ in range(12):
        middle = (low + high) / 2
        measured = agreement(middle)
        if abs(measured - wanted) <= TOLERANCE:
            break
        low, high = (middle, high) if measured > wanted else (low, middle)
    return measured


def _agreement(target: nn.Module, draft: nn.Module, text: mx.array) -> float:
    cache = make_prompt_cache(target)
    token = mx.argmax(target(text, cache=cache)[:, -1:], axis=-1)
    for _ in range(PROBE_TOKENS):
        mx.eval(token)
        text = mx.concatenate([text, token], axis=1)
        token = mx.argmax(target(token, cache=cache), axis=-1)
    guesses = np.array(mx.argmax(draft(text), axis=-1))[:, PROBE_PROMPT - 1 : -1]
    return float((guesses == np.array(text)[:, PROBE_PROMPT:]).mean())


def _tokenizer(shape: PairShape) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=shape.vocab,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(words(1, 60_000))], trainer)
    missing = shape.vocab - tokenizer.get_vocab_size()
    tokenizer.add_tokens([f"<unused{number}>" for number in range(missing)])
    return tokenizer


def _write(folder: Path, model: nn.Module, shape: PairShape, layers: int, tokenizer: Tokenizer) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    weights = dict(tree_flatten(model.parameters()))
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
                "model_max_length": 8192,
                "chat_template": TEMPLATE,
            },
            indent=2,
        )
    )
