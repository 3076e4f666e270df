"""A tiny model that recites: clients which need a capable model get the calls and answers that a script says.

It is a checkpoint as any other, so that a real server reads the client's whole prompt, generates token by token and
parses the calls. Its layers add nothing, and its head leads from each token of the script to the next one. The chat
template ends the prompt with the token that begins the answer. It chooses it by the number of answers that the
conversation has already.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from tokenizers import AddedToken, Tokenizer

from parallm_openai.demo import TARGET_PATH

NAME = "reciter"
# More than any client's first prompt.
CONTEXT = 131_072
HEADS, HIDDEN = 1, 32
# How far the next token's logit stands above all others: at temperature 1, others have a chance of e^-40.
CERTAINTY = 40.0
# Text that a token holds, at least; a token stands in the script once, so that one leads to one.
PIECE = 12
END = "<|im_end|>"
TEMPLATE = (
    "{{- '<|im_start|>system\\n' -}}"
    "{%- if tools -%}{{- '<tools>' -}}{%- for tool in tools -%}{{- '\\n' + (tool | tojson) -}}{%- endfor -%}"
    '{{- \'\\n</tools>\\n<tool_call>\\n{"name": NAME, "arguments": OBJECT}\\n</tool_call>\' -}}{%- endif -%}'
    "{{- '<|im_end|>\\n' -}}"
    "{%- set said = namespace(answers=0) -%}"
    "{%- for message in messages -%}"
    "{%- if message.role == 'assistant' -%}{%- set said.answers = said.answers + 1 -%}{%- endif -%}"
    "{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') -}}"
    "{%- for call in message.tool_calls or [] -%}"
    '{{- \'\\n<tool_call>\\n{"name": "\' + call.function.name + \'", "arguments": \' -}}'
    "{{- call.function.arguments | tojson + '}\\n</tool_call>' -}}"
    "{%- endfor -%}"
    "{{- '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}"
    "{{- '<|im_start|>assistant\\n<|answer_' + ([said.answers, LAST] | min) | string + '|>' -}}"
    "{%- endif -%}"
)


def call(name: str, **arguments: Any) -> str:
    """An answer that calls a tool."""
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def write_reciter(folder: Path, answers: Sequence[str]) -> Path:
    """Write the model that gives the first answer to a new conversation, the second after it, and so on.

    Once it has given all, it repeats the last one.
    """
    tokenizer = Tokenizer.from_file(str(TARGET_PATH / "tokenizer.json"))
    chains = _chains(tokenizer, answers)
    folder.mkdir(parents=True, exist_ok=True)
    config = _config(tokenizer.get_vocab_size(), _id(tokenizer, END), sum(len(chain) for chain in chains))
    mx.save_safetensors(str(folder / "model.safetensors"), _weights(config, chains), {"format": "mlx"})
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    settings = json.loads((TARGET_PATH / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings |= {"chat_template": TEMPLATE.replace("LAST", str(len(answers) - 1)), "model_max_length": CONTEXT}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    return folder


def _chains(tokenizer: Tokenizer, answers: Sequence[str]) -> list[list[int]]:
    """For each answer, the token that begins it, those of its text, and the one that ends it; adds them."""
    chains, seen = [], set(tokenizer.get_vocab())
    for number, answer in enumerate(answers):
        begin = AddedToken(f"<|answer_{number}|>", special=True, normalized=False)
        pieces = _pieces(answer, seen)
        tokenizer.add_special_tokens([begin])
        tokenizer.add_tokens([AddedToken(piece, special=False, normalized=False) for piece in pieces])
        chains.append([_id(tokenizer, text) for text in (begin.content, *pieces, END)])
    return chains


def _id(tokenizer: Tokenizer, text: str) -> int:
    found: int | None = tokenizer.token_to_id(text)
    assert found is not None, text
    return found


def _pieces(answer: str, seen: set[str]) -> list[str]:
    """The answer in pieces of which none has been seen; a rest that has been belongs to the piece before it."""
    pieces: list[str] = []
    start = 0
    while start < len(answer):
        end = start + PIECE
        while answer[start:end] in seen and end < len(answer):
            end += 1
        piece, start = answer[start:end], end
        if piece in seen:
            piece = pieces.pop() + piece if pieces else piece
        assert piece not in seen, f"two answers of the script are alike: {answer}"
        pieces.append(piece)
    seen.update(pieces)
    return pieces


def _config(vocab: int, end: int, script: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        # A direction for each token of the script.
        "hidden_size": max(HIDDEN, -(-script // HIDDEN) * HIDDEN),
        "num_hidden_layers": 1,
        "intermediate_size": HIDDEN,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "head_dim": HIDDEN,
        "rms_norm_eps": 1e-5,
        "vocab_size": vocab,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": False,
        "eos_token_id": [end],
    }


def _weights(config: dict[str, Any], chains: Sequence[Sequence[int]]) -> dict[str, mx.array]:
    model = llama.Model(llama.ModelArgs.from_dict(config))
    weights = {name: mx.zeros_like(array) for name, array in dict(tree_flatten(model.parameters())).items()}
    for name in weights:
        if name.endswith("norm.weight"):
            weights[name] = mx.ones_like(weights[name])
    embeddings, head = weights["model.embed_tokens.weight"], weights["lm_head.weight"]
    steps = [step for chain in chains for step in pairwise(chain)]
    for direction, (token, following) in enumerate(steps):
        embeddings[token, direction] = 1.0
        # The norm makes the embedding as long as the root of its size.
        head[following, direction] = CERTAINTY / config["hidden_size"] ** 0.5
    return weights
