"""`parallm-openai serve`: load the settings, listen, load the models, run."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from parallm_openai import interrupts, logs
from parallm_openai.cli import streams
from parallm_openai.cli.command import with_settings
from parallm_openai.cli.failure import BAD_USAGE, explained, fail, say
from parallm_openai.cli.launch import is_rank, launch
from parallm_openai.cli.loading import load_defaults, load_draft, load_model
from parallm_openai.cli.options import options_of
from parallm_openai.cli.progress import stage
from parallm_openai.cli.ranks import end_engine_on_loss, follow_rank_0, join_ranks
from parallm_openai.cli.replicas import check as check_replicas
from parallm_openai.cli.replicas import serve_replicas
from parallm_openai.cpu import prepare
from parallm_openai.replicas.plan import Plan
from parallm_openai.scaling_settings import RankSettings, ReplicaSettings
from parallm_openai.settings import (
    DraftSettings,
    EngineConfig,
    ModelSettings,
    RequestDefaults,
    ServerSettings,
    TlsSettings,
)

if TYPE_CHECKING:
    from parallm_openai.api.serving import HttpServer
    from parallm_openai.engine.async_engine import AsyncEngine
    from parallm_openai.engine.build import DraftSource
    from parallm_openai.models.loading import LoadedModel
    from parallm_openai.text.defaults import Defaults

log = logging.getLogger("parallm_openai")


@with_settings(config_file=True, positional="model")
def serve(
    model: ModelSettings,
    drafting: DraftSettings,
    config: EngineConfig,
    defaults: RequestDefaults,
    settings: ServerSettings,
    tls: TlsSettings,
    replicas: ReplicaSettings,
    sharing: RankSettings,
) -> None:
    """Serve a model over HTTP.

    Every flag is also an environment variable (PARALLM_PORT for --port), and
    a key of the file that --config names (port). A flag wins over a variable,
    and a variable wins over the file.
    """
    streams.let_output_fail()
    if replicas.replicas is not None:
        check_replicas(settings, tls)
        if sharing.launch or is_rank():
            fail("--replicas: a replica cannot be shared by several processes", BAD_USAGE)
    _check_that_keys_are_there(settings)
    if sharing.launch and not is_rank():
        launch(sharing)
    prepare()
    ranks = join_ranks(sharing)
    if ranks is not None and ranks.rank:
        # Rank 0 says what all do.
        logs.set_up("warning", settings.log_format)
        follow_rank_0(model, drafting, sharing, ranks)
    logs.set_up(settings.log_level, settings.log_format)
    if replicas.replicas is not None:
        serve_replicas(Plan(model, drafting, config, defaults, settings, replicas), tls)
        return
    from parallm_openai.cli.listener import ListenError, check_tls, exposed, listening

    with contextlib.ExitStack() as stack:
        try:
            check_tls(tls)
            # The port is taken before the model is loaded, so that a busy one is known at once.
            listener = stack.enter_context(listening(settings))
        except ListenError as error:
            fail(str(error))
        settings = exposed(listener, settings)
        target = load_model(model, ranks)
        held = load_defaults(target, defaults)
        draft = load_draft(model, drafting, ranks if sharing.shard_draft else None)
        server, engine = _run(_Service(target, draft, config, held, settings, tls, listener, stack.close))
    # Not before what the stack holds is away: this may end the process.
    _end(server, engine)


@dataclass(frozen=True)
class _Service:
    """All that a server is made of; `take_away` removes what others would find it by."""

    target: LoadedModel
    draft: DraftSource
    config: EngineConfig
    defaults: Defaults
    settings: ServerSettings
    tls: TlsSettings
    listener: socket.socket
    take_away: Callable[[], None]


def _check_that_keys_are_there(settings: ServerSettings) -> None:
    """End the command if a variable for keys is set, but there is no key at all."""
    for option in options_of(ServerSettings):
        if option.secret and not getattr(settings, option.field) and option.variable in os.environ:
            fail(
                f"{option.variable} is set but holds no key: the server would be open to everybody; "
                "unset it if that is meant",
                BAD_USAGE,
            )


def _run(service: _Service) -> tuple[HttpServer, AsyncEngine]:
    """Serve until the end."""
    from parallm_openai.cli.listener import allow_many_connections
    from parallm_openai.engine.async_engine import AsyncEngine

    with explained(), stage("warming up"):
        engine = AsyncEngine(service.target, service.config, service.draft)
    if service.target.ranks is not None:
        end_engine_on_loss(service.target.ranks, engine)
    allow_many_connections()
    server = _http_server(service, engine)
    # uvicorn raises the interrupt again after an orderly end.
    with contextlib.suppress(KeyboardInterrupt), interrupts.raised_once():
        server.run(sockets=[service.listener])
    return server, engine


def _end(server: HttpServer, engine: AsyncEngine) -> None:
    """End the process as the server has ended."""
    from parallm_openai.api.serving import FORCED, leave

    if server.force_exit:
        leave(FORCED)
    if not server.started:
        fail("the server could not be started; the log above says why")
    if engine.failed:
        say("the engine has failed; the log above says why")
        leave(1)
    if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
        leave(0)


def _http_server(service: _Service, engine: AsyncEngine) -> HttpServer:
    from parallm_openai.api.app import create_app
    from parallm_openai.api.serving import HttpServer
    from parallm_openai.cli.announcement import Address, announce, describe
    from parallm_openai.models.loading import LoadedModel

    target, settings = service.target, service.settings
    address = Address.of(service.listener, secure=service.tls.ssl_certfile is not None)
    facts = describe(target, service.draft if isinstance(service.draft, LoadedModel) else None, engine)

    class Announcing(HttpServer):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            if self.started:
                announce(address, target.name, facts, needs_key=bool(settings.api_keys))

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            # After it, uvicorn raises the signal again, and SIGTERM ends the process.
            service.take_away()
            await super().shutdown(sockets=sockets)
            if target.ranks is not None:
                target.ranks.end()

    options: dict[str, Any] = {"log_level": settings.log_level, "access_log": settings.log_level == "debug"}
    # uvicorn's own names; what is not given has uvicorn's default.
    options |= service.tls.model_dump(exclude_none=True, exclude_defaults=True)
    server = Announcing(create_app(engine, target, settings, service.defaults), **options)

    def stop_serving() -> None:
        server.should_exit = True

    engine.on_failure = stop_serving
    return server
