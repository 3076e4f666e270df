"""The ASGI app around one engine and one model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.responses import Response
from sse_starlette.sse import AppStatus

from parallm_openai import __version__
from parallm_openai.api import (
    admin,
    chat,
    completions,
    embeddings,
    errors,
    health,
    models,
    native,
    page,
    responses,
    tokenize,
)
from parallm_openai.api.anthropic import routes as messages
from parallm_openai.api.middleware import Body, Failures, Keys, RequestHeaders
from parallm_openai.api.ollama import embed as ollama_embed
from parallm_openai.api.ollama import models as ollama_models
from parallm_openai.api.ollama import routes as ollama
from parallm_openai.api.paths import Heads, Paths
from parallm_openai.api.request_log import RequestLog
from parallm_openai.api.response_store import Responses
from parallm_openai.api.route import BODIES_HELD, Bodies, ClientGone
from parallm_openai.api.serving import InFlight, Interruptible
from parallm_openai.api.state import AppState
from parallm_openai.api.tracing.configuration import traces_of_environment
from parallm_openai.api.visitors import Cors, Gate, Visitors
from parallm_openai.engine.async_engine import AsyncEngine
from parallm_openai.models.loading import LoadedModel
from parallm_openai.settings import ServerSettings
from parallm_openai.text.defaults import Defaults

if TYPE_CHECKING:
    from parallm_openai.api.tracing.spans import Traces

MODULES = (
    completions,
    chat,
    responses,
    embeddings,
    messages,
    ollama,
    ollama_models,
    ollama_embed,
    tokenize,
    models,
    health,
    native,
    admin,
)


def create_app(
    engine: AsyncEngine,
    model: LoadedModel,
    settings: ServerSettings,
    defaults: Defaults | None = None,
    traces: Traces | None = None,
    responses: Responses | None = None,
) -> FastAPI:
    """All routes on one engine; the app shuts the engine down with itself.

    `defaults` hold for requests that do not say; without them, the model's own do. Without `traces`, the environment
    says whether there are some. Without `responses`, this process keeps those of `/v1/responses`.
    """
    traces = traces or traces_of_environment()
    # sse-starlette would cut streams half a second after SIGTERM; uvicorn's own time-out rules here.
    AppStatus.disable_automatic_graceful_drain()
    state = AppState.of(engine, model, settings, defaults or Defaults.of(model), responses)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        state.grammars.close()
        await engine.shutdown(settings.graceful_timeout)
        if traces is not None:
            await traces.close()

    app = FastAPI(
        title="ParaLLM OpenAI",
        version=__version__,
        lifespan=lifespan,
        responses=errors.DOCUMENTED,
        # FastAPI's own pages load their scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        # `Paths` takes slashes at the end away; a redirect would lead behind a proxy's path.
        redirect_slashes=False,
        servers=[{"url": settings.root_path}] if settings.root_path else None,
    )
    app.state.bodies = Bodies(BODIES_HELD * settings.max_body_size)
    app.state.shared = state
    for module in MODULES:
        app.include_router(module.router)
    page.install(app)
    errors.install(app)
    app.add_exception_handler(ClientGone, _nobody)
    app.state.in_flight = InFlight()
    visitors = Visitors(settings.cors_origins, settings.allowed_hosts)
    # The last one added is the outermost. Pages can read only errors that arise inside CORS.
    app.add_middleware(Failures)
    app.add_middleware(Body, limit=settings.max_body_size, timeout=settings.body_timeout)
    app.add_middleware(Keys, keys=settings.api_keys, admin_keys=settings.admin_keys)
    app.add_middleware(Interruptible, in_flight=app.state.in_flight)
    app.add_middleware(Gate, visitors=visitors)
    app.add_middleware(Cors, visitors=visitors)
    if traces is not None:
        # Imported with OpenTelemetry alone.
        from parallm_openai.api.tracing.spans import Tracing

        app.add_middleware(Tracing, traces=traces, model=model.name)
    app.add_middleware(Heads)
    app.add_middleware(RequestLog, metrics=state.metrics)
    app.add_middleware(RequestHeaders)
    app.add_middleware(Paths, root_path=settings.root_path or "")
    return app


async def _nobody(request: HttpRequest, error: Exception) -> Response:
    # 499 is nginx's "client closed request"; no one reads it but the access log.
    return Response(status_code=499)
