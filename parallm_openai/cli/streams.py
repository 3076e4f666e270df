"""Standard input, output and error of a command, which may be closed, full, or unable to show a character."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from parallm_openai.cli.failure import say

# By these an operating system says that it takes no more; a file that a setting names has its name in the error.
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


class _Unfailing(io.FileIO):
    """A file of which what cannot be written is lost: messages that nobody can read must not end a server."""

    def write(self, data: Any) -> int:
        with contextlib.suppress(OSError):
            if (written := super().write(data)) is not None:
                return written
        return memoryview(data).nbytes


def _unfailing(stream: TextIO) -> TextIO:
    try:
        file = io.BufferedWriter(_Unfailing(stream.fileno(), "w", closefd=False))
    except OSError:  # What stands in for it is no file.
        return stream
    return io.TextIOWrapper(file, encoding=stream.encoding, errors="replace", line_buffering=True)


def prepare() -> None:
    """Have all three streams, whatever the command was started with, and have them show every text somehow."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        # Python has None for one that is closed, and the next file to be opened would take its place.
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    sys.stderr = _unfailing(sys.stderr)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A model may write what is no character, and a terminal may lack some.
        sys.stdout.reconfigure(errors="replace")


def let_output_fail() -> None:
    """From now on what cannot be written to standard output is lost as well."""
    sys.stdout = _unfailing(sys.stdout)


@contextlib.contextmanager
def full_explained() -> Iterator[None]:
    """End the command with one sentence if what it prints cannot be written, as on a full disk."""
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        if error.errno not in FULL or error.filename is not None:
            raise
        # Python's own end would try to write the rest again.
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        say(f"the output cannot be written: {error.strerror}")
        raise SystemExit(1) from None
