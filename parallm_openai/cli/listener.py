"""Where `serve` listens: on an address or a Unix domain socket, in the clear or by TLS; and who can reach it there."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import socket
import ssl
import stat
from collections.abc import Iterator

import typer

from parallm_openai.api.visitors import is_loopback
from parallm_openai.origins import ANY
from parallm_openai.setting_types import flag_of
from parallm_openai.settings import ServerSettings, TlsSettings

log = logging.getLogger(__name__)

WAITING_CONNECTIONS = 2048


class ListenError(Exception):
    """It cannot be listened there."""


@contextlib.contextmanager
def listening(settings: ServerSettings) -> Iterator[socket.socket]:
    """The socket to serve on; the file of one on a path goes with it. Raises ListenError."""
    if settings.uds is None:
        yield _on_address(settings.host, settings.port)
        return
    listener = _on_path(settings.uds)
    own = os.stat(settings.uds).st_ino
    try:
        yield listener
    finally:
        # Once this one is closed, another server may have taken its place.
        with contextlib.suppress(OSError):
            if os.stat(settings.uds).st_ino == own:
                os.unlink(settings.uds)


def _on_address(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(WAITING_CONNECTIONS)
    except OSError as error:
        raise ListenError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another with --host or --port"
        ) from error
    return listener


def _on_path(path: str) -> socket.socket:
    """A socket at the path, in place of one that nobody listens on any more."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if os.path.lexists(path):
            _check_abandoned(path)
            os.unlink(path)
        listener.bind(path)
        listener.listen(WAITING_CONNECTIONS)
    except OSError as error:
        listener.close()
        # A path that is too long has no errno.
        raise ListenError(f"--uds: cannot listen on {path}: {error.strerror or error}") from error
    return listener


def _check_abandoned(path: str) -> None:
    """Raise ListenError unless the path is a socket that nobody listens on."""
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        kind = "a folder" if os.path.isdir(path) else "a file"
        raise ListenError(f"--uds: {path} is {kind}, and no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return
    raise ListenError(f"--uds: another server listens on {path}")


def check_tls(settings: TlsSettings) -> None:
    """Raise ListenError unless the certificate and its key can be used."""
    for name in ("ssl_certfile", "ssl_keyfile", "ssl_ca_certs"):
        if (file := getattr(settings, name)) is not None:
            _check_readable(flag_of(name), file)
    if settings.ssl_certfile is None:
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # Without a password OpenSSL would ask at the terminal.
        context.load_cert_chain(
            settings.ssl_certfile, settings.ssl_keyfile, lambda: settings.ssl_keyfile_password or ""
        )
    except (ssl.SSLError, OSError, ValueError) as error:
        said = f"{settings.ssl_certfile} and its key cannot be used ({getattr(error, 'reason', None) or error})"
        needs = "--ssl-keyfile must fit it, and an encrypted one needs --ssl-keyfile-password"
        raise ListenError(f"--ssl-certfile: {said}; {needs}") from error
    if settings.ssl_ca_certs is not None:
        try:
            context.load_verify_locations(settings.ssl_ca_certs)
        except (ssl.SSLError, OSError) as error:
            raise ListenError(f"--ssl-ca-certs: {settings.ssl_ca_certs} holds no certificates in PEM") from error


def _check_readable(flag: str, file: str) -> None:
    try:
        with open(file, "rb"):
            pass
    except OSError as error:
        raise ListenError(f"{flag}: {file}: {error.strerror or error}") from error


def exposed(listener: socket.socket, settings: ServerSettings) -> ServerSettings:
    """The settings, in view of who can reach the listener; warns if that is everybody."""
    if settings.api_keys and not settings.admin_keys:
        log.info("/v1/configure is refused: it needs an --admin-key if there are API keys")
    if listener.family == socket.AF_UNIX:
        return settings
    host, port = listener.getsockname()[:2]
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


def allow_many_connections() -> None:
    """Raise this process's limit of open files as far as it goes; importing mlx-lm lowers it to 2048."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    # macOS says that there is no limit, and refuses more than some number of its own.
    for files in (most, 65_536, 10_240):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, most))
            return
