"""Log lines of bounded length: an exception may quote what a client has sent."""

from __future__ import annotations

import logging

LONGEST = 8000


class BoundedFormatter(logging.Formatter):
    """Leaves out the middle of what is too long: an error's own words stand at the end of its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"


def set_up(level: str) -> None:
    """Log to standard error from `level` on."""
    handler = logging.StreamHandler()
    handler.setFormatter(BoundedFormatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    for noisy in ("httpx", "httpcore", "huggingface_hub", "asyncio"):
        logging.getLogger(noisy).setLevel("WARNING")
