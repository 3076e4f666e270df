"""Answers as they grow, from an engine in this process or from a server, and how they are shown."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TextIO

import httpx

from parallm_openai.cli.sampling import SamplingSettings

if TYPE_CHECKING:
    from parallm_openai.llm import LLM

Message = dict[str, Any]

# A model may read a long prompt for minutes before its first token.
READ_SECONDS = 1800
DIM, PLAIN = "\x1b[2m", "\x1b[0m"


# What moves a terminal's cursor or changes its settings, but for ends of lines and tabs.
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class AnswerError(Exception):
    """There is no answer, or only a part of one; the message says why."""

    def __init__(self, message: str) -> None:
        # It may have a server's words.
        super().__init__(without_controls(message))


def without_controls(text: str) -> str:
    """The text as a terminal may show it, whoever has written it. An end of a line of Windows becomes a plain one."""
    return CONTROLS.sub(lambda found: "" if found[0] == "\r" else "\N{REPLACEMENT CHARACTER}", text)


@dataclass
class Piece:
    """A piece of an answer's text, or of the thoughts before it."""

    text: str
    thought: bool = False


@dataclass
class Cost:
    """What an answer has cost. `seconds` are those after its first token; what a server does not tell is None."""

    tokens: int | None = None
    drafted: int | None = None
    accepted: int | None = None
    to_first: float | None = None
    seconds: float = 0.0

    def __str__(self) -> str:
        parts = [] if self.tokens is None else [f"{self.tokens} tokens"]
        if self.to_first is not None:
            parts.append(f"the first after {self.to_first:.2f} s")
        if self.tokens is not None and self.tokens > 1 and self.seconds > 0:
            parts.append(f"{(self.tokens - 1) / self.seconds:.1f} tokens/s")
        if self.drafted:
            parts.append(f"{(self.accepted or 0) / self.drafted:.0%} of {self.drafted} drafted tokens accepted")
        return ", ".join(parts) or "nothing is known of its cost"


class Source(Protocol):
    """What answers conversations."""

    @property
    def name(self) -> str:
        """The model's."""

    def answer(self, messages: Sequence[Message], sampling: SamplingSettings, cost: Cost) -> Iterator[Piece]:
        """The answer piece by piece; `cost` is filled in as it becomes known. Raises AnswerError."""


def timed(pieces: Iterator[Piece], cost: Cost) -> Iterator[Piece]:
    """The same pieces; notes in `cost` when they came."""
    began = time.perf_counter()
    first = began
    for piece in pieces:
        if cost.to_first is None:
            first = time.perf_counter()
            cost.to_first = first - began
        yield piece
        cost.seconds = time.perf_counter() - first


class LocalSource:
    """An engine in this process."""

    def __init__(self, llm: LLM, template_arguments: Mapping[str, Any]) -> None:
        self._llm = llm
        self._template_arguments = template_arguments

    @property
    def name(self) -> str:
        return self._llm.model.name

    def answer(self, messages: Sequence[Message], sampling: SamplingSettings, cost: Cost) -> Iterator[Piece]:
        from parallm_openai.text.output import GenerationError
        from parallm_openai.text.templates import TemplateError

        try:
            stream = self._llm.stream(
                list(messages),
                sampling.params(),
                chat_template_kwargs=self._template_arguments,
                stop=sampling.stop,
            )
            with closing(stream):
                try:
                    yield from timed(stream_pieces(stream), cost)
                finally:
                    note_counts(stream.counts, cost)
        except (ValueError, GenerationError, TemplateError) as error:
            raise AnswerError(str(error)) from error


def stream_pieces(events: Any) -> Iterator[Piece]:
    """The texts among an answer's events."""
    from parallm_openai.text.events import Content, Reasoning

    for event in events:
        if isinstance(event, Content | Reasoning):
            yield Piece(event.text, isinstance(event, Reasoning))


def note_counts(counts: Mapping[str, Any], cost: Cost) -> None:
    """Fill in what a result or stream of the engine in this process counts."""
    cost.tokens, cost.drafted, cost.accepted = len(counts["token_ids"]), counts["drafted"], counts["accepted"]


class ServerSource:
    """A server that speaks OpenAI's API. Raises AnswerError if it does not answer, or has no models."""

    def __init__(self, url: str, model: str | None, key: str | None, template_arguments: Mapping[str, Any]) -> None:
        self._url = url.rstrip("/").removesuffix("/v1")
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        try:
            httpx.URL(url)
            # A first connection to a server that is not there fails soon.
            self._client = httpx.Client(headers=headers, timeout=httpx.Timeout(READ_SECONDS, connect=10))
        except httpx.InvalidURL as error:
            raise AnswerError(f"{url} is no URL ({error})") from error
        except UnicodeEncodeError as error:
            raise AnswerError("the API key has characters that no header can have") from error
        self._template_arguments = template_arguments
        names = self._models()
        if model is not None and model not in names:
            raise AnswerError(f"{self._url} has no model {model}; it has {', '.join(names)}")
        self.name = model or names[0]

    def _models(self) -> list[str]:
        answer = self._sent(httpx.Request("GET", f"{self._url}/v1/models", headers=self._client.headers))
        try:
            answer.read()
            names = [str(model["id"]) for model in answer.json()["data"]]
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise AnswerError(f"{self._url} does not list its models") from error
        finally:
            answer.close()
        if not names:
            raise AnswerError(f"{self._url} has no models")
        return names

    def answer(self, messages: Sequence[Message], sampling: SamplingSettings, cost: Cost) -> Iterator[Piece]:
        yield from timed(self._pieces(self._body(messages, sampling), cost), cost)

    def _body(self, messages: Sequence[Message], sampling: SamplingSettings) -> dict[str, Any]:
        body = {"model": self.name, "messages": list(messages), **sampling.given}
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if self._template_arguments:
            body["chat_template_kwargs"] = dict(self._template_arguments)
        return body | {"stream": True, "stream_options": {"include_usage": True}}

    def _pieces(self, body: Mapping[str, Any], cost: Cost) -> Iterator[Piece]:
        # A half of a surrogate pair, which a terminal can give, is no character that JSON could have in UTF-8.
        content = json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = self._client.build_request(
            "POST", f"{self._url}/v1/chat/completions", content=content, headers=headers
        )
        answer = self._sent(request)
        try:
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    yield from _read_chunk(json.loads(line.removeprefix("data: ")), cost)
        except httpx.HTTPError as error:
            raise AnswerError(f"{self._url} broke off ({error})") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise AnswerError(f"{self._url} answers with something else than a chat completion") from error
        finally:
            answer.close()

    def _sent(self, request: httpx.Request) -> httpx.Response:
        """The beginning of the answer. Raises AnswerError if it is none, or an error."""
        try:
            answer = self._client.send(request, stream=True)
        except httpx.HTTPError as error:
            raise AnswerError(f"{self._url} does not answer ({error}); is a server running there?") from error
        if answer.status_code == 200:
            return answer
        try:
            answer.read()
        except httpx.HTTPError:
            raise AnswerError(f"{self._url} answers with status {answer.status_code}") from None
        finally:
            answer.close()
        raise AnswerError(f"{self._url}: {_message(answer)}")


def _message(answer: httpx.Response) -> str:
    """What a server says of an error."""
    try:
        said = answer.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        said = answer.text
    return f"{answer.status_code}: {str(said)[:500]}"


def _read_chunk(chunk: Mapping[str, Any], cost: Cost) -> Iterator[Piece]:
    if "error" in chunk:
        raise AnswerError(str(chunk["error"]))
    for choice in chunk.get("choices") or ():
        delta = choice.get("delta") or {}
        if thought := delta.get("reasoning_content") or delta.get("reasoning"):
            yield Piece(str(thought), thought=True)
        if text := delta.get("content"):
            yield Piece(str(text))
    if usage := chunk.get("usage"):
        cost.tokens = usage.get("completion_tokens")
        details = usage.get("completion_tokens_details") or {}
        cost.accepted, rejected = details.get("accepted_prediction_tokens"), details.get("rejected_prediction_tokens")
        cost.drafted = None if cost.accepted is None or rejected is None else cost.accepted + rejected


class Screen:
    """Shows answers as they come: thoughts are dim on a terminal. `thoughts` may go elsewhere than the text."""

    def __init__(self, text: TextIO, thoughts: TextIO) -> None:
        self._text = text
        self._thoughts = thoughts
        self._thinking = False

    def show(self, piece: Piece) -> None:
        if piece.thought != self._thinking:
            self._turn(piece.thought)
        stream = self._thoughts if piece.thought else self._text
        stream.write(without_controls(piece.text) if stream.isatty() else piece.text)
        stream.flush()

    def end(self) -> None:
        """Begin a new line after an answer."""
        if self._thinking:
            self._turn(False)
        self._text.write("\n")
        self._text.flush()

    def _turn(self, thinking: bool) -> None:
        """Begin or end thoughts."""
        self._thinking = thinking
        mark = (DIM if thinking else PLAIN) if self._thoughts.isatty() else ""
        self._thoughts.write(mark if thinking else f"{mark}\n")
        self._thoughts.flush()
