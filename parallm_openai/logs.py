"""The log on standard error: lines of text, or of JSON for programs to read.

Each is of bounded length: an exception may quote what a client has sent. A thread of its own writes them, because a
terminal or pipe that nobody reads must not stop the server.
"""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import sys
import threading
from datetime import UTC, datetime
from typing import Any, TextIO

from parallm_openai.settings import LogFormat

LONGEST = 8000
# So many lines may wait to be written; more are left out, and counted.
WAITING = 2000
# Seconds that whoever must know a line written waits for that.
PATIENCE = 1.0
# The attribute of a record with the keys that its line of JSON has besides those of every line.
FIELDS = "fields"


def bounded(text: str) -> str:
    """Leaves out the middle of what is too long: an error's own words stand at the end of its traceback."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"


class BoundedFormatter(logging.Formatter):
    """Lines of text."""

    def format(self, record: logging.LogRecord) -> str:
        return bounded(super().format(record))


class JsonFormatter(logging.Formatter):
    """An object for each record, in one line. A record's own fields go before what every line has."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": bounded(record.getMessage()),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            line["exception"] = bounded(self.formatException(record.exc_info))
        return json.dumps(line, default=str)


class Background(logging.Handler):
    """Has a thread write the lines. Whoever logs an error waits until it is written, for the process may end there."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._lines: queue.Queue[str | threading.Event] = queue.Queue(WAITING)
        self._left_out = 0
        # Whether somebody has waited in vain: nobody else need do so until a line is written again.
        self._stuck = False
        threading.Thread(target=self._write, name="parallm-log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.put_nowait(self.format(record))
        except queue.Full:
            self._left_out += 1
        except Exception:
            self.handleError(record)
        if record.levelno >= logging.ERROR:
            self.flush()

    def flush(self) -> None:
        """Wait until what has been logged is written, if that is possible at all."""
        if self._stuck:
            return
        written = threading.Event()
        try:
            self._lines.put(written, timeout=PATIENCE)
            self._stuck = not written.wait(PATIENCE)
        except queue.Full:
            self._stuck = True

    def _write(self) -> None:
        while True:
            line = self._lines.get()
            if isinstance(line, threading.Event):
                line.set()
                continue
            # Nobody may be there to read it any more.
            with contextlib.suppress(OSError, ValueError):
                self._stream.write(line + "\n")
                self._stream.flush()
            self._stuck = False
            self._tell_of_left_out()

    def _tell_of_left_out(self) -> None:
        if self._left_out and self._lines.empty():
            count, self._left_out = self._left_out, 0
            log.warning("%d lines of the log were left out: nobody read them in time", count)


log = logging.getLogger(__name__)


def set_up(level: str, format: LogFormat = "text") -> None:
    """Log to standard error from `level` on."""
    handler = Background(sys.stderr)
    text = BoundedFormatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(JsonFormatter() if format == "json" else text)
    logging.basicConfig(level=level.upper(), handlers=[handler])
    for noisy in ("httpx", "httpcore", "huggingface_hub", "asyncio"):
        logging.getLogger(noisy).setLevel("WARNING")
