"""Shows the progress of a command's start: in a moving line on a terminal, in lines of the log elsewhere."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterator

log = logging.getLogger("parallm_openai")


@contextlib.contextmanager
def stage(doing: str) -> Iterator[None]:
    """Show that something goes on inside the block, and for how long it has; `doing` names it ("loading demo")."""
    if sys.stderr.isatty():
        with _log_held_back(), _moving_line(doing):
            yield
        return
    began = time.monotonic()
    log.info("%s ...", doing)
    yield
    log.info("%s took %.1f s", doing, time.monotonic() - began)


@contextlib.contextmanager
def _moving_line(doing: str) -> Iterator[None]:
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        progress.add_task(doing, total=None)
        yield


class _Held(logging.Handler):
    """Keeps records."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextlib.contextmanager
def _log_held_back() -> Iterator[None]:
    """Have what is logged inside the block come after it: its lines would break into the one that moves."""
    held = _Held()
    log.addHandler(held)
    log.propagate = False
    try:
        yield
    finally:
        log.propagate = True
        log.removeHandler(held)
        # Without a handler of its own, a command shows no log.
        for record in held.records if logging.getLogger().handlers else ():
            logging.getLogger().handle(record)
