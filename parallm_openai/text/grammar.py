"""Grammars from JSON schemas, regular expressions and Lark, compiled by llguidance."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer

from parallm_openai.engine.constraint import Mask, mask_words

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

CACHED_GRAMMARS = 256
# Without a bound, a model that has lost its way writes white space for ever.
WHITE_SPACE = r"[\x20\x0A\x0D\x09]{1,40}"
# White space where JSON allows it; `lenient` would skip the keywords that it cannot enforce.
JSON_OPTIONS: JsonCompileOptions = {"whitespace_pattern": WHITE_SPACE, "lenient": False}


def closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema with `additionalProperties: false` wherever it leaves open which properties there are.

    What matches still matches the schema itself, and a model is not tempted to make up
    properties. Schemas put together with `allOf` are left alone: their parts must stay open to each other.
    """
    if "allOf" in json.dumps(schema):
        return dict(schema)
    return _closed(schema, name_of=None)


def _closed(part: Any, name_of: str | None) -> Any:
    if name_of in _VALUES or not isinstance(part, (Mapping, list)):
        return part
    if isinstance(part, list):
        return [_closed(item, None) for item in part]
    # Below these, keys are names and not keywords.
    keywords = name_of not in ("properties", "$defs", "definitions", "patternProperties")
    inner = {key: _closed(value, key if keywords else None) for key, value in part.items()}
    if keywords and isinstance(part.get("properties"), Mapping) and not _OPEN & part.keys():
        inner["additionalProperties"] = False
    return inner


_VALUES = frozenset({"const", "enum", "default", "examples", "required"})
_OPEN = frozenset({"additionalProperties", "patternProperties", "unevaluatedProperties", "anyOf", "oneOf", "$ref"})


class GrammarError(ValueError):
    """The grammar is not valid, or says what cannot be enforced."""


class TokenGrammar:
    """A compiled grammar over one tokenizer's tokens."""

    def __init__(self, prototype: LLMatcher, vocab_size: int) -> None:
        self._prototype = prototype
        self._vocab_size = vocab_size

    def matcher(self) -> TokenMatcher:
        return TokenMatcher(self._prototype.deep_copy(), self._vocab_size)


class TokenMatcher:
    """One sequence's place in its grammar.

    llguidance never raises for what a model writes or a grammar costs: it enters an error state, kept here.
    """

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._words = mask_words(vocab_size)
        # A draft model asks for the same places that the target then verifies.
        self._known: dict[tuple[int, ...], Mask | None] = {}

    @property
    def finished(self) -> bool:
        return bool(self._matcher.is_stopped())

    @property
    def error(self) -> str | None:
        return self._matcher.get_error() or None if self._matcher.is_error() else None

    def allowed(self, drafts: tuple[int, ...]) -> Mask | None:
        if drafts not in self._known:
            self._known[drafts] = self._after(drafts)
        return self._known[drafts]

    def _after(self, drafts: tuple[int, ...]) -> Mask | None:
        taken = self._matcher.try_consume_tokens(list(drafts)) if drafts else 0
        mask = None
        if taken == len(drafts) and not self._matcher.is_stopped() and not self._matcher.is_error():
            # llguidance's own masks are longer: they end with a bit that is no token.
            mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint32)[: self._words]
        if taken:
            self._matcher.rollback(taken)
        return mask

    def advance(self, token: int) -> None:
        self._known.clear()
        self._matcher.consume_token(token)


class Grammars:
    """Compiles grammars for one tokenizer and keeps those last used. Thread-safe; compiling takes a while."""

    def __init__(self, tokenizer: Any, vocab_size: int, eos_ids: Iterable[int]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_ids = sorted(eos_ids)
        self._lock = threading.Lock()
        self._tokens: LLTokenizer | None = None
        self._compiled = lru_cache(CACHED_GRAMMARS)(self._compile)

    def json_schema(self, schema: Mapping[str, Any]) -> TokenGrammar:
        """JSON that the schema accepts, closed. Raises GrammarError naming the keyword that cannot be enforced."""
        text = json.dumps(closed(schema), ensure_ascii=False)
        return self._compiled(LLMatcher.grammar_from_json_schema(text, JSON_OPTIONS))

    def regex(self, pattern: str) -> TokenGrammar:
        """Text that matches the whole pattern (Rust syntax, no look-around)."""
        return self._compiled(LLMatcher.grammar_from_regex(pattern))

    def lark(self, grammar: str) -> TokenGrammar:
        """Text of the `start` rule of a Lark grammar, as llguidance reads it."""
        return self._compiled(LLMatcher.grammar_from_lark(grammar))

    def _compile(self, grammar: str) -> TokenGrammar:
        tokens = self._token_table()
        failed, messages = LLMatcher.validate_grammar_with_warnings(grammar, tokens)
        if failed:
            raise GrammarError(messages[0].strip())
        prototype = LLMatcher(tokens, grammar, log_level=0)
        if prototype.is_error():
            raise GrammarError(prototype.get_error().strip())
        return TokenGrammar(prototype, self._vocab_size)

    def _token_table(self) -> LLTokenizer:
        """llguidance's own view of the tokenizer; a second's work for a large vocabulary."""
        with self._lock:
            if self._tokens is None:
                backend = getattr(self._tokenizer, "backend_tokenizer", None)
                if backend is None:
                    raise GrammarError("this model's tokenizer cannot be constrained")
                # Padded heads have ids without a token; some tokenizers have tokens without a logit.
                size = max(self._vocab_size, len(self._tokenizer))
                self._tokens = LLTokenizer(backend.to_str(), n_vocab=size, eos_token=self._eos_ids or None)
            return self._tokens
