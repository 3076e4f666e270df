"""What Ctrl-C does to a command: it ends it at once and without a traceback, whatever the command is doing.

Nothing heavy is imported here, so that this is in force before anything else is imported.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType

# The exit status that shells give for an interrupt.
INTERRUPTED = 130
SHOW_CURSOR = b"\x1b[?25h\r\n"


class _Interrupts:
    """What the next interrupt does: it raises, is ignored, or ends the process."""

    def __init__(self) -> None:
        self.may_raise = False
        self.raises_again = False
        self.ignored = False

    def handle(self, signum: int, frame: FrameType | None) -> None:
        if self.may_raise:
            self.may_raise = self.raises_again
            raise KeyboardInterrupt
        if not self.ignored:
            leave()


_interrupts = _Interrupts()


def install() -> None:
    """From now on an interrupt ends the process at once.

    Python's own way would be an exception. Libraries catch it, threads inside MLX outlive it, and a second one in the
    middle of cleaning up is printed with all its lines.
    """
    signal.signal(signal.SIGINT, _interrupts.handle)


@contextlib.contextmanager
def raised_once() -> Iterator[None]:
    """Inside the block the first interrupt raises KeyboardInterrupt; a second one does what it would outside."""
    before, _interrupts.may_raise = _interrupts.may_raise, True
    try:
        yield
    finally:
        _interrupts.may_raise = before and _interrupts.may_raise


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Inside the block every interrupt raises KeyboardInterrupt.

    `input` needs that: an interrupt that comes while it ends with another one, and raises nothing, is a SystemError.
    """
    with raised_once():
        _interrupts.raises_again = True
        try:
            yield
        finally:
            _interrupts.raises_again = False


@contextlib.contextmanager
def ignored() -> Iterator[None]:
    """Inside the block an interrupt does nothing, except in blocks of `raised_once`."""
    before, _interrupts.ignored = _interrupts.ignored, True
    try:
        yield
    finally:
        _interrupts.ignored = before


def leave() -> None:
    """End the process now, with the terminal as it was."""
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        if os.isatty(2):
            # A progress bar may have hidden it.
            os.write(2, SHOW_CURSOR)
    os._exit(INTERRUPTED)
