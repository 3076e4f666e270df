"""A tokenizer from a GGUF file's metadata: the vocabulary, special tokens and chat templates.

transformers converts such metadata too, but splits texts as GPT-2 does if it does not know a vocabulary's own way.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from gguf import TokenType
from mlx_lm.tokenizer_utils import BPEStreamingDetokenizer, SPMStreamingDetokenizer, TokenizerWrapper
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from parallm_openai.models.chat_template import Template
from parallm_openai.models.gguf.finding import GgufError
from parallm_openai.models.gguf.reading import GgufFile
from parallm_openai.models.gguf.splits import SPLITS, Split

log = logging.getLogger(__name__)

SPACE = "\u2581"
# llama.cpp ends an answer at these tokens, since files often state only one of a model's ends.
ENDS = frozenset(
    "<|eot_id|> <|eom_id|> <|im_end|> <|end|> <|endoftext|> <|end_of_text|> <end_of_turn> <EOT> _<EOT> [EOT] "
    "<end_of_utterance>".split()
)
# Tokens that also stand for markup in ordinary text end an answer only if the file says that they are no text.
ENDS_IF_CONTROL = frozenset(("</s>", "<eos>"))


@dataclass(frozen=True)
class Vocabulary:
    """The tokens in the order of their ids, and what each is."""

    tokens: list[str]
    types: list[int]
    special: dict[str, int]

    def of(self, *kinds: TokenType) -> Iterator[str]:
        return (token for token, kind in zip(self.tokens, self.types, strict=True) if kind in kinds)

    @cached_property
    def ids(self) -> dict[str, int]:
        return {token: index for index, token in enumerate(self.tokens)}

    def text(self, name: str) -> str | None:
        """The special token that metadata call `bos`, `eos`, `unknown` and so on."""
        index = self.special.get(name)
        return None if index is None else self.tokens[index]

    @property
    def ends(self) -> set[int]:
        """The tokens that end an answer."""
        stated = {self.special[name] for name in ("eos", "eot", "eom") if name in self.special}
        by_text = {
            index
            for index, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True))
            if token in ENDS or (token in ENDS_IF_CONTROL and kind == TokenType.CONTROL)
        }
        return stated | by_text


def read_tokenizer(file: GgufFile, embeddings: int, template: Template | None = None) -> TokenizerWrapper:
    """The tokenizer, with its ends and chat template, as mlx-lm has it for a folder.

    `embeddings` is how many tokens the model has; `template` goes before the file's own.
    Raises GgufError for metadata that make no tokenizer of a known kind.
    """
    metadata = file.metadata
    model = metadata.get("tokenizer.ggml.model")
    if model not in _BUILDERS:
        raise GgufError(f"its tokenizer is of the kind {model!r}; {' and '.join(map(repr, _BUILDERS))} are supported")
    vocabulary = _vocabulary(metadata, model)
    if len(vocabulary.tokens) > embeddings:
        raise GgufError(f"its vocabulary has {len(vocabulary.tokens)} tokens, and its embedding {embeddings}")
    try:
        backend, detokenizer = _BUILDERS[model](vocabulary, metadata)
    except GgufError:
        raise
    except Exception as error:
        # The tokenizers library raises Exception itself for merges of tokens that are not there.
        raise GgufError(f"its vocabulary makes no tokenizer: {error}") from error
    _add_special_tokens(backend, vocabulary, strip_after=_strips_after(metadata))
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=vocabulary.text("bos"),
        eos_token=vocabulary.text("eos"),
        unk_token=vocabulary.text("unknown"),
        pad_token=vocabulary.text("padding"),
        chat_template=template or _chat_template(metadata),
        # The engine itself checks lengths: the tokenizer would print a warning for what is then refused.
        model_max_length=int(1e30),
        clean_up_tokenization_spaces=False,
    )
    return TokenizerWrapper(wrapped, detokenizer, eos_token_ids=vocabulary.ends)


def _vocabulary(metadata: dict[str, Any], model: str) -> Vocabulary:
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise GgufError("it has no tokenizer.ggml.tokens")
    types = metadata.get("tokenizer.ggml.token_type")
    kinds = types.tolist() if isinstance(types, np.ndarray) else [int(TokenType.NORMAL)] * len(tokens)
    if len(kinds) != len(tokens):
        raise GgufError(f"it has {len(tokens)} tokens, and token types for {len(kinds)}")
    # An empty text would be found between all others.
    named = [token or f"[EMPTY_{index}]" for index, token in enumerate(tokens)]
    return Vocabulary(named, kinds, _special_ids(metadata, model, len(tokens)))


def _special_ids(metadata: dict[str, Any], model: str, size: int) -> dict[str, int]:
    found = {"unknown": 0, "bos": 1, "eos": 2} if model == "llama" and size > 2 else {}
    for name in ("bos", "eos", "eot", "eom", "unknown", "padding"):
        stated = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if stated is None:
            continue
        if not isinstance(stated, int) or not 0 <= stated < size:
            raise GgufError(f"its tokenizer.ggml.{name}_token_id is {stated!r}, and it has {size} tokens")
        found[name] = stated
    return found


# Byte-level vocabularies


def _byte_level(vocabulary: Vocabulary, metadata: dict[str, Any]) -> tuple[Tokenizer, Any]:
    split = _split(metadata)
    merges = metadata.get("tokenizer.ggml.merges")
    if not isinstance(merges, list):
        raise GgufError("it has no tokenizer.ggml.merges")
    model = models.BPE(vocabulary.ids, [*map(_merge, merges)], ignore_merges=split.whole_words)
    backend = Tokenizer(model)
    if split.composed:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(expression), "isolated") for expression in split.expressions),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    _begin_with_bos(backend, vocabulary, metadata, default=split.bos)
    return backend, BPEStreamingDetokenizer


def _split(metadata: dict[str, Any]) -> Split:
    name = metadata.get("tokenizer.ggml.pre")
    if name is None:
        log.warning("the GGUF file does not say how its vocabulary splits texts; they are split as llama.cpp would")
        name = "default"
    if name not in SPLITS:
        raise GgufError(f"its tokenizer.ggml.pre is {name!r}, a way to split texts that is not known")
    return SPLITS[name]


def _merge(text: str) -> tuple[str, str]:
    """The two sides of a merge. The first may begin with a space: old files write tokens as they are."""
    at = text.find(" ", 1)
    if at < 0:
        raise GgufError(f"its tokenizer.ggml.merges hold {text[:50]!r}, which is no pair")
    return text[:at], text[at + 1 :]


# Vocabularies of SentencePiece


def _sentencepiece(vocabulary: Vocabulary, metadata: dict[str, Any]) -> tuple[Tokenizer, Any]:
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, np.ndarray) or len(scores) != len(vocabulary.tokens):
        raise GgufError("it has no tokenizer.ggml.scores for all its tokens")
    model = models.BPE(
        vocabulary.ids,
        _merges_by_score(vocabulary, scores.tolist()),
        unk_token=vocabulary.text("unknown"),
        fuse_unk=True,
        byte_fallback=True,
    )
    backend = Tokenizer(model)
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    # As a normaliser this applies to each text between special tokens, as llama.cpp does it.
    first = [normalizers.Prepend(SPACE)] if prefix else []
    backend.normalizer = normalizers.Sequence([*first, normalizers.Replace(" ", SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    _begin_with_bos(backend, vocabulary, metadata, default=True)
    return backend, SPMStreamingDetokenizer if prefix else partial(SPMStreamingDetokenizer, trim_space=False)


def _merges_by_score(vocabulary: Vocabulary, scores: list[float]) -> list[tuple[str, str]]:
    """Every way to make a token of two, the token with the highest score first: SentencePiece's own order."""
    kinds = (TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED)
    parts = set(vocabulary.of(*kinds))
    merged = [index for index, kind in enumerate(vocabulary.types) if kind in kinds]
    ranked = sorted(merged, key=lambda index: (-scores[index], index))
    return [pair for index in ranked for pair in _halves(vocabulary.tokens[index], parts)]


def _halves(token: str, parts: Collection[str]) -> Iterator[tuple[str, str]]:
    for at in range(1, len(token)):
        if token[:at] in parts and token[at:] in parts:
            yield token[:at], token[at:]


_BUILDERS = {"gpt2": _byte_level, "llama": _sentencepiece}


# Special tokens and the chat template


def _begin_with_bos(backend: Tokenizer, vocabulary: Vocabulary, metadata: dict[str, Any], *, default: bool) -> None:
    bos = vocabulary.text("bos")
    if bos is None or not metadata.get("tokenizer.ggml.add_bos_token", default):
        return
    backend.post_processor = processors.TemplateProcessing(
        single=[bos, "$A"], pair=[bos, "$A", bos, "$B"], special_tokens=[(bos, vocabulary.special["bos"])]
    )


def _add_special_tokens(backend: Tokenizer, vocabulary: Vocabulary, *, strip_after: bool) -> None:
    """Let tokens that are no ordinary text be found whole. Decoded texts leave out control tokens, but no others."""
    followed = {vocabulary.text("bos"), vocabulary.text("unknown"), "<|endoftext|>"}
    stated = set(vocabulary.of(TokenType.CONTROL, TokenType.UNKNOWN))
    control = stated | ENDS.intersection(vocabulary.tokens)
    backend.add_special_tokens(
        [
            AddedToken(token, normalized=False, special=True, rstrip=strip_after and token not in followed)
            for token in sorted(control, key=vocabulary.ids.__getitem__)
        ]
    )
    plain = [token for token in vocabulary.of(TokenType.USER_DEFINED) if token not in control]
    backend.add_tokens([AddedToken(token, normalized=False, special=False) for token in plain])


def _strips_after(metadata: dict[str, Any]) -> bool:
    """Whether spaces after special tokens are dropped. Nothing states it: llama.cpp knows Phi-3 by its name."""
    name = str(metadata.get("general.name", "")).lower()
    return metadata.get("tokenizer.ggml.model") == "llama" and ("phi-3" in name or "phi3" in name)


def _chat_template(metadata: dict[str, Any]) -> Template | None:
    """The chat template, with those for other uses by their names if there are any."""
    prefix = "tokenizer.chat_template"
    default = metadata.get(prefix)
    others = {key[len(prefix) + 1 :]: value for key, value in metadata.items() if key.startswith(f"{prefix}.")}
    if not all(isinstance(template, str) for template in (default or "", *others.values())):
        raise GgufError(f"its {prefix} is no text")
    if not others:
        return default
    return others if default is None else {"default": default, **others}
