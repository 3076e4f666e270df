"""The grammars last used, within a limit of bytes. Each is made once, however many requests ask for it."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future

from parallm_openai.text.grammar.token_grammar import GrammarError, TokenGrammar

# A refusal is kept too, and takes about this much.
REFUSAL_BYTES = 1024
MOST_ENTRIES = 4096

Outcome = TokenGrammar | GrammarError
Making = Future[tuple[TokenGrammar, int]]


class GrammarCache:
    """Outcomes of compiling by the grammar's text. Thread-safe; waits for nothing."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        # Reentrant: settling a future may call back in here.
        self._lock = threading.RLock()
        self._outcomes: OrderedDict[bytes, tuple[Outcome, int]] = OrderedDict()
        self._in_progress: dict[bytes, Making] = {}
        self.bytes = 0

    def get(self, text: str, make: Callable[[str], Making]) -> Future[TokenGrammar]:
        """The grammar of `text`. `make` makes it, and its size, unless it is kept or being made.

        The future fails with GrammarError if the text is refused, or was refused before.
        """
        key = hashlib.blake2b(text.encode()).digest()
        found: Future[TokenGrammar] = Future()
        with self._lock:
            if key in self._outcomes:
                self._outcomes.move_to_end(key)
                _settle(found, self._outcomes[key][0])
                return found
            making = self._in_progress.get(key)
            if making is None:
                making = self._in_progress[key] = make(text)
                making.add_done_callback(lambda made: self._keep(key, len(text), made))
        making.add_done_callback(lambda made: _pass_on(made, found))
        return found

    def _keep(self, key: bytes, length: int, made: Making) -> None:
        error = made.exception()
        with self._lock:
            self._in_progress.pop(key, None)
            if error is None:
                grammar, size = made.result()
                self._add(key, grammar, size + length)
            elif isinstance(error, GrammarError):
                self._add(key, error, REFUSAL_BYTES)

    def _add(self, key: bytes, outcome: Outcome, size: int) -> None:
        self._outcomes[key] = (outcome, size)
        self.bytes += size
        while self.bytes > self._limit or len(self._outcomes) > MOST_ENTRIES:
            _, (_, freed) = self._outcomes.popitem(last=False)
            self.bytes -= freed


def _settle(found: Future[TokenGrammar], outcome: Outcome) -> None:
    # A request that was given up has cancelled its future.
    if not found.set_running_or_notify_cancel():
        return
    if isinstance(outcome, GrammarError):
        found.set_exception(GrammarError(*outcome.args))
    else:
        found.set_result(outcome)


def _pass_on(made: Making, found: Future[TokenGrammar]) -> None:
    error = made.exception()
    if error is None:
        _settle(found, made.result()[0])
    elif isinstance(error, GrammarError):
        _settle(found, error)
    elif found.set_running_or_notify_cancel():
        found.set_exception(error)
