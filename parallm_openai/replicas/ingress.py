"""The ingress: takes a request, has a replica answer it, and another one if that is lost."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections import OrderedDict
from contextlib import aclosing
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl

from prometheus_client import CollectorRegistry, Counter
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send

from parallm_openai.api import errors
from parallm_openai.api.middleware import Body, Failures, Keys, RequestHeaders, given_keys
from parallm_openai.api.paths import Paths
from parallm_openai.api.visitors import Cors, Gate, Visitors
from parallm_openai.replicas import combined
from parallm_openai.replicas.calls import Call, ReplicaLost, Replicas, TooManyWaiting
from parallm_openai.replicas.delivery import Delivery
from parallm_openai.replicas.prefixes import Hints
from parallm_openai.replicas.replay import Diverged
from parallm_openai.settings import ServerSettings

log = logging.getLogger(__name__)

# A request that ends the replicas which try it must not end all of them.
ATTEMPTS = 3
# The time in which /health must find a replica.
HEALTH_SECONDS = 5.0
# A larger body is parsed on a thread.
INLINE_BYTES = 64 * 1024


class Counts:
    """What became of requests whose replica was lost."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.retried = self._counter("requests_retried", "Requests answered by another replica, from their beginning.")
        self.resumed = self._counter("streams_resumed", "Streams that another replica has gone on with.")
        self.lost = self._counter("requests_lost", "Requests that ended with an error because replicas were lost.")

    def _counter(self, name: str, what: str) -> Counter:
        return Counter(f"parallm:{name}", what, registry=self.registry)


def create_ingress(replicas: Replicas, settings: ServerSettings) -> Starlette:
    """The ASGI app before the replicas. What it refuses never reaches one."""
    app = Starlette(routes=[Mount("/", app=Ingress(replicas, settings))])
    errors.install(app)
    visitors = Visitors(settings.cors_origins, settings.allowed_hosts)
    # The last one added is the outermost, as in `create_app`.
    app.add_middleware(Failures)
    app.add_middleware(Body, limit=settings.max_body_size, timeout=settings.body_timeout)
    app.add_middleware(Keys, keys=settings.api_keys, admin_keys=settings.admin_keys)
    app.add_middleware(Gate, visitors=visitors)
    app.add_middleware(Cors, visitors=visitors)
    app.add_middleware(RequestHeaders)
    app.add_middleware(Paths, root_path=settings.root_path or "")
    return app


class Ingress:
    """Answers a request by the replicas."""

    def __init__(self, replicas: Replicas, settings: ServerSettings) -> None:
        self._replicas = replicas
        self._settings = settings
        self._counts = Counts()
        # Which replica has made each of the last responses: it has computed what continues them.
        self._made: OrderedDict[str, str] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        delivery = Delivery(scope, send)
        try:
            body = await Request(scope, receive).body()
        except ClientDisconnect:
            return
        hints = await _hints(scope, body)
        call = Call.of(scope, body, replace(hints, near=self._made.get(hints.previous, "")))
        await _while_client_stays(self._deliver(call, delivery), receive)
        if delivery.response_id:
            self._note_made(delivery.response_id, delivery.replica)

    def _note_made(self, response_id: str, replica: str) -> None:
        self._made[response_id] = replica
        while len(self._made) > self._settings.stored_responses:
            self._made.popitem(last=False)

    async def _deliver(self, call: Call, delivery: Delivery) -> None:
        path = call.scope["path"]
        timeout = HEALTH_SECONDS if path == "/health" else self._settings.request_timeout
        try:
            async with asyncio.timeout(timeout):
                if path in combined.PATHS:
                    await self._deliver_from_all(call, delivery)
                else:
                    await self._deliver_from_one(call, delivery)
        except TimeoutError:
            await delivery.fail(_no_replica() if path == "/health" else errors.timed_out(timeout))
        except TooManyWaiting:
            await delivery.fail(errors.overloaded("The server is busy: too many requests wait. Please try again."))
        except Exception as error:
            await delivery.fail(errors.unexpected(error))

    async def _deliver_from_one(self, call: Call, delivery: Delivery) -> None:
        for attempt in range(ATTEMPTS):
            if attempt:
                (self._counts.resumed if delivery.started else self._counts.retried).inc()
            try:
                delivery.begin()
                async with aclosing(self._replicas.answer(call)) as answer:
                    async for messages in answer:
                        await delivery.take(messages)
                if not delivery.ended:
                    raise ReplicaLost
                return
            except ReplicaLost as lost:
                call = call.avoiding(lost.replica)
                log.warning("%s %s has lost its replica %s", call.scope["method"], call.scope["path"], lost.replica)
            except Diverged:
                log.warning("a stream cannot be resumed: another replica answers otherwise")
                break
        self._counts.lost.inc()
        await delivery.fail(_lost())

    async def _deliver_from_all(self, call: Call, delivery: Delivery) -> None:
        try:
            answers = await self._replicas.answers_of_all(call)
        except ReplicaLost:
            await delivery.fail(_no_replica())
            return
        query = dict(parse_qsl(call.scope["query_string"].decode("latin-1"), keep_blank_values=True))
        answer = combined.combine(call.scope["path"], answers, query.get("replica"), self._counts.registry)
        if call.scope["path"] == combined.CONFIGURE and answer.status == 200:
            await self._replicas.keep_settings(query)
        delivery.begin()
        head = {"type": "http.response.start", "status": answer.status, "headers": list(answer.headers)}
        await delivery.take([head, {"type": "http.response.body", "body": answer.body}])


def _lost() -> errors.ApiError:
    return errors.unavailable("The replica that was answering is lost, and no other could take its place.")


def _no_replica() -> errors.ApiError:
    return errors.unavailable("No replica of the model is ready.")


async def _hints(scope: Scope, body: bytes) -> Hints:
    if scope["method"] != "POST" or not body:
        return Hints()
    given = given_keys(Headers(scope=scope))
    owner = hashlib.sha256(given[0]).hexdigest() if given else ""
    if len(body) > INLINE_BYTES:
        return await asyncio.to_thread(_hints_of, body, owner)
    return _hints_of(body, owner)


def _hints_of(body: bytes, owner: str) -> Hints:
    try:
        parsed: Any = json.loads(body)
    except (ValueError, RecursionError):
        # A replica says what is wrong with it.
        return Hints()
    return Hints.of(parsed, owner)


async def _while_client_stays(work: Any, receive: Receive) -> None:
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
