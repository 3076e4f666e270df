"""Tries a client's grammar in another process, which may crash, hang or fill its memory without harm."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parallm_openai.text.grammar.token_grammar import GrammarError

CHILD = Path(__file__).with_name("child.py")
# Exit statuses of the child's forks.
TOO_SLOW, TOO_LARGE = 70, 71
LONGEST_REASON = 500


class TooSlowError(GrammarError):
    """The grammar took longer than the time given; with more time it might compile."""


@dataclass(frozen=True)
class TrialLimits:
    """The limits of one grammar. It gets `quick_seconds` of CPU time first, then `slow_seconds` if it needs more.

    `stack` and `memory` are bytes; `wall_seconds` is long enough for a busy machine.
    """

    quick_seconds: float = 1.0
    slow_seconds: float = 5.0
    wall_seconds: float = 60.0
    memory: int = 128 * 2**20
    stack: int = 32 * 2**20
    parser: Mapping[str, int | bool] | None = None


class GrammarTrial:
    """One child process (`child.py`), started when it is first needed and again after it has died.

    Only `close` may be called from another thread.
    """

    def __init__(self, tokenizer: str, vocab_size: int, eos_ids: Sequence[int], limits: TrialLimits) -> None:
        self._limits = limits
        self._setup = {
            "tokenizer": tokenizer,
            "n_vocab": vocab_size,
            "eos": list(eos_ids),
            "limits": dict(limits.parser or {}),
            "bytes": limits.memory,
            "stack": limits.stack,
        }
        self._process: subprocess.Popen[str] | None = None
        self._closed = False

    def run(self, grammar: str, seconds: float) -> int:
        """The bytes that the compiled grammar takes. Raises GrammarError if it must not be compiled here."""
        request = {"grammar": grammar, "seconds": seconds}
        # If the process has died since the last grammar, for instance because the system ran out of memory, this
        # grammar is not the cause: a grammar can only harm its own fork. So it is asked again.
        line = self._answer(request) or (None if self._closed else self._answer(request))
        if line is None:
            raise GrammarError("it cannot be compiled")
        answer = json.loads(line)
        if answer["status"] is not None:
            raise _problem(answer["status"])
        if answer["error"] is not None:
            raise GrammarError(_in_short(answer["error"]))
        return int(answer["bytes"])

    def _answer(self, request: Mapping[str, Any]) -> str | None:
        """The child's answer; None if the child has died. Then another one is started."""
        process = self._process or self._start()
        timer = threading.Timer(self._limits.wall_seconds, process.kill)
        timer.daemon = True
        timer.start()
        try:
            answer = self._ask(process, request)
        finally:
            timer.cancel()
        if answer is None:
            self._process = None
            process.wait()
            if not self._closed:
                # So that the next request need not wait for its start.
                self._start()
        return answer

    def _ask(self, process: subprocess.Popen[str], request: Mapping[str, Any]) -> str | None:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            return process.stdout.readline() or None
        except OSError:
            return None

    def _start(self) -> subprocess.Popen[str]:
        # As a script, because importing it as a module would import the whole package. In a session of its own, so
        # that an interrupt at the terminal reaches only the server.
        process = subprocess.Popen(
            [sys.executable, "-P", str(CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )
        self._process = process
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(self._setup) + "\n")
            process.stdin.flush()
        except OSError:
            pass  # It has died already; the next request finds out.
        return process

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._closed = True
        if self._process is not None:
            self._process.kill()


def _problem(status: int) -> GrammarError:
    """The error that the exit status of a fork without an answer stands for."""
    if status == TOO_SLOW:
        return TooSlowError("it takes too long to compile")
    if status == TOO_LARGE:
        return GrammarError("it takes too much memory to compile")
    return GrammarError("it is too deeply nested to compile" if status < 0 else "it cannot be compiled")


def _in_short(reason: str) -> str:
    """llguidance's reason without the whole grammar and without places in llguidance's own code."""
    reason = reason.partition("\n<backtrace>")[0].partition("\n<state>")[0].strip()
    return reason if len(reason) <= LONGEST_REASON else reason[:LONGEST_REASON] + "…"
