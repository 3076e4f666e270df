"""How byte-level vocabularies split a text before they merge bytes, by the names that llama.cpp gives the ways.

A text is split by the first expression, the pieces by the next one, and so on; what an expression does not match stays
a piece too. The expressions are those of the models' own tokenizer.json. Names and expressions:
https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

_SUFFIXES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_REST_WITH_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_THREE_DIGITS = rf"{_SUFFIXES}|{_WORD}|\p{{N}}{{1,3}}|{_REST}"
_ONE_DIGIT = rf"{_SUFFIXES}|{_WORD}|\p{{N}}|{_REST}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*")
_PUNCTUATION = r"[!-/:-~！-／：-～‘-‟　-。]"
_CJK = "[一-龥ࠀ-一가-퟿]+"
_DEEPSEEK_V3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Split:
    """A way to split texts, and what goes with it.

    With `whole_words`, a piece that is a token becomes it whatever its merges lead to. `bos` says whether texts begin
    with BOS by default, `composed` whether characters are composed first (NFC).
    """

    expressions: tuple[str, ...]
    whole_words: bool = False
    bos: bool = False
    composed: bool = False


_LLAMA3 = Split((_THREE_DIGITS,), whole_words=True, bos=True)
_QWEN2 = Split((_ONE_DIGIT,))
_PLAIN = Split((_GPT2,))
_DIGITS = Split((r"\p{N}", _GPT2))
_GPT4O = Split((rf"{_CASED[0]}{_SUFFIXES}?|{_CASED[1]}{_SUFFIXES}?|\p{{N}}{{1,3}}|{_REST_WITH_SLASH}",))

SPLITS: Mapping[str, Split] = {
    # llama.cpp's own for files that name no way: a compromise, which is no model's.
    "default": Split((r"[\p{P}$+<=>^~|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral"), _LLAMA3),
    **dict.fromkeys(("dbrx", "smaug-bpe"), Split((_THREE_DIGITS,))),
    # Qwen's own normaliser composes characters; what is derived from it has none.
    "qwen2": replace(_QWEN2, composed=True),
    **dict.fromkeys(("deepseek-r1-qwen", "kormo", "megrez", "stablelm2"), _QWEN2),
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "mellum", "exaone4", "trillion"), _PLAIN),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), _DIGITS),
    "tekken": Split((rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}|{_REST_WITH_SLASH}",), whole_words=True, bos=True),
    **dict.fromkeys(("gpt-4o", "llama4"), _GPT4O),
    # The first class, which tokenizer.json writes out, is that of letters with a case.
    "deepseek-llm": Split(
        (r"[\r\n]", r"\s?[\p{Lu}\p{Ll}\p{Lt}]+", rf"\s?{_PUNCTUATION}+", r"\s+$", _CJK, r"\p{N}+"),
    ),
    "deepseek-coder": Split((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}")),
    "deepseek-v3": Split((r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", _DEEPSEEK_V3)),
}
