"""`parallm-openai serve --replicas N`: Ray Serve on this machine, until a signal ends it."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from parallm_openai.cli.failure import BAD_USAGE, fail, say
from parallm_openai.cli.launch import THREADS
from parallm_openai.cli.progress import stage
from parallm_openai.replicas.plan import Plan
from parallm_openai.settings import ServerSettings, TlsSettings

APPLICATION = "parallm"
# Ray's store of large objects; requests and answers are none.
OBJECT_STORE_BYTES = 128 * 2**20
# Ray's own files and processes also look at these.
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0"}


def check(settings: ServerSettings, tls: TlsSettings) -> None:
    """End the command if Ray Serve is not here, or cannot do what a flag asks for."""
    if importlib.util.find_spec("ray") is None:
        fail("--replicas: needs Ray Serve, which `pip install 'parallm-openai[ray]'` installs", BAD_USAGE)
    if settings.uds is not None:
        fail("--uds: replicas cannot be served on a socket; Ray Serve listens on --host and --port", BAD_USAGE)
    if tls.ssl_cert_reqs or tls.ssl_ca_certs is not None:
        fail("--ssl-ca-certs: Ray Serve cannot ask clients for certificates; a proxy before it can", BAD_USAGE)


def serve_replicas(plan: Plan, tls: TlsSettings) -> None:
    """Serve until SIGINT or SIGTERM."""
    os.environ.update(ENVIRONMENT)
    from parallm_openai.cli.announcement import Address, announce
    from parallm_openai.cli.listener import ListenError, check_tls, exposed, listening

    try:
        check_tls(tls)
        # Ray Serve would look for another port, or fail minutes later.
        with listening(plan.server) as listener:
            address = Address.of(listener, secure=tls.ssl_certfile is not None)
            server = exposed(listener, plan.server)
            host, port = listener.getsockname()[:2]
            listener.close()
    except ListenError as error:
        fail(str(error))
    with _cluster(_http_options(host, port, tls)) as serve, _signals() as ended:
        with stage("starting replicas"):
            name, facts = _start(serve, replace(plan, server=server))
        announce(address, name, [("replicas", _number(plan)), *facts], needs_key=bool(server.api_keys))
        ended.wait()
        say("stopping: running requests are finished first")
        serve.delete(APPLICATION)


def _http_options(host: str, port: int, tls: TlsSettings) -> dict[str, Any]:
    options: dict[str, Any] = {"host": host, "port": port}
    if tls.ssl_certfile is not None:
        options |= {"ssl_certfile": tls.ssl_certfile, "ssl_keyfile": tls.ssl_keyfile or tls.ssl_certfile}
        options["ssl_keyfile_password"] = tls.ssl_keyfile_password
    return options


@contextmanager
def _cluster(http_options: dict[str, Any]) -> Iterator[Any]:
    """Ray Serve in a cluster of this machine alone, which ends with the block."""
    import ray
    from ray import serve

    with stage("starting Ray"):
        ray.init(
            "local",
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            logging_level=logging.WARNING,
            log_to_driver=True,
        )
        serve.start(http_options=http_options, logging_config={"log_level": "WARNING"})
    try:
        yield serve
    finally:
        serve.shutdown()
        ray.shutdown()


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; the second does what it did before."""
    ended = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def end(number: int, frame: object) -> None:
        ended.set()
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, end)
    try:
        yield ended
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(serve: Any, plan: Plan) -> tuple[str, list[tuple[str, str]]]:
    """Start the application, and wait until all replicas are ready. Ends the command if they cannot be."""
    from parallm_openai.replicas.application import application

    try:
        serve.run(application(plan, _actor_options(plan)), name=APPLICATION, route_prefix="/")
    except RuntimeError as error:
        fail(f"the replicas could not be started: {error}")
    facts: tuple[str, list[tuple[str, str]]] = (
        serve.get_deployment_handle("Engine", APPLICATION).facts.remote().result(timeout_s=60)
    )
    return facts


def _actor_options(plan: Plan) -> dict[str, Any]:
    """Ray's options for each replica on this machine: its share of the processors, and of the GPUs if there are any."""
    import ray

    replicas = plan.replicas.max_replicas or plan.replicas.replicas or 1
    options: dict[str, Any] = {"num_cpus": 0}
    if gpus := ray.cluster_resources().get("GPU", 0):
        share = gpus / replicas
        options["num_gpus"] = min(1, share)
    if not any(os.environ.get(name) for name in THREADS):
        # Ray would leave each replica one thread.
        threads = max(1, (os.cpu_count() or 1) // replicas)
        options["runtime_env"] = {"env_vars": {"OMP_NUM_THREADS": str(threads)}}
    return options


def _number(plan: Plan) -> str:
    least, most = plan.replicas.replicas, plan.replicas.max_replicas
    return str(least) if most is None else f"{least} to {most}, as requests queue"
