"""The Ray Serve application: the ingress, the replicas of the engine, and what they share.

`build` is the import path of a configuration file for `serve deploy`: examples/serve_replicas.yaml.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from parallm_openai import logs
from parallm_openai.api import errors
from parallm_openai.replicas import population
from parallm_openai.replicas.calls import Call, ReplicaLost, TooManyWaiting, Whole
from parallm_openai.replicas.engine import Engine
from parallm_openai.replicas.ingress import create_ingress
from parallm_openai.replicas.plan import Plan
from parallm_openai.replicas.router import Router
from parallm_openai.replicas.shared import Shared
from parallm_openai.settings import ServerSettings

# How long a replica may take to answer what all are asked.
SECONDS = 10.0
# A replica takes so many requests that do not generate, whatever else it does: no monitor and no page waits for a row.
QUICK_REQUESTS = 100
# The ingress only forwards: what limits requests are the queues behind it.
MOST_CONNECTIONS = 10_000
# In seconds. Three failed checks in a row, or an ended process, and Ray replaces the replica.
HEALTH_CHECK_PERIOD = 5.0
QUIET = LoggingConfig(log_level="WARNING", enable_access_log=False)


@dataclass(frozen=True)
class Room:
    """How many requests that generate may be in a replica, and how many wait for one.

    Ray would count those that are on their way to a replica as waiting, and refuse bursts that have room.
    """

    in_replica: int
    in_queue: int

    @classmethod
    def of(cls, plan: Plan) -> Room:
        """A replica takes a batch, and as many again that wait there for a row."""
        batch, queue = plan.config.max_batch_size, plan.config.max_queue
        return cls(batch + min(batch, queue), queue)


class ServeReplicas:
    """The replicas as `Replicas`, through Ray's handles.

    Each handle has a queue of its own, so that what `quick` sends never stands behind requests that wait for a row.
    """

    def __init__(
        self, engines: DeploymentHandle[Any], quick: DeploymentHandle[Any], shared: DeploymentHandle[Any], room: Room
    ) -> None:
        self._own_name = ray.get_runtime_context().get_actor_name() or ""
        self._quick = quick
        self._answers = [each.options(method_name="answer", stream=True) for each in (engines, quick)]
        self._shared = shared
        self._room = room
        self._generating = 0

    async def answer(self, call: Call) -> AsyncGenerator[Sequence[Message]]:
        with self._place(call):
            async with aclosing(self._from_ray(call)) as answer:
                async for messages in answer:
                    yield messages

    @contextmanager
    def _place(self, call: Call) -> Iterator[None]:
        """A place for the call, if it needs one. Raises TooManyWaiting."""
        places, running = int(not call.is_quick), population.running
        if places and running is not None and self._generating >= running * self._room.in_replica + self._room.in_queue:
            raise TooManyWaiting
        self._generating += places
        try:
            yield
        finally:
            self._generating -= places

    async def _from_ray(self, call: Call) -> AsyncGenerator[Sequence[Message]]:
        answer = self._answers[call.is_quick].remote(replace(call, sender=self._own_name))
        try:
            async for messages in answer:
                yield messages
        except RayTaskError:
            # It comes from the replica's own code, which goes on.
            raise
        except (RayError, DeploymentUnavailableError) as error:
            raise ReplicaLost from error
        except (asyncio.CancelledError, GeneratorExit):
            # Nobody wants the rest.
            answer.cancel()
            raise

    async def answers_of_all(self, call: Call) -> Sequence[Whole]:
        asked = self._quick.broadcast("whole", call)
        try:
            found = await asked.results_async(timeout_s=SECONDS, return_exceptions=True)
        except (RayError, DeploymentUnavailableError, TimeoutError) as error:
            raise ReplicaLost from error
        answers = [each for each in found if isinstance(each, Whole)]
        if not answers:
            raise ReplicaLost
        return answers

    async def keep_settings(self, changes: Mapping[str, str]) -> None:
        try:
            async with asyncio.timeout(SECONDS):
                await self._shared.keep_settings.remote(changes)
        except (RayError, DeploymentUnavailableError, TimeoutError) as error:
            raise errors.unavailable("The settings hold now, but not for replicas that start later.") from error


@serve.ingress()
class Ingress:
    """The deployment that takes requests."""

    def __init__(
        self,
        settings: ServerSettings,
        most: int,
        room: Room,
        engines: DeploymentHandle[Any],
        shared: DeploymentHandle[Any],
    ) -> None:
        logs.set_up(settings.log_level, settings.log_format)
        self._settings, self._most = settings, most
        # Of the same name, in this application.
        quick = serve.get_deployment_handle(engines.deployment_name)
        self._replicas = ServeReplicas(engines, quick, shared, room)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return _without_request_id(create_ingress(self._replicas, self._settings, self._most))


def _without_request_id(app: ASGIApp) -> ASGIApp:
    """The app, whose answers leave out the `x-request-id` that Ray Serve's proxy adds: clients would read it twice."""

    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        async def without(message: Message) -> None:
            if message["type"] == "http.response.start":
                del MutableHeaders(scope=message)["x-request-id"]
            await send(message)

        await app(scope, receive, without)

    return run


def build(args: dict[str, Any]) -> serve.Application:
    """The application of a configuration file, whose `args` are settings of `serve` by the names of their flags."""
    from parallm_openai.cli.replica_file import plan_of

    return application(plan_of(args))


def application(plan: Plan, options: Mapping[str, Any] | None = None) -> serve.Application:
    """The application. `options` are Ray's for the deployment of the replicas: processors, GPUs, environment."""
    server = plan.server
    shared = serve.deployment(Shared).options(
        name="Shared", num_replicas=1, ray_actor_options={"num_cpus": 0}, logging_config=QUIET
    )
    ingress = serve.deployment(Ingress).options(
        name="Ingress",
        num_replicas=1,
        max_ongoing_requests=MOST_CONNECTIONS,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=server.graceful_timeout,
        logging_config=QUIET,
    )
    engines = serve.deployment(Engine).options(
        name="Engine",
        max_ongoing_requests=Room.of(plan).in_replica + QUICK_REQUESTS,
        graceful_shutdown_timeout_s=server.graceful_timeout,
        health_check_period_s=HEALTH_CHECK_PERIOD,
        logging_config=QUIET,
        request_router_config=_routing(plan),
        **_number(plan),
        **(options or {"ray_actor_options": {"num_cpus": 1}}),
    )
    store = shared.bind(server.stored_responses, server.stored_responses_bytes)
    return ingress.bind(server, plan.replicas.most, Room.of(plan), engines.bind(plan, store), store)


def _number(plan: Plan) -> dict[str, Any]:
    least = plan.replicas.replicas or 1
    if plan.replicas.max_replicas is None:
        return {"num_replicas": least}
    target = plan.replicas.target_ongoing_requests or plan.config.max_batch_size
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=least,
            initial_replicas=least,
            max_replicas=plan.replicas.most,
            target_ongoing_requests=target,
        )
    }


def _routing(plan: Plan) -> RequestRouterConfig:
    options = {
        "by_prefix": plan.replicas.replica_routing == "prefix",
        "prefix_cache_tokens": plan.config.prefix_cache_tokens,
        "patience": plan.config.max_batch_size,
        "room": Room.of(plan).in_replica,
    }
    return RequestRouterConfig(
        request_router_class=f"{Router.__module__}.{Router.__qualname__}", request_router_kwargs=options
    )
