"""Grammars from JSON schemas, regular expressions and Lark, compiled by llguidance within bounds."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from parallm_openai.text.grammar.cache import GrammarCache
from parallm_openai.text.grammar.compile_queue import CompileQueue
from parallm_openai.text.grammar.token_grammar import GrammarError, TokenGrammar
from parallm_openai.text.grammar.trial import GrammarTrial, TrialLimits
from parallm_openai.text.schema.normalize import SchemaError, schema_text

T = TypeVar("T")

# Grammars that are tried at the same time.
TRIALS = 2
CACHED_BYTES = 256 * 2**20
# Threads on which requests wait for their grammars.
WAITING = 256
# llguidance recurses into a grammar: one that fits the trial's stack fits this one.
STACK_BYTES = 4 * TrialLimits.stack
# The limits of a trial are tighter than those of a sequence, because a trial sees only a part of the grammar.
TRIAL_PARSER = {"max_lexer_states": 50_000, "verbose_errors": False}
OWN_PARSER = LLParserLimits(
    max_items_in_row=8_000,
    step_lexer_fuel=800_000,
    step_max_items=200_000,
    max_lexer_states=100_000,
    verbose_errors=False,
)


class Grammars:
    """Compiles grammars for one tokenizer and keeps those last used. Thread-safe; compiling takes a while.

    Each is tried in another process first (`trial.py`): one that crashes, hangs or fills the memory does so there.
    """

    def __init__(
        self, tokenizer: Any, vocab_size: int, eos_ids: Iterable[int], limits: TrialLimits | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_ids = sorted(eos_ids)
        self._limits = limits or TrialLimits(parser=TRIAL_PARSER)
        self._lock = threading.Lock()
        self._tokens: LLTokenizer | None = None
        self._trials: list[GrammarTrial] = []
        self._own_trial = threading.local()
        self._cache = GrammarCache(CACHED_BYTES)
        self._queue = CompileQueue(self._compile, TRIALS)
        # Threads of its own, so that nothing else that the server does on threads waits for a grammar.
        self._executor = ThreadPoolExecutor(WAITING, thread_name_prefix="grammar-wait")

    def json_schema(self, schema: Mapping[str, Any]) -> TokenGrammar:
        """JSON that the schema accepts, without properties that it does not name (see `schema/closing.py`).

        Raises GrammarError naming the keyword that cannot be enforced.
        """
        try:
            text = schema_text(schema)
        except SchemaError as error:
            raise GrammarError(str(error)) from error
        return self._compiled(LLMatcher.grammar_from_json_schema(text))

    def regex(self, pattern: str) -> TokenGrammar:
        """Text that matches the whole pattern (Rust syntax, no look-around)."""
        return self._compiled(LLMatcher.grammar_from_regex(pattern))

    def lark(self, grammar: str) -> TokenGrammar:
        """Text of the `start` rule of a Lark grammar, as llguidance reads it."""
        # llguidance would read plain text as its own JSON, too, and a client could set limits and options with that.
        return self._compiled(json.dumps({"grammars": [{"lark_grammar": grammar}]}, ensure_ascii=False))

    def submit(self, compiled: Callable[[], TokenGrammar]) -> Future[TokenGrammar]:
        """Run one of the calls above on a thread of this compiler."""
        return self._executor.submit(compiled)

    def close(self) -> None:
        """Give up all grammars that are being compiled."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._queue.close()
        for trial in self._trials:
            trial.close()

    def _compiled(self, grammar: str) -> TokenGrammar:
        return self._cache.get(grammar, self._queue.put).result()

    def _compile(self, grammar: str, slow: bool) -> tuple[TokenGrammar, int]:
        """On one of the queue's threads."""
        tokens = self._token_table()
        size = self._trial().run(grammar, self._limits.slow_seconds if slow else self._limits.quick_seconds)
        prototype = on_deep_stack(lambda: LLMatcher(tokens, grammar, log_level=0, limits=OWN_PARSER))
        if prototype.is_error():
            raise GrammarError(prototype.get_error().strip())
        # The memory of the trial, and the same again for what matchers add while they run.
        return TokenGrammar(prototype, self._vocab_size), 2 * size

    def _trial(self) -> GrammarTrial:
        """This thread's own."""
        if not hasattr(self._own_trial, "trial"):
            text = self._tokenizer.backend_tokenizer.to_str()
            self._own_trial.trial = GrammarTrial(text, self._size, self._eos_ids, self._limits)
            self._trials.append(self._own_trial.trial)
        trial: GrammarTrial = self._own_trial.trial
        return trial

    @property
    def _size(self) -> int:
        # Some models have more ids than there are tokens; some tokenizers have tokens without a logit.
        return max(self._vocab_size, len(self._tokenizer))

    def _token_table(self) -> LLTokenizer:
        """llguidance's own table of the tokenizer; making it takes a second for a large vocabulary."""
        with self._lock:
            if self._tokens is None:
                backend = getattr(self._tokenizer, "backend_tokenizer", None)
                if backend is None:
                    raise GrammarError("this model's tokenizer cannot be constrained")
                self._tokens = LLTokenizer(backend.to_str(), n_vocab=self._size, eos_token=self._eos_ids or None)
            return self._tokens


def on_deep_stack(work: Callable[[], T]) -> T:
    """Run `work` on a thread whose stack is deeper than the one of its trial."""
    results: Future[T] = Future()

    def run() -> None:
        try:
            results.set_result(work())
        except BaseException as error:
            # A panic of native code is no Exception.
            results.set_exception(GrammarError(f"it cannot be compiled: {error}"))

    with _stack_size:
        before = threading.stack_size(STACK_BYTES)
        try:
            threading.Thread(target=run, name="grammar-compile", daemon=True).start()
        finally:
            threading.stack_size(before)
    return results.result()


_stack_size = threading.Lock()
