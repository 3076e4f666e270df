"""Servers that are reached over HTTP: our own, started or found, and those of others."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from parallm_openai.bench.load import Request
from parallm_openai.bench.samples import Sample
from parallm_openai.bench.targets import BenchError, Client, RequestFailed, Way

START_SECONDS = 300
REQUEST_SECONDS = 1800
# The statuses of servers that know a field and do not take its value.
BAD_REQUEST = (400, 422)


class _Refused(RequestFailed):
    """The server takes no such request."""


def _logprobs_forms(count: int) -> tuple[dict[str, Any], ...]:
    """How servers want to be asked for log-probabilities in a completion: as OpenAI does, or as in a chat."""
    return {"logprobs": count}, {"logprobs": True, "top_logprobs": count}


@dataclass
class HttpTarget:
    """A server. `settings` go to its /v1/configure before each run, `extra` into each body."""

    name: str
    url: str
    model: str
    settings: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    way: Way = "streamed"
    shares_process: bool = field(default=False, init=False)
    # Which of the forms of log-probabilities the server has not refused.
    logprobs_form: int = field(default=0, init=False)

    def prepare(self) -> None:
        if self.settings:
            try:
                answer = httpx.post(f"{self.url}/v1/configure", params=dict(self.settings), timeout=30)
            except httpx.HTTPError as error:
                raise BenchError(f"{self.name} does not answer at {self.url} any more ({error})") from error
            if answer.status_code != 200:
                raise BenchError(f"{self.name} refuses its settings: {answer.text}")

    def drafted(self) -> tuple[int, int]:
        try:
            numbers = httpx.get(f"{self.url}/v1/stats", timeout=30).json()["speculative_stats"]
            return numbers["drafted_tokens"], numbers["accepted_tokens"]
        except (httpx.HTTPError, KeyError, ValueError):
            return 0, 0

    def body(self, request: Request) -> dict[str, Any]:
        # No seed: servers that have one for all requests would answer them one after another.
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": list(request.tokens) or request.prompt,
            "max_tokens": request.max_tokens,
            "stream": False,
        }
        if self.way == "streamed":
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        if request.sampling.logprobs is not None:
            body |= _logprobs_forms(request.sampling.logprobs)[self.logprobs_form]
        return body | request.sampling.fields() | dict(self.extra)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=self.url, timeout=REQUEST_SECONDS, limits=limits) as client:
            yield HttpClient(client, self)


class HttpClient:
    """Sends to /v1/completions."""

    def __init__(self, client: httpx.AsyncClient, target: HttpTarget) -> None:
        self._client = client
        self._target = target
        self.streams = target.way == "streamed"

    async def answer(self, request: Request, sample: Sample) -> None:
        form = self._target.logprobs_form
        try:
            await self._read(request, sample)
        except _Refused:
            if request.sampling.logprobs is None or form > 0:
                raise
            self._target.logprobs_form = 1
            await self._read(request, sample)

    async def _read(self, request: Request, sample: Sample) -> None:
        body = self._target.body(request)
        try:
            async with self._client.stream("POST", "/v1/completions", json=body) as response:
                if response.status_code != 200:
                    text = (await response.aread()).decode(errors="replace")
                    kind = _Refused if response.status_code in BAD_REQUEST else RequestFailed
                    raise kind(f"{response.status_code}: {text[:200]}")
                if not self.streams:
                    return _read_usage(json.loads(await response.aread()), sample)
                async for line in response.aiter_lines():
                    if line.startswith("data: {"):
                        _read_chunk(json.loads(line.removeprefix("data: ")), sample)
        except httpx.HTTPError as error:
            raise RequestFailed(
                f"the connection to {self._target.url} failed ({type(error).__name__}: {_cause(error)})"
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RequestFailed(f"the answer is not a completion ({type(error).__name__}: {error})") from error


def _read_chunk(chunk: Mapping[str, Any], sample: Sample) -> None:
    if "error" in chunk:
        raise RequestFailed(str(chunk["error"]))
    _read_usage(chunk, sample)
    if any(choice.get("text") for choice in chunk["choices"]):
        sample.see_text()


def _read_usage(answer: Mapping[str, Any], sample: Sample) -> None:
    if usage := answer.get("usage"):
        sample.tokens, sample.prompt_tokens = usage["completion_tokens"], usage.get("prompt_tokens")


def first_model(url: str) -> str:
    """The first model that a server lists. Raises BenchError if it does not answer."""
    try:
        return str(httpx.get(f"{url}/v1/models", timeout=30).json()["data"][0]["id"])
    except (httpx.HTTPError, KeyError, IndexError, ValueError) as error:
        cause = f"{error or type(error).__name__}; is a server running there?"
        raise BenchError(f"{url} does not list its models: {cause}") from error


def current_settings(url: str, names: Iterable[str]) -> dict[str, str]:
    """The values that these settings of our server have. Raises BenchError if it does not tell."""
    try:
        found = httpx.post(f"{url}/v1/configure", timeout=30).json()
        return {name: str(found[name]).lower() for name in names}
    except (httpx.HTTPError, KeyError, ValueError) as error:
        raise BenchError(f"{url} does not tell its settings: {error}") from error


def peer(spec: str) -> HttpTarget:
    """A `NAME=URL` or `NAME=URL#MODEL` peer. Raises BenchError for another form, or if nothing answers there."""
    name, _, address = spec.partition("=")
    url, _, model = address.partition("#")
    if not name or not url.startswith("http"):
        raise BenchError(f"--peer: must be NAME=URL or NAME=URL#MODEL, not {spec!r}")
    url = url.rstrip("/").removesuffix("/v1")
    try:
        # A peer whose model is given need not be able to list it.
        httpx.get(f"{url}/v1/models", timeout=30)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise BenchError(
            f"the peer {name} does not answer at {url} ({_cause(error)}): start it first, or leave out its --peer"
        ) from error
    return HttpTarget(name, url, model or first_model(url))


def _cause(error: BaseException) -> str:
    """What the system says: httpx's own words for several attempts do not name it."""
    while (deeper := error.__cause__ or error.__context__) is not None:
        error = deeper
    text = " ".join(str(each) for each in error.exceptions) if isinstance(error, BaseExceptionGroup) else str(error)
    return text or type(error).__name__


@contextmanager
def own_server(arguments: Sequence[str]) -> Iterator[str]:
    """Our server in a process of its own, on a free port; its URL. Raises BenchError if it does not start."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "parallm_openai", "serve", "--port", str(port), "--log-level", "warning"]
    process = subprocess.Popen([*command, *arguments], stdout=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_for(url, process)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise BenchError(f"the server ended with status {process.returncode} before it listened")
        try:
            if httpx.get(f"{url}/health", timeout=2).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.2)
    raise BenchError(f"the server did not listen within {START_SECONDS} seconds")
