"""The grammars last used, bounded by bytes, each made once however many requests ask for it."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future

from parallm_openai.text.grammar import GrammarError, TokenGrammar

# A refusal is remembered too; it takes about this much.
REFUSAL_BYTES = 1024

Outcome = TokenGrammar | GrammarError


class GrammarCache:
    """Outcomes of compiling by the grammar's text. Thread-safe."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._outcomes: OrderedDict[bytes, tuple[Outcome, int]] = OrderedDict()
        self._under_way: dict[bytes, Future[Outcome]] = {}
        self.bytes = 0

    def get(self, text: str, compile: Callable[[str], tuple[TokenGrammar, int]]) -> TokenGrammar:
        """The grammar of `text`, by `compile` (which also tells its size) unless it is known.

        Raises GrammarError, also for a text that was refused before.
        """
        key = hashlib.blake2b(text.encode()).digest()
        with self._lock:
            if key in self._outcomes:
                self._outcomes.move_to_end(key)
                return _granted(self._outcomes[key][0])
            found = self._under_way.get(key)
            if found is None:
                mine = self._under_way[key] = Future()
        if found is not None:
            return _granted(found.result())
        outcome: Outcome
        try:
            outcome, size = compile(text)
        except GrammarError as error:
            outcome, size = error, REFUSAL_BYTES
        except BaseException as error:
            with self._lock:
                del self._under_way[key]
            mine.set_exception(error)
            raise
        with self._lock:
            del self._under_way[key]
            self._keep(key, outcome, size + len(text))
        mine.set_result(outcome)
        return _granted(outcome)

    def _keep(self, key: bytes, outcome: Outcome, size: int) -> None:
        self._outcomes[key] = (outcome, size)
        self.bytes += size
        while self.bytes > self._limit:
            _, (_, freed) = self._outcomes.popitem(last=False)
            self.bytes -= freed


def _granted(outcome: Outcome) -> TokenGrammar:
    if isinstance(outcome, GrammarError):
        raise GrammarError(*outcome.args)
    return outcome
