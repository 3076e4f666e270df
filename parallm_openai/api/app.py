"""The ASGI app around one engine and one model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.responses import Response
from starlette.middleware.cors import CORSMiddleware

from parallm_openai import __version__
from parallm_openai.api import chat, completions, errors, models, native, responses, tokens
from parallm_openai.api.middleware import ApiKeys, BodyLimit, RequestHeaders
from parallm_openai.api.response_store import ResponseStore
from parallm_openai.api.route import Bodies, ClientGone
from parallm_openai.api.server import Server
from parallm_openai.api.settings import ServerSettings
from parallm_openai.engine.worker import AsyncEngine
from parallm_openai.models.loading import LoadedModel
from parallm_openai.text.tokenizer import Tokenizer

# So many bodies of the largest size may be worked on at the same time.
BODIES_HELD = 16


def create_app(engine: AsyncEngine, model: LoadedModel, settings: ServerSettings) -> FastAPI:
    """All routes on one engine; the app shuts the engine down with itself."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        grammars.close()
        await engine.shutdown(settings.graceful_timeout)

    app = FastAPI(title="ParaLLM OpenAI", version=__version__, lifespan=lifespan, responses=errors.DOCUMENTED)
    tokenizer = Tokenizer(model.tokenizer, model.vocab_size, settings.tool_call_parser)
    grammars = tokenizer.grammars(model.eos_token_ids)
    responses_kept = ResponseStore(settings.stored_responses, settings.stored_responses_bytes)
    app.state.bodies = Bodies(BODIES_HELD * settings.max_body_size)
    app.state.server = Server(engine, model, tokenizer, settings, grammars, responses_kept)
    for module in (completions, chat, responses, tokens, models, native):
        app.include_router(module.router)
    errors.install(app)
    app.add_exception_handler(ClientGone, _nobody)
    # The last one added is the outermost.
    app.add_middleware(BodyLimit, limit=settings.max_body_size)
    app.add_middleware(ApiKeys, keys=settings.api_keys)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "openai-processing-ms", "retry-after"],
        )
    app.add_middleware(RequestHeaders)
    return app


async def _nobody(request: HttpRequest, error: Exception) -> Response:
    # 499 is nginx's "client closed request"; no one reads it but the access log.
    return Response(status_code=499)
