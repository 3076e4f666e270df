"""A process of its own that asks `/health` every 50 ms: no work of the fuzzer's can look like a freeze of the server.

Prints a line for each answer: when it was asked, how long it took, and how much too late this process itself woke up.
"""

from __future__ import annotations

import http.client
import sys
import time

INTERVAL = 0.05
PATIENCE = 600


def main(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    due = time.monotonic()
    while True:
        asked = time.monotonic()
        late = asked - due
        connection.request("GET", "/health")
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200
        ended = time.monotonic()
        print(f"{asked:.4f} {ended - asked:.4f} {late:.4f}", flush=True)
        due = max(ended, asked + INTERVAL)
        time.sleep(due - ended)


if __name__ == "__main__":
    main(int(sys.argv[1]))
