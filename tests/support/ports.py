"""Ports for programs that must be told which to take."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack

# Below those that Linux and macOS give to connections, and to servers that ask for any: tests run side by side.
LEAST, MOST = 10_000, 32_000


def free_ports(count: int) -> int:
    """The first of so many neighbouring ports that nobody has now."""
    while True:
        first = random.SystemRandom().randrange(LEAST, MOST - count)
        try:
            with ExitStack() as taken:
                for port in range(first, first + count):
                    taken.enter_context(socket.socket()).bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
