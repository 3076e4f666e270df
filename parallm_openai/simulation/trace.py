"""Which requests come when: a line of JSON for each.

A prompt begins with parts of named streams of tokens. Two prompts that begin with the same streams have those tokens in
common, and what follows is a prompt's own. An answer continues the last stream of its prompt, so that a session's next
turn can begin with it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from json import dumps
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from parallm_openai.simulation.problems import FileError, first_problem

Count = Annotated[int, Field(ge=1)]
# Seconds: some four months. Later, a clock could not tell apart two steps of a fast machine.
LATEST = 1e7


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """`at` is in seconds since the trace began.

    `prefix` are the streams that the prompt begins with, each with the number of its tokens. Requests of one `session`
    are sent one after another: one that is due before the answer to the last has ended is sent when it ends.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)

    at: Annotated[float, Field(ge=0, le=LATEST)]
    prompt_tokens: Count
    output_tokens: Count
    prefix: tuple[tuple[Annotated[str, Field(min_length=1)], Count], ...] = ()
    session: Annotated[str, Field(min_length=1)] | None = None

    @property
    def shared_tokens(self) -> int:
        return sum(length for _, length in self.prefix)


_LINE = TypeAdapter(TraceRequest)


def read_trace(file: Path, context_length: int | None = None) -> list[TraceRequest]:
    """The requests of a file, in the order of time. Raises FileError.

    If a model's `context_length` is given, it must have room for each request's prompt and answer.
    """
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"{file}: {error.strerror if isinstance(error, OSError) else 'is not UTF-8'}") from error
    requests: list[TraceRequest] = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                requests.append(_parsed(line, requests[-1].at if requests else 0.0, context_length))
            except ValueError as error:
                raise FileError(f"{file}: line {number}: {error}") from error
    if not requests:
        raise FileError(f"{file}: has no requests")
    return requests


def _parsed(line: str, not_before: float, context_length: int | None) -> TraceRequest:
    try:
        request = _LINE.validate_json(line, strict=True)
    except ValidationError as error:
        # To the parser each line is a text of its own.
        raise ValueError(first_problem(error).replace(" at line 1 column ", " at column ")) from error
    if request.at < not_before:
        raise ValueError(f"at: must not be before the {not_before:g} of the line before")
    if request.shared_tokens > request.prompt_tokens:
        raise ValueError(f"prefix: has {request.shared_tokens} tokens, more than prompt_tokens")
    tokens = request.prompt_tokens + request.output_tokens
    if context_length is not None and tokens > context_length:
        raise ValueError(f"prompt_tokens and output_tokens: {tokens} together, more than the model's {context_length}")
    return request


def write_trace(file: Path, requests: Iterable[TraceRequest]) -> None:
    with file.open("w", encoding="utf-8") as lines:
        for request in requests:
            fields = {name: value for name, value in asdict(request).items() if value not in (None, ())}
            lines.write(dumps(fields, ensure_ascii=False))
            lines.write("\n")


class Streams:
    """Tokens for streams. A stream is one token again and again: all that counts is what two sequences share."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._unnamed = 0

    def prompt(self, request: TraceRequest) -> tuple[tuple[int, ...], int]:
        """A prompt's tokens, and the one that its answer consists of."""
        tokens: tuple[int, ...] = ()
        token = 0
        for name, length in request.prefix:
            token = self._numbers.setdefault(name, len(self._numbers) * 2)
            tokens += (token,) * length
        own = request.prompt_tokens - len(tokens)
        if own:
            # Odd numbers are of streams without a name.
            self._unnamed += 1
            token = self._unnamed * 2 - 1
            tokens += (token,) * own
        return tokens, token
