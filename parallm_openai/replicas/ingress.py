"""The ingress: takes a request, has a replica answer it, and another one if that is lost."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl

from prometheus_client import CollectorRegistry, Counter
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from parallm_openai.api import errors
from parallm_openai.api.middleware import Body, Failures, Keys, RequestHeaders, given_keys
from parallm_openai.api.paths import Heads, Paths
from parallm_openai.api.request_log import asked, log_answer
from parallm_openai.api.route import BODIES_HELD, INLINE_BYTES, Bodies, Share
from parallm_openai.api.visitors import Cors, Gate, Visitors
from parallm_openai.replicas import combined
from parallm_openai.replicas.calls import REPLICA_HEADER, Call, ReplicaLost, Replicas, TooManyWaiting
from parallm_openai.replicas.delivery import Delivery
from parallm_openai.replicas.prefixes import Hints
from parallm_openai.replicas.replay import Diverged
from parallm_openai.settings import ServerSettings

log = logging.getLogger(__name__)

# A request that ends the replicas which try it must not end all of them.
ATTEMPTS = 3
# The time in which /health must find a replica.
HEALTH_SECONDS = 5.0
# A replica that runs out of time says so itself: it has this long to do it.
LAST_WORDS_SECONDS = 2.0
# The pause before a request that was running asks again for a place in the full queue.
PAUSE_SECONDS = 0.2
# How a WebSocket is refused: the ASGI server answers with a 403.
POLICY_VIOLATION = 1008


class Counts:
    """What became of requests whose replica was lost."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.retried = self._counter("requests_retried", "Requests answered by another replica, from their beginning.")
        self.resumed = self._counter("streams_resumed", "Streams that another replica has gone on with.")
        self.lost = self._counter("requests_lost", "Requests that ended with an error because replicas were lost.")

    def _counter(self, name: str, what: str) -> Counter:
        return Counter(f"parallm:{name}", what, registry=self.registry)


def create_ingress(replicas: Replicas, settings: ServerSettings, most: int = 1) -> Starlette:
    """The ASGI app before at most so many replicas. What it refuses never reaches one."""
    app = Starlette(routes=[Mount("/", app=Ingress(replicas, settings, most))])
    errors.install(app)
    visitors = Visitors(settings.cors_origins, settings.allowed_hosts)
    # The last one added is the outermost, as in `create_app`.
    app.add_middleware(Failures)
    app.add_middleware(Body, limit=settings.max_body_size, timeout=settings.body_timeout)
    app.add_middleware(Keys, keys=settings.api_keys, admin_keys=settings.admin_keys)
    app.add_middleware(Gate, visitors=visitors)
    app.add_middleware(Cors, visitors=visitors)
    app.add_middleware(Heads)
    app.add_middleware(OwnAnswers)
    app.add_middleware(RequestHeaders)
    app.add_middleware(Paths, root_path=settings.root_path or "")
    return app


class OwnAnswers:
    """Logs what the ingress itself answers: it refuses, or has no replica. The others are in the replicas' logs."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began, status = time.perf_counter(), None

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start" and REPLICA_HEADER not in Headers(raw=message["headers"]):
                status = message["status"]
            await send(message)

        await self._app(scope, receive, noting)
        if status is not None:
            log_answer(scope, status, began)


class Ingress:
    """Answers a request by the replicas."""

    def __init__(self, replicas: Replicas, settings: ServerSettings, most: int) -> None:
        self._replicas = replicas
        self._settings = settings
        self._counts = Counts()
        # They are kept until they are answered, for another replica may have to do that.
        self._bodies = Bodies(most * BODIES_HELD * settings.max_body_size)
        # Which replica has made each of the last responses: it has computed what continues them.
        self._made: OrderedDict[str, str] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": POLICY_VIOLATION})
            return
        with self._bodies.share() as share:
            try:
                body = await _body(Request(scope, receive), share)
            except ClientDisconnect:
                return
            await self._answer(scope, body, receive, send)

    async def _answer(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        delivery = Delivery(scope, send)
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
        path, limit = call.scope["path"], self._settings.request_timeout
        seconds = HEALTH_SECONDS if path == "/health" else limit + LAST_WORDS_SECONDS
        try:
            async with asyncio.timeout(seconds):
                if path in combined.PATHS:
                    await self._deliver_from_all(call, delivery)
                else:
                    await self._deliver_from_one(call, delivery)
        except TimeoutError:
            await delivery.fail(_no_replica() if path == "/health" else errors.timed_out(limit))
        except TooManyWaiting:
            await delivery.fail(errors.overloaded("The server is busy: too many requests wait. Please try again."))
        except errors.ApiError as error:
            await delivery.fail(error)
        except Exception as error:
            await delivery.fail(errors.unexpected(error))

    async def _deliver_from_one(self, call: Call, delivery: Delivery) -> None:
        for attempt in range(ATTEMPTS):
            if attempt:
                (self._counts.resumed if delivery.started else self._counts.retried).inc()
            try:
                await self._attempt(call, delivery, again=attempt > 0)
                return
            except ReplicaLost as lost:
                replica = lost.replica or delivery.replica
                call = call.avoiding(replica)
                log.warning("%s has lost its replica %s", _named(call.scope), replica)
            except Diverged:
                log.warning("%s cannot be resumed: another replica answers otherwise", _named(call.scope))
                break
        self._counts.lost.inc()
        await delivery.fail(_lost())

    async def _attempt(self, call: Call, delivery: Delivery, *, again: bool) -> None:
        """Have one replica answer. Raises ReplicaLost, Diverged, and TooManyWaiting if it is not `again`."""
        while True:
            try:
                delivery.begin(again=again)
                async with aclosing(self._replicas.answer(call)) as answer:
                    async for messages in answer:
                        await delivery.take(messages)
                if not delivery.ended:
                    raise ReplicaLost
                return
            except TooManyWaiting:
                # A request that was running already waits, however many others do.
                if not again:
                    raise
                await asyncio.sleep(PAUSE_SECONDS)

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


def _named(scope: Mapping[str, Any]) -> str:
    """A request in the log."""
    return " ".join((*asked(scope), Headers(raw=scope["headers"]).get("x-request-id", "")))


async def _body(request: Request, share: Share) -> bytes:
    """The request's body. Raises ClientDisconnect, and ApiError if all bodies together are too large."""
    parts: list[bytes] = []
    async for part in request.stream():
        share.add(len(part))
        parts.append(part)
    return b"".join(parts)


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
        return Hints.of(json.loads(body), owner)
    except (ValueError, RecursionError):
        # A replica says what is wrong with it.
        return Hints()


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
