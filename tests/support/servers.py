"""Real servers on the bundled model, listening on free ports of this machine."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import httpx

from parallm_openai import demo
from parallm_openai.api.app import create_app
from parallm_openai.api.serving import HttpServer
from parallm_openai.engine.async_engine import AsyncEngine
from parallm_openai.engine.build import DraftSource
from parallm_openai.models.loading import LoadedModel, load
from parallm_openai.settings import EngineConfig, RequestDefaults, ServerSettings
from parallm_openai.text.defaults import Defaults

if TYPE_CHECKING:
    from parallm_openai.api.tracing.spans import Traces


@cache
def demo_target() -> LoadedModel:
    return load(demo.TARGET_PATH, name=demo.MODEL_ID)


@cache
def demo_draft() -> LoadedModel:
    return load(demo.DRAFT_PATH)


@dataclass(frozen=True)
class RunningServer:
    url: str
    engine: AsyncEngine
    model: LoadedModel
    http: HttpServer

    @property
    def client(self) -> httpx.Client:
        # Less than a test may take (pyproject.toml), and far more than any answer does on a slow machine.
        return httpx.Client(base_url=self.url, timeout=240)

    @contextmanager
    def configured(self, **changes: object) -> Iterator[None]:
        """Inside the block the engine has these settings; what anybody changes meanwhile is undone behind it."""
        before = self.engine.config
        try:
            if changes:
                self.engine.configure(**changes)
            yield
        finally:
            self.engine.configure(**before.model_dump())

    def active(self) -> int:
        numbers = self.engine.stats()["batching_stats"]
        return int(numbers["running"] + numbers["prefilling"] + numbers["waiting"])

    def wait_until_idle(self, seconds: float = 10) -> None:
        deadline = time.monotonic() + seconds
        while self.active():
            assert time.monotonic() < deadline, "rows are still running"
            time.sleep(0.01)


@contextmanager
def running_server(
    draft: DraftSource = None,
    settings: ServerSettings | None = None,
    model: LoadedModel | None = None,
    defaults: RequestDefaults | None = None,
    traces: Traces | None = None,
    **config: object,
) -> Iterator[RunningServer]:
    chosen = settings or ServerSettings(graceful_timeout=2)
    model = model or demo_target()
    engine = AsyncEngine(model, EngineConfig.model_validate(config), draft)
    app = create_app(engine, model, chosen, Defaults.of(model, defaults), traces)
    listener = socket.create_server(("127.0.0.1", 0))
    server = HttpServer(app, log_level="warning", access_log=False)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield RunningServer(f"http://127.0.0.1:{listener.getsockname()[1]}", engine, model, server)
    finally:
        server.should_exit = True
        thread.join(20)
