"""The process in which a client's grammar is tried before the server compiles it. Run as a script, never imported.

Compiling is native code: a hostile grammar can overflow its stack, fill the memory or never end. So this process
forks for each grammar: what goes wrong there costs that fork, and the request alone gets an error.

It reads JSON objects, one a line. The first sets it up: `tokenizer` (the text of a tokenizer.json), `n_vocab`, `eos`,
`limits` (of llguidance's parser), `bytes` (the memory that one grammar may take) and `stack` (in bytes). Each further
one is a request, `{"grammar": text, "seconds": CPU time}`, and gets one line as its answer, `{"error", "bytes",
"status"}`: why the grammar is refused, or null; the memory that it took; and, if the fork ended without an answer, its
exit status. This file imports llguidance and psutil alone, so that it starts in a moment.
"""

from __future__ import annotations

import json
import math
import os
import random
import resource
import threading
import time
from typing import Any, NoReturn, TextIO

import psutil
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

# Exit statuses of a fork that exceeded its time or its memory.
TOO_SLOW, TOO_LARGE = 70, 71
WATCH_SECONDS = 0.02
# A grammar may fail only after some tokens of an answer. Following random tokens finds most of those grammars; of JSON,
# many of them are white space, which shows nothing.
WALKS, WALK_TOKENS, WALK_SECONDS = 8, 48, 0.15
# The engine takes each of these steps while every other request waits for it.
SLOWEST_STEP = 0.5


class Watchdog(threading.Thread):
    """Ends this process when it takes too long or too much memory, or when its parent has gone."""

    def __init__(self, seconds: float, memory: int) -> None:
        super().__init__(daemon=True)
        self._process = psutil.Process()
        self._parent = os.getppid()
        self._before = self.resident
        self._seconds = time.process_time() + seconds
        self._memory = memory

    @property
    def resident(self) -> int:
        return int(self._process.memory_info().rss)

    @property
    def grown(self) -> int:
        return max(0, self.resident - self._before)

    def run(self) -> None:
        while os.getppid() == self._parent:
            if time.process_time() > self._seconds:
                os._exit(TOO_SLOW)
            if self.grown > self._memory:
                os._exit(TOO_LARGE)
            time.sleep(WATCH_SECONDS)
        os._exit(0)


def problem(tokens: LLTokenizer, grammar: str, limits: LLParserLimits) -> str | None:
    """Why a grammar cannot be used; None if it can."""
    failed, messages = LLMatcher.validate_grammar_with_warnings(grammar, tokens, limits=limits)
    if failed:
        return messages[0]
    matcher = LLMatcher(tokens, grammar, log_level=0, limits=limits)
    rng = random.Random(0)
    deadline = time.process_time() + WALK_SECONDS
    for number in range(WALKS):
        with Step():
            own = matcher.deep_copy()
        # The first walk is taken to its end, however slow the machine is.
        if error := walk(own, rng, deadline if number else math.inf):
            return error
    return None


def walk(matcher: LLMatcher, rng: random.Random, deadline: float) -> str | None:
    """Follow random tokens that the grammar allows. Returns the error that comes of it, if any."""
    for _ in range(WALK_TOKENS):
        # Text that the grammar forces shows nothing, however long it is.
        if forced := matcher.compute_ff_tokens():
            matcher.consume_tokens(forced)
        with Step():
            mask = matcher.compute_bitmask()
        if matcher.is_error():
            return matcher.get_error()
        token = some_token(mask, rng)
        if token is None or matcher.is_stopped() or time.process_time() > deadline:
            break
        with Step():
            matcher.consume_token(token)
            # Rejected drafts are rolled back, which is impossible with some options of lexemes.
            matcher.rollback(1)
            matcher.consume_token(token)
        if matcher.is_error():
            return matcher.get_error()
    return None


class TooSlow(Exception):
    """Each token would take too long."""


class Step:
    """Raises TooSlow after a step that took longer than one may."""

    def __enter__(self) -> None:
        self._began = time.thread_time()

    def __exit__(self, *_: object) -> None:
        if time.thread_time() - self._began > SLOWEST_STEP:
            raise TooSlow("it takes too long for each token")


def some_token(mask: bytes, rng: random.Random) -> int | None:
    """The first token of the mask after a random place."""
    bits = int.from_bytes(mask, "little")
    if not bits:
        return None
    start = rng.randrange(len(mask) * 8)
    rest = bits >> start
    place = start if rest else 0
    rest = rest or bits
    return place + (rest & -rest).bit_length() - 1


def answer(tokens: LLTokenizer, settings: dict[str, Any], request: dict[str, Any], answers: TextIO) -> NoReturn:
    """In a fork: try the grammar, reply, and end."""
    watchdog = Watchdog(request["seconds"], settings["bytes"])
    watchdog.start()

    def run() -> None:
        try:
            error = problem(tokens, request["grammar"], LLParserLimits(**settings["limits"]))
        except TooSlow as slow:
            error = str(slow)
        reply(answers, error=error, bytes=watchdog.grown)
        os._exit(0)

    threading.stack_size(settings["stack"])
    worker = threading.Thread(target=run)
    worker.start()
    worker.join()
    os._exit(1)


def reply(answers: TextIO, *, error: str | None = None, bytes: int = 0, status: int | None = None) -> None:
    answers.write(json.dumps({"error": error, "bytes": bytes, "status": status}) + "\n")
    answers.flush()


def main() -> None:
    # What libraries print must not get among the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    requests = os.fdopen(0, encoding="utf-8")
    # A crash is expected here and needs no core file.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    settings = json.loads(requests.readline())
    tokens = LLTokenizer(settings["tokenizer"], n_vocab=settings["n_vocab"], eos_token=settings["eos"] or None)
    for line in requests:
        fork = os.fork()
        if not fork:
            answer(tokens, settings, json.loads(line), answers)
        _, status = os.waitpid(fork, 0)
        if status:
            reply(answers, status=os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
