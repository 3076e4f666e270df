"""The engine in this process: what a server does for a request, less HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass

from parallm_openai.bench.load import Request
from parallm_openai.bench.samples import Sample
from parallm_openai.bench.targets import Client, RequestFailed, Way
from parallm_openai.engine.async_engine import AsyncEngine
from parallm_openai.engine.build import DraftSource
from parallm_openai.engine.request import SamplingParams
from parallm_openai.engine.worker import EngineStoppedError, QueueFullError
from parallm_openai.models.loading import LoadedModel
from parallm_openai.settings import EngineConfig
from parallm_openai.text.description import TextDescription
from parallm_openai.text.generation import start_generations
from parallm_openai.text.output import GenerationError
from parallm_openai.text.prepare import Preparer
from parallm_openai.text.request_error import RequestError
from parallm_openai.text.tokenizer import Tokenizer
from parallm_openai.text.workers import Inline


@dataclass(frozen=True)
class LocalEngine:
    """An engine, and what makes its requests of texts."""

    engine: AsyncEngine
    preparer: Preparer


@contextmanager
def local_engine(model: LoadedModel, draft: DraftSource, rows: int) -> Iterator[LocalEngine]:
    """An engine of that many rows, with a server's defaults besides; its thread ends with the context."""
    engine = AsyncEngine(model, EngineConfig(max_batch_size=rows), draft)
    tokenizer = Tokenizer(model.tokenizer, model.vocab_size)
    grammars = tokenizer.grammars(model.eos_token_ids)
    try:
        yield LocalEngine(engine, Preparer(tokenizer, grammars, model.eos_token_ids, engine, Inline()))
    finally:
        grammars.close()
        asyncio.run(engine.shutdown(0))


@dataclass(frozen=True)
class InProcessTarget:
    """An engine of this process; `settings` are fields of its configuration."""

    name: str
    local: LocalEngine
    settings: Mapping[str, str]
    way: Way = "in-process"
    shares_process: bool = True

    def prepare(self) -> None:
        self.local.engine.configure(**self.settings)

    def drafted(self) -> tuple[int, int]:
        numbers = self.local.engine.stats()["speculative_stats"]
        return numbers["drafted_tokens"], numbers["accepted_tokens"]

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        yield LocalClient(self.local)


class LocalClient:
    """Tokenises prompts, and reads the text of answers as the engine's steps bring it."""

    streams = True

    def __init__(self, local: LocalEngine) -> None:
        self._local = local

    async def answer(self, request: Request, sample: Sample) -> None:
        try:
            [prepared] = await self._local.preparer.text(_description(request))
            if isinstance(prepared, RequestError):
                raise prepared
            [generation] = start_generations(self._local.engine, [prepared])
            async for delta in generation:
                if delta.text:
                    sample.see_text()
        except (RequestError, QueueFullError, EngineStoppedError, GenerationError) as error:
            raise RequestFailed(f"{type(error).__name__}: {error}") from error
        sample.tokens, sample.prompt_tokens = generation.counts.completion, len(generation.prompt_tokens)


def _description(request: Request) -> TextDescription:
    given = {name: value for name, value in asdict(request.sampling).items() if value is not None}
    return TextDescription(
        prompts=[request.prompt],
        sampling=SamplingParams(max_tokens=request.max_tokens, ignore_eos=True, **given),
    )
