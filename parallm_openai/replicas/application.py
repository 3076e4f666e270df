"""The Ray Serve application: the ingress, the replicas of the engine, and what they share.

`build` is the import path of a configuration file for `serve deploy`: examples/serve_replicas.yaml.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from parallm_openai import logs
from parallm_openai.replicas.calls import Call, ReplicaLost, TooManyWaiting, Whole
from parallm_openai.replicas.engine import Engine
from parallm_openai.replicas.ingress import create_ingress
from parallm_openai.replicas.plan import Plan
from parallm_openai.replicas.router import PrefixRouter
from parallm_openai.replicas.shared import Shared
from parallm_openai.settings import ServerSettings

# How long a replica may take to answer what all are asked.
SECONDS = 10.0
# The ingress only forwards: what limits requests are the queues behind it.
MOST_CONNECTIONS = 10_000
# In seconds. Three failed checks in a row, or an ended process, and Ray replaces the replica.
HEALTH_CHECK_PERIOD = 5.0
QUIET = LoggingConfig(log_level="WARNING", enable_access_log=False)


class ServeReplicas:
    """The replicas as `Replicas`, through Ray's handles."""

    def __init__(self, engines: DeploymentHandle[Any], shared: DeploymentHandle[Any]) -> None:
        self._engines = engines
        self._answer = engines.options(method_name="answer", stream=True)
        self._shared = shared

    async def answer(self, call: Call) -> AsyncGenerator[Sequence[Message]]:
        answer = self._answer.remote(call)
        try:
            async for messages in answer:
                yield messages
        except (RayActorError, DeploymentUnavailableError) as error:
            raise ReplicaLost from error
        except BackPressureError as error:
            raise TooManyWaiting from error
        except (asyncio.CancelledError, GeneratorExit):
            # Nobody wants the rest.
            answer.cancel()
            raise

    async def answers_of_all(self, call: Call) -> Sequence[Whole]:
        asked = self._engines.broadcast("whole", call)
        try:
            found = await asked.results_async(timeout_s=SECONDS, return_exceptions=True)
        except (RayActorError, DeploymentUnavailableError, TimeoutError) as error:
            raise ReplicaLost from error
        answers = [each for each in found if isinstance(each, Whole)]
        if not answers:
            raise ReplicaLost
        return answers

    async def keep_settings(self, changes: Mapping[str, str]) -> None:
        await self._shared.keep_settings.remote(changes)


@serve.ingress()
class Ingress:
    """The deployment that takes requests."""

    def __init__(self, settings: ServerSettings, engines: DeploymentHandle[Any], shared: DeploymentHandle[Any]) -> None:
        logs.set_up(settings.log_level, settings.log_format)
        self._settings = settings
        self._replicas = ServeReplicas(engines, shared)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return _without_request_id(create_ingress(self._replicas, self._settings))


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


def application(plan: Plan, actor_options: Mapping[str, Any] | None = None) -> serve.Application:
    """The application. `actor_options` are Ray's for the replicas: processors, GPUs, environment."""
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
        max_ongoing_requests=_most_ongoing(plan),
        # For Ray, none at all would be no limit.
        max_queued_requests=max(1, plan.config.max_queue),
        ray_actor_options=dict(actor_options or {"num_cpus": 1}),
        graceful_shutdown_timeout_s=server.graceful_timeout,
        health_check_period_s=HEALTH_CHECK_PERIOD,
        logging_config=QUIET,
        **_number(plan),
        **_routing(plan),
    )
    store = shared.bind(server.stored_responses, server.stored_responses_bytes)
    return ingress.bind(server, engines.bind(plan, store), store)


def _most_ongoing(plan: Plan) -> int:
    """As many requests as fill a batch, and as many again that wait for a row; the others wait at the ingress."""
    batch = plan.config.max_batch_size
    return batch + min(batch, plan.config.max_queue)


def _number(plan: Plan) -> dict[str, Any]:
    least, most = plan.replicas.replicas or 1, plan.replicas.max_replicas
    if most is None:
        return {"num_replicas": least}
    target = plan.replicas.target_ongoing_requests or plan.config.max_batch_size
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=least, initial_replicas=least, max_replicas=most, target_ongoing_requests=target
        )
    }


def _routing(plan: Plan) -> dict[str, Any]:
    if plan.replicas.replica_routing != "prefix":
        return {}
    options = {"prefix_cache_tokens": plan.config.prefix_cache_tokens, "patience": plan.config.max_batch_size}
    return {
        "request_router_config": RequestRouterConfig(
            request_router_class=f"{PrefixRouter.__module__}.{PrefixRouter.__qualname__}", request_router_kwargs=options
        )
    }
