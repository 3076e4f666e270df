"""One replica: a whole server's app on an engine of its own, which answers calls instead of connections."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.types import Message

from parallm_openai import logs
from parallm_openai.cli.failure import Failed
from parallm_openai.cpu import prepare
from parallm_openai.replicas.calls import Call, ReplicaLost, Whole
from parallm_openai.replicas.exchange import Exchange
from parallm_openai.replicas.plan import Plan

log = logging.getLogger(__name__)

SHARED_SECONDS = 2.0
# Where Ray Serve has its actors.
SERVE_NAMESPACE = "serve"


class Engine:
    """The deployment of which there are several."""

    def __init__(self, plan: Plan, shared: DeploymentHandle[Any]) -> None:
        prepare()
        logs.set_up(plan.server.log_level, plan.server.log_format)
        self.name = serve.get_replica_context().replica_id.unique_id
        self._plan = plan
        self._shared = shared
        try:
            self._load()
        except Failed as error:
            raise RuntimeError(error.message) from None
        self._followed: dict[str, str] = {}
        self._exchanges: set[Exchange] = set()

    def _load(self) -> None:
        from parallm_openai.api.app import create_app
        from parallm_openai.api.serving import leave
        from parallm_openai.cli.announcement import describe
        from parallm_openai.cli.failure import explained
        from parallm_openai.cli.loading import load_defaults, load_draft, load_model
        from parallm_openai.engine.async_engine import AsyncEngine
        from parallm_openai.models.loading import LoadedModel
        from parallm_openai.replicas.shared import SharedResponses

        plan = self._plan
        target = load_model(plan.model)
        defaults, draft = load_defaults(target, plan.defaults), load_draft(plan.model, plan.drafting)
        with explained():
            self._engine = AsyncEngine(target, plan.config, draft)
        # Ray starts another replica, and the ingress has its requests answered by those that are left.
        self._engine.on_failure = lambda: leave(1)
        self._app = create_app(self._engine, target, plan.server, defaults, responses=SharedResponses(self._shared))
        self._facts = target.name, describe(target, draft if isinstance(draft, LoadedModel) else None, self._engine)

    async def __del__(self) -> None:
        if hasattr(self, "_app"):
            # The app's own end, which ends the engine: nothing happens at its beginning.
            async with self._app.router.lifespan_context(self._app):
                pass

    async def answer(self, call: Call) -> AsyncIterator[list[Message]]:
        """The ASGI messages of the answer, as many at a time as there are."""
        async with Exchange(self._app, call, self.name) as exchange:
            self._exchanges.add(exchange)
            try:
                async for messages in exchange.messages():
                    self._check_engine()
                    yield messages
            finally:
                self._exchanges.discard(exchange)

    async def whole(self, call: Call) -> Whole:
        """The answer in one piece."""
        async with Exchange(self._app, call, self.name) as exchange:
            return await exchange.whole()

    def facts(self) -> tuple[str, list[tuple[str, str]]]:
        """The model's name, and what is to be said of the replica."""
        return self._facts

    async def check_health(self) -> None:
        """Raise an error if the engine has failed: Ray Serve then replaces this replica.

        Ray calls it before the replica gets requests, and every few seconds after that.
        """
        if self._engine.failed:
            raise RuntimeError("the engine has failed")
        await self._abandon_orphans()
        await self._follow_settings()

    def _check_engine(self) -> None:
        # What comes after the engine has failed is its error, which is no answer as long as there are other replicas.
        if self._engine.failed:
            raise ReplicaLost(self.name)

    async def _abandon_orphans(self) -> None:
        """End answers whose ingress is lost: Ray goes on with them, for whole requests and with nobody to read them."""
        for sender in {each.sender for each in self._exchanges} - {""}:
            if await asyncio.to_thread(_is_lost, sender):
                orphans = [each for each in self._exchanges if each.sender == sender]
                log.warning("%d requests have lost their ingress and are ended", len(orphans))
                for each in orphans:
                    each.abandon()

    async def _follow_settings(self) -> None:
        """Take over what `/v1/configure` has changed before this replica started, or while it did."""
        try:
            async with asyncio.timeout(SHARED_SECONDS):
                changes = await self._shared.changed_settings.remote(self._followed)
        except (TimeoutError, RayError, DeploymentUnavailableError):
            # It starts anew; this replica can answer without it.
            log.warning("the shared settings cannot be reached")
            return
        if changes != self._followed:
            self._engine.configure(**changes)
            self._followed = changes


def _is_lost(actor: str) -> bool:
    """Whether no actor has this name any more."""
    try:
        ray.get_actor(actor, namespace=SERVE_NAMESPACE)
    except ValueError:
        return True
    except RayError:
        # Ray itself cannot say now.
        return False
    return False
