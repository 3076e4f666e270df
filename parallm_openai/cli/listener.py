"""The address that `serve` listens on: who can reach it, and what the user is told of it."""

from __future__ import annotations

import contextlib
import json
import logging
import resource
import socket

import typer

from parallm_openai.api.visitors import is_loopback
from parallm_openai.origins import ANY
from parallm_openai.settings import ServerSettings

log = logging.getLogger(__name__)


class ListenError(Exception):
    """The address cannot be listened on."""


def listen(host: str, port: int) -> socket.socket:
    """Raises ListenError."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        raise ListenError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another with --host or --port"
        ) from error
    return listener


def exposed(listener: socket.socket, settings: ServerSettings) -> ServerSettings:
    """The settings, in view of who can reach the listener; warns if that is everybody."""
    host, port = listener.getsockname()[:2]
    if settings.api_keys and not settings.admin_keys:
        log.info("/v1/configure is refused: it needs an --admin-key if there are API keys")
    if is_loopback(host):
        return settings
    if not settings.api_keys:
        use = "use it" if settings.admin_keys else "use it and change its settings"
        typer.echo(
            f"\nWARNING: the server listens on {host}:{port} without an API key: everybody who can reach this machine "
            f"there can {use}.\nSet --api-key, or leave --host at 127.0.0.1.\n",
            err=True,
        )
    return settings if settings.allowed_hosts else settings.model_copy(update={"allowed_hosts": (ANY,)})


def announce(listener: socket.socket, model: str, *, needs_key: bool) -> None:
    host, port = listener.getsockname()[:2]
    reachable = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    url = f"http://{reachable}:{port}"
    key = "-H 'Authorization: Bearer YOUR_KEY' " if needs_key else ""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello!"}]})
    typer.echo(
        f"\nServing {model} at {url}/v1 (chat at {url}, documentation at {url}/docs; Ctrl-C stops). Try:\n\n"
        f"  curl {url}/v1/chat/completions -H 'Content-Type: application/json' {key}-d '{body}'\n"
    )


def allow_many_connections() -> None:
    """Raise this process's limit of open files as far as it goes; importing mlx-lm lowers it to 2048."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    # macOS says that there is no limit, and refuses more than some number of its own.
    for files in (most, 65_536, 10_240):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, most))
            return
