"""The command in a terminal of its own, as a user has it in front of them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence

from support.processes import COMMAND, ROOT

SECONDS = 120
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
CTRL_C, CTRL_D = b"\x03", b"\x04"


class Terminal:
    """A process whose terminal has 80 columns. `output` is what it has shown, `text` the same without colours."""

    def __init__(self, *arguments: str, command: Sequence[str] = COMMAND, **environment: str) -> None:
        self._own, other = pty.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.process = subprocess.Popen(
            [*command, *arguments],
            stdin=other,
            stdout=other,
            stderr=other,
            cwd=ROOT,
            env={**os.environ, "TERM": "xterm", **environment},
            # Ctrl-C goes to what runs in the foreground of the session's terminal.
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0) and None,
        )
        os.close(other)
        self._shown = b""
        self._seen = 0

    @property
    def output(self) -> str:
        return self._shown.decode(errors="replace")

    @property
    def text(self) -> str:
        return ESCAPE.sub("", self.output)

    def send(self, keys: str | bytes) -> None:
        os.write(self._own, keys.encode() if isinstance(keys, str) else keys)

    def wait_for(self, text: str) -> None:
        """Read until the text has come, after what an earlier call has waited for."""
        deadline = time.monotonic() + SECONDS
        while text not in self.text[self._seen :]:
            assert time.monotonic() < deadline, self.output
            assert self._read(), self.output
        self._seen = self.text.index(text, self._seen) + len(text)

    def press(self, keys: str | bytes, text: str) -> None:
        """Send keys until a text comes: Python sees an interrupt late that comes just before it begins to wait."""
        deadline = time.monotonic() + SECONDS
        while text not in self.text[self._seen :]:
            assert time.monotonic() < deadline, self.output
            self.send(keys)
            again = time.monotonic() + 1
            while text not in self.text[self._seen :] and time.monotonic() < again:
                assert self._read(), self.output
        self.wait_for(text)

    def end(self) -> int:
        """Read to the end; the exit status."""
        deadline = time.monotonic() + SECONDS
        while self._read():
            assert time.monotonic() < deadline, self.output
        return self.process.wait(SECONDS)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._own)

    def _read(self) -> bool:
        """Take in what is there now; False at the end."""
        ready, _, _ = select.select([self._own], [], [], 0.2)
        # A terminal without a process reads as an error on Linux, and as an end on macOS.
        with contextlib.suppress(OSError):
            if not ready:
                return True
            piece = os.read(self._own, 65536)
            self._shown += piece
            return bool(piece)
        return False


def program(code: str) -> list[str]:
    """A command that runs `code` and then the command line with the arguments that follow."""
    return [sys.executable, "-c", f"{code}\nfrom parallm_openai.__main__ import main\nmain()"]
