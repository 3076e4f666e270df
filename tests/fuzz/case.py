"""One request of the run, and how to send it again by hand."""

from __future__ import annotations

import base64
import gzip
import json
from dataclasses import dataclass, field
from typing import Any

from fuzz.json_text import encode

JSON = (("Content-Type", "application/json"),)
INLINE_BYTES = 1500


@dataclass(frozen=True)
class Case:
    """`value` is the JSON that `body` says, None where it says none; `label` names the generator that drew it.

    `answer` is a check of a whole answer's text where the request bounds what that may be.
    """

    label: str
    path: str
    body: bytes = b""
    value: Any = None
    method: str = "POST"
    headers: tuple[tuple[str, str], ...] = JSON
    binding: tuple[str, Any] | None = field(default=None, compare=False)

    @classmethod
    def of(cls, label: str, path: str, value: Any, **more: Any) -> Case:
        return cls(label, path, encode(value).encode("utf-8", "surrogatepass"), value, **more)

    @property
    def route(self) -> str:
        return f"{self.method} {self.path.partition('?')[0]}"

    @property
    def begins(self) -> str:
        """Enough of it to know it by."""
        return f"{self.label}, {self.path[:60]} {self.body[:160]!r}"

    def curl(self, url: str) -> str:
        """A line for a shell that sends the same bytes."""
        headers = "".join(f" -H {_quoted(f'{name}: {value}')}" for name, value in self.headers)
        target = f"curl -sS -X {self.method} {_quoted(url + self.path)}{headers}"
        if not self.body:
            return target
        if len(self.body) <= INLINE_BYTES and all(byte >= 32 and byte != 127 for byte in self.body):
            try:
                return f"{target} -d {_quoted(self.body.decode())}"
            except UnicodeDecodeError:
                pass
        packed = base64.b64encode(gzip.compress(self.body, mtime=0)).decode()
        if len(packed) > 20_000:
            return f"{target} # a body of {len(self.body)} bytes that begins {json.dumps(repr(self.body[:200]))}"
        return f"echo {packed} | base64 -d | gunzip | {target} --data-binary @-  # {len(self.body)} bytes"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
