"""Sends a trace to a real server, to compare it with the simulation."""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass

import httpx

from parallm_openai.bench.load import Request
from parallm_openai.bench.samples import Sample
from parallm_openai.bench.servers import HttpTarget
from parallm_openai.bench.targets import BenchError, Client, RequestFailed
from parallm_openai.bench.words import words
from parallm_openai.simulation.replica import Job
from parallm_openai.simulation.trace import TraceRequest

# A text's words, and how many of them a server is asked to tokenise at a time: few enough for any context.
WORDS, PIECE = 6000, 200


def text_tokens(url: str, seed: int = 0) -> list[int]:
    """Made-up words as the server's tokenizer reads them. Raises BenchError."""
    text, tokens = words(seed, WORDS), list[int]()
    try:
        for start in range(0, WORDS, PIECE):
            piece = {"prompt": " ".join(text[start : start + PIECE]), "add_special_tokens": False}
            answer = httpx.post(f"{url}/tokenize", json=piece, timeout=60)
            tokens += answer.raise_for_status().json()["tokens"]
        return tokens
    except (httpx.HTTPError, KeyError, ValueError) as error:
        raise BenchError(f"{url} does not tokenise: {error or type(error).__name__}") from error


@dataclass
class Prompts:
    """Prompts of a text's tokens: a stream of a trace is the text from a place that its name decides on."""

    text: Sequence[int]
    salt: str

    def of(self, number: int, request: TraceRequest) -> list[int]:
        prompt = [token for name, length in request.prefix for token in self._stream(name, length)]
        return prompt + self._stream(f"request {number}", request.prompt_tokens - len(prompt))

    def _stream(self, name: str, length: int) -> list[int]:
        start = random.Random(f"{self.salt}, {name}").randrange(len(self.text))
        return [self.text[(start + place) % len(self.text)] for place in range(length)]


def replay(target: HttpTarget, trace: Sequence[TraceRequest], prompts: Prompts) -> list[Job]:
    """Every request as the client saw it. Raises BenchError if one fails."""
    return asyncio.run(_replay(target, trace, prompts))


async def _replay(target: HttpTarget, trace: Sequence[TraceRequest], prompts: Prompts) -> list[Job]:
    jobs = [Job(number, asked, replica=0) for number, asked in enumerate(trace)]
    # Tokenised text of thousands of prompts takes a while to put together.
    bodies = [prompts.of(job.number, job.asked) for job in jobs]
    sessions: dict[str, deque[Job]] = defaultdict(deque)
    for job in jobs:
        if job.asked.session is not None:
            sessions[job.asked.session].append(job)
    async with target.client() as client:
        began = time.perf_counter()
        alone = [[job] for job in jobs if job.asked.session is None]
        await asyncio.gather(*(_in_turn(client, turn, bodies, began) for turn in [*alone, *sessions.values()]))
    return jobs


async def _in_turn(client: Client, jobs: Sequence[Job], bodies: Sequence[list[int]], began: float) -> None:
    for job in jobs:
        await asyncio.sleep(max(0.0, job.asked.at - (time.perf_counter() - began)))
        sample = Sample()
        job.sent_at = time.perf_counter() - began
        sample.start()
        try:
            await client.answer(Request("", job.asked.output_tokens, tokens=bodies[job.number]), sample)
        except RequestFailed as error:
            raise BenchError(f"request {job.number + 1} of the trace failed: {error}") from error
        sample.end()
        job.tokens = sample.tokens or 0
        # A text may end in the middle of a character, and come one token later.
        job.first_token_at = job.sent_at + sample.chunks[0] if sample.chunks else None
        job.ended_at = job.sent_at + sample.latency
