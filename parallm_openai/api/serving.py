"""The HTTP server: uvicorn with deadlines for clients, and with a shutdown that answers every request."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import resource
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from socket import socket
from types import FrameType
from typing import Any, NoReturn

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from parallm_openai.api import errors
from parallm_openai.api.connections import Connection, NoWebSockets
from parallm_openai.api.state import AppState

log = logging.getLogger(__name__)

# Longer than clients keep idle connections (httpx: 5 seconds): one that a client uses again is rarely closed.
KEEP_ALIVE = 30
# The time in which answers must be written once their rows have ended.
ANSWERING = 2.0
# Open files besides connections: the model's, pipes, logs.
OTHER_FILES = 256
MOST_CONNECTIONS = 16_384
# The exit status after a second signal: the one that shells give for an interrupt.
FORCED = 130


class InFlight:
    """The requests that are being answered. A server that shuts down waits for them, and ends those that are late."""

    def __init__(self) -> None:
        self.refusing = False
        self._cut: set[asyncio.Task[Any]] = set()
        self._unstarted: set[asyncio.Task[Any]] = set()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def cut(self) -> None:
        """End the requests whose answer has not begun."""
        self._cut |= self._unstarted
        for task in self._cut:
            task.cancel()

    async def run(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> bool:
        """Let `app` answer. Returns False if `cut` came before the answer began."""
        task = asyncio.current_task()
        assert task is not None

        async def noting(message: Message) -> None:
            if task in self._cut:
                # A task of the app's own may get here before the cancellation gets to it.
                raise asyncio.CancelledError
            self._unstarted.discard(task)
            await send(message)

        self._unstarted.add(task)
        self._count += 1
        try:
            await app(scope, receive, noting)
        except asyncio.CancelledError:
            if task not in self._cut:
                raise
            task.uncancel()
            return False
        finally:
            self._unstarted.discard(task)
            self._cut.discard(task)
            self._count -= 1
        return True


class Interruptible:
    """Counts the requests that are being answered, and answers those that a shutdown cuts off with a 503."""

    def __init__(self, app: ASGIApp, in_flight: InFlight) -> None:
        self.app = app
        self.in_flight = in_flight

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif self.in_flight.refusing or not await self.in_flight.run(self.app, scope, receive, send):
            await errors.shutting_down().response(scope)(scope, receive, send)


class HttpServer(uvicorn.Server):
    """Ends late connections while it runs.

    At its own end it lets requests finish for `graceful_timeout`, then answers those that have no answer yet with a
    503 and ends streams; a second signal skips the waiting.
    """

    def __init__(self, app: FastAPI, **options: Any) -> None:
        state: AppState = app.state.shared
        self.engine = state.engine
        self.settings = state.settings
        self.in_flight: InFlight = app.state.in_flight
        self.most_connections = _most_connections()
        # A last limit, after everything that `shutdown` does itself.
        patience = math.ceil(self.settings.graceful_timeout) + 30
        super().__init__(
            uvicorn.Config(
                app,
                http=Connection,
                ws=NoWebSockets,
                log_config=None,
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=patience,
                **options,
            )
        )

    async def serve(self, sockets: list[socket] | None = None) -> None:
        asyncio.get_running_loop().set_default_executor(_Workers())
        await super().serve(sockets)

    async def on_tick(self, counter: int) -> bool:
        connections: list[Any] = list(self.server_state.connections)
        if counter % 10 == 0:
            for connection in connections:
                connection.end_if_late(self.settings)
        excess = len(connections) - self.most_connections
        if excess > 0:
            self._drop_half_open(connections, excess)
        return await super().on_tick(counter)

    def _drop_half_open(self, connections: list[Connection], excess: int) -> None:
        """Drop the connections that have waited longest for their clients, so that others can come in."""
        waiting = sorted((each for each in connections if each.half_open), key=lambda each: each.since)
        for connection in waiting[: excess + self.most_connections // 10]:
            connection.drop()
        log.warning("more than %d connections: dropped half-open ones", self.most_connections)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            # uvicorn itself would keep waiting after a second SIGTERM.
            self.force_exit = True
        else:
            super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        self.in_flight.refusing = True
        ending = asyncio.create_task(self._end_requests())
        await super().shutdown(sockets)
        await ending
        if self.force_exit:
            await self._end_forced()

    async def _end_requests(self) -> None:
        await self._until(lambda: not self.in_flight or self.force_exit, self.settings.graceful_timeout)
        # Answers that have begun go on: a part of a plain answer would look complete. Streams end with what they have.
        self.in_flight.cut()
        stopping = asyncio.create_task(self.engine.shutdown(0))
        await self._until(lambda: not self.in_flight, ANSWERING)
        connections: list[Any] = list(self.server_state.connections)
        for connection in connections:
            # Its client does not read, so that it cannot be told about the end.
            if connection.answering:
                connection.drop()
        await self._until(lambda: stopping.done() or self.force_exit, math.inf)

    async def _end_forced(self) -> None:
        # uvicorn skips it after a second signal; the end of the loop would then report that it failed.
        lifespan = asyncio.create_task(self.lifespan.shutdown())
        await asyncio.wait({lifespan}, timeout=ANSWERING)
        if not lifespan.done():
            log.warning("the engine is still in a step; ending all the same")
            leave(FORCED)

    @staticmethod
    async def _until(reached: Callable[[], bool], timeout: float) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while not reached() and loop.time() < deadline:
            await asyncio.sleep(0.02)


def leave(status: int) -> NoReturn:
    """End the process now, without waiting for threads that compile a grammar or run a step."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class _Workers(ThreadPoolExecutor):
    """The loop's pool of threads. asyncio would wait for its threads at the end; this one does not."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        super().shutdown(wait=False, cancel_futures=True)


def _most_connections() -> int:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return MOST_CONNECTIONS
    return max(16, min(MOST_CONNECTIONS, files - OTHER_FILES, files * 3 // 4))
