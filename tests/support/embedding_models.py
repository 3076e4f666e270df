"""Tiny embedding models: decoders of random weights with the files of sentence-transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from support import families

END = 1


def write(folder: Path, pooling: str = "lasttoken", *, family: str = "qwen3", length: int | None = None) -> Path:
    """As Qwen3-Embedding is published: no output projection, weights without `model.`, and `</s>` after each text."""
    families.write(family, folder)
    file = folder / "model.safetensors"
    named: Any = mx.load(str(file))
    weights = {name.removeprefix("model."): named[name] for name in named if not name.startswith("lm_head")}
    mx.eval(weights)
    mx.save_safetensors(str(file), weights, metadata={"format": "pt"})
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", END)])
    tokenizer.save(str(folder / "tokenizer.json"))
    kinds = ("Transformer", "Pooling", "Normalize")
    paths = ("", "1_Pooling", "2_Normalize")
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    put(folder / "modules.json", modules)
    switches = dict.fromkeys(("cls_token", "mean_tokens", "max_tokens", "lasttoken"), False) | {pooling: True}
    put(folder / "1_Pooling" / "config.json", {f"pooling_mode_{name}": on for name, on in switches.items()})
    if length is not None:
        put(folder / "sentence_bert_config.json", {"max_seq_length": length, "do_lower_case": False})
    return folder


def put(file: Path, content: Any) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content))


def change_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    put(file, {**json.loads(file.read_text()), **changes})
