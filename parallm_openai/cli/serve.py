"""`parallm-openai serve`: load the settings, listen, load the models, run."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from typing import TYPE_CHECKING, Any

from parallm_openai import logs
from parallm_openai.cli.command import with_settings
from parallm_openai.cli.failure import BAD_USAGE, explained, fail, say
from parallm_openai.cli.loading import load_defaults, load_draft, load_model
from parallm_openai.cli.options import options_of
from parallm_openai.cpu import prepare
from parallm_openai.settings import DraftSettings, EngineConfig, ModelSettings, RequestDefaults, ServerSettings

if TYPE_CHECKING:
    from parallm_openai.api.serving import HttpServer
    from parallm_openai.engine.build import DraftSource
    from parallm_openai.engine.worker import AsyncEngine
    from parallm_openai.models.loading import LoadedModel
    from parallm_openai.text.defaults import Defaults

log = logging.getLogger("parallm_openai")


@with_settings(config_file=True)
def serve(
    model: ModelSettings,
    drafting: DraftSettings,
    config: EngineConfig,
    defaults: RequestDefaults,
    settings: ServerSettings,
) -> None:
    """Serve a model over HTTP.

    Every flag is also an environment variable (PARALLM_PORT for --port), and
    a key of the file that --config names (port). A flag wins over a variable,
    and a variable wins over the file.
    """
    prepare()
    logs.set_up(settings.log_level)
    _check_that_keys_are_there(settings)
    # The port is taken before the model is loaded, so that a busy one is known at once.
    listener, settings = _listen(settings)
    target = load_model(model)
    held = load_defaults(target, defaults)
    draft = load_draft(model, drafting)
    _run(target, draft, config, held, settings, listener)


def _check_that_keys_are_there(settings: ServerSettings) -> None:
    """End the command if a variable for keys is set, but there is no key at all."""
    for option in options_of(ServerSettings):
        if option.secret and not getattr(settings, option.field) and option.variable in os.environ:
            fail(
                f"{option.variable} is set but holds no key: the server would be open to everybody; "
                "unset it if that is meant",
                BAD_USAGE,
            )


def _listen(settings: ServerSettings) -> tuple[socket.socket, ServerSettings]:
    """The listening socket, and the settings in view of who can reach it."""
    from parallm_openai.cli.listener import ListenError, exposed, listen

    try:
        listener = listen(settings.host, settings.port)
    except ListenError as error:
        fail(str(error))
    return listener, exposed(listener, settings)


def _run(
    target: LoadedModel,
    draft: DraftSource,
    config: EngineConfig,
    defaults: Defaults,
    settings: ServerSettings,
    listener: socket.socket,
) -> None:
    from parallm_openai.api.serving import FORCED, leave
    from parallm_openai.cli.listener import allow_many_connections
    from parallm_openai.engine.worker import AsyncEngine

    with explained():
        engine = AsyncEngine(target, config, draft)
    allow_many_connections()
    _log_models(target, draft, engine)
    server = _http_server(engine, target, defaults, settings, listener)
    # uvicorn raises the interrupt again after an orderly end.
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    if server.force_exit:
        leave(FORCED)
    if not server.started:
        fail("the server could not be started; the log above says why")
    if engine.failed:
        say("the engine has failed; the log above says why")
        leave(1)
    if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
        leave(0)


def _log_models(target: LoadedModel, draft: DraftSource, engine: AsyncEngine) -> None:
    from parallm_openai.doctor import one_line
    from parallm_openai.models.loading import LoadedModel

    log.info("%s", one_line(target))
    speculation = engine.stats()["speculative_stats"]
    drafter = speculation["drafter"]
    # A target that cannot speculate is served without the draft model.
    if isinstance(draft, LoadedModel) and drafter != "none":
        drafter = f"draft model {draft.name}"
    log.info("drafter: %s, speculation %s", drafter, "on" if speculation["enabled"] else "off")


def _http_server(
    engine: AsyncEngine,
    target: LoadedModel,
    defaults: Defaults,
    settings: ServerSettings,
    listener: socket.socket,
) -> HttpServer:
    from parallm_openai.api.app import create_app
    from parallm_openai.api.serving import HttpServer
    from parallm_openai.cli.listener import announce

    class Announcing(HttpServer):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            if self.started:
                announce(listener, target.name, needs_key=bool(settings.api_keys))

    options: dict[str, Any] = {"log_level": settings.log_level, "access_log": settings.log_level == "debug"}
    server = Announcing(create_app(engine, target, settings, defaults), **options)

    def stop_serving() -> None:
        server.should_exit = True

    engine.on_failure = stop_serving
    return server
