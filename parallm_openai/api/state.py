"""What every route works with: the engine, the model, and what prepares requests to it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from fastapi import Request as HttpRequest

from parallm_openai.api import errors
from parallm_openai.api.leniency import Ignored
from parallm_openai.api.metrics import Metrics
from parallm_openai.api.middleware import given_keys
from parallm_openai.api.owners import Owners
from parallm_openai.api.response_store import Responses, ResponsesHere, ResponseStore
from parallm_openai.api.snapshot import Snapshot
from parallm_openai.api.workers import Threads
from parallm_openai.engine.async_engine import AsyncEngine
from parallm_openai.engine.embedder import Embedder
from parallm_openai.engine.embedding_queue import EmbeddingQueue
from parallm_openai.models.loading import LoadedModel
from parallm_openai.settings import ServerSettings
from parallm_openai.text.defaults import Defaults
from parallm_openai.text.grammar.compiler import Grammars
from parallm_openai.text.prepare import Preparer
from parallm_openai.text.tokenizer import Tokenizer

SNAPSHOT_SECONDS = 10.0


@dataclass(frozen=True)
class AppState:
    """One per app, at `app.state.shared`."""

    engine: AsyncEngine
    model: LoadedModel
    settings: ServerSettings
    tokenizer: Tokenizer
    grammars: Grammars
    preparer: Preparer
    responses: Responses
    owners: Owners
    metrics: Metrics
    defaults: Defaults
    # None unless the model is made for them.
    embeddings: EmbeddingQueue | None
    # For those who share the server with others.
    stats_now_and_then: Snapshot[dict[str, Any]]
    metrics_now_and_then: Snapshot[bytes]

    @classmethod
    def of(
        cls,
        engine: AsyncEngine,
        model: LoadedModel,
        settings: ServerSettings,
        defaults: Defaults,
        responses: Responses | None = None,
    ) -> AppState:
        """Without `responses`, this process keeps those that are to be stored."""
        tokenizer = Tokenizer(
            model.tokenizer, model.vocab_size, settings.tool_call_parser, generic_tools=not settings.strict
        )
        grammars = tokenizer.grammars(model.eos_token_ids)
        workers = Threads(grammars, settings.template_timeout)
        preparer = Preparer(tokenizer, grammars, model.eos_token_ids, engine, workers, defaults)
        if responses is None:
            responses = ResponsesHere(ResponseStore(settings.stored_responses, settings.stored_responses_bytes))
        metrics = Metrics(engine, model.name)
        embeddings = None
        if model.embedding is not None:
            embeddings = EmbeddingQueue(engine, Embedder(model.model, model.embedding.pooling))
        return cls(
            engine,
            model,
            settings,
            tokenizer,
            grammars,
            preparer,
            responses,
            Owners(),
            metrics,
            defaults,
            embeddings,
            Snapshot(engine.stats, SNAPSHOT_SECONDS),
            Snapshot(metrics.text, SNAPSHOT_SECONDS),
        )

    @property
    def model_names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.settings.served_model_names, self.model.name)))

    def check_model(self, name: str) -> None:
        if name not in self.model_names:
            raise errors.model_not_found(name, self.model_names)

    def check_generates(self) -> None:
        """Raise ApiError if the model is not made to generate."""
        if self.embeddings is not None:
            raise errors.no_generation(self.model.name)

    def model_named(self, name: str | None, ignored: Ignored) -> str:
        """The name of the model to answer with: a request without one means the model served, unless strict."""
        if name is None:
            if ignored.strict:
                raise errors.missing("model")
            return self.model_names[0]
        self.check_model(name)
        return name

    def owner(self, request: HttpRequest) -> str:
        """Who sends a request, by its key. Those without one are all the same."""
        known = {key.encode() for key in (*self.settings.api_keys, *self.settings.admin_keys)}
        given = [key for key in given_keys(request.headers) if key in known]
        return hashlib.sha256(given[0]).hexdigest() if given else ""

    def may_watch(self, request: HttpRequest) -> bool:
        """Whether a client may see counts grow from step to step: not those of others, unless it is an admin.

        How many drafted tokens of a text are accepted, one step after the other, tells what the text says.
        """
        keys = {*self.settings.api_keys, *self.settings.admin_keys}
        return len(keys) < 2 or self.is_admin(request)

    def is_admin(self, request: HttpRequest) -> bool:
        admins = {key.encode() for key in self.settings.admin_keys}
        return not admins.isdisjoint(given_keys(request.headers))


def state_of(request: HttpRequest) -> AppState:
    state: AppState = request.app.state.shared
    return state
