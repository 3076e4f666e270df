"""`parallm-openai serve --replicas N`: Ray Serve on this machine, until a signal ends it."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import typer

from parallm_openai.cli.failure import BAD_USAGE, fail, say
from parallm_openai.cli.launch import threads_of_each
from parallm_openai.cli.loading import have_models
from parallm_openai.cli.progress import stage
from parallm_openai.interrupts import INTERRUPTED
from parallm_openai.replicas.plan import Plan
from parallm_openai.settings import ServerSettings, TlsSettings

log = logging.getLogger("parallm_openai")

APPLICATION = "parallm"
# In seconds: how often Ray is asked while the replicas start and while they run, and how late it passes on their log.
POLL_SECONDS, WATCH_SECONDS, LOG_SECONDS = 0.2, 2.0, 1.5
# Ray's store of large objects; requests and answers are none.
OBJECT_STORE_BYTES = 128 * 2**20
# Ray reads these, its own processes too. It would leave out lines of the log that are like others, and colour them.
# It also kills a proxy that takes more than five seconds to start, as it does on a busy machine.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_COLOR_PREFIX": "0",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "30",
}


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
    from parallm_openai.cli.announcement import Address, announce
    from parallm_openai.cli.listener import ListenError, check_tls, exposed, listening
    from parallm_openai.replicas.front import IMPORT_PATH, VARIABLE

    os.environ.update({**ENVIRONMENT, VARIABLE: IMPORT_PATH})
    if plan.server.log_format == "json":
        # It would stand before each line of JSON.
        os.environ["RAY_DISABLE_WORKER_LOG_PREFIX"] = "1"
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
    have_models(plan.model, plan.drafting)
    ended = _End()
    with _held(host, port), _cluster(_http_options(host, port, tls)) as serve:
        # Not earlier: Ray takes SIGTERM when it starts.
        ended.listen()
        with stage("starting replicas"):
            name, facts = _start(serve, replace(plan, server=server), ended)
        announce(address, name, [("replicas", _number(plan)), *facts], needs_key=bool(server.api_keys))
        _watch(serve, ended)
        say("stopping: running requests are finished first")
        serve.delete(APPLICATION)


def _http_options(host: str, port: int, tls: TlsSettings) -> dict[str, Any]:
    options: dict[str, Any] = {"host": host, "port": port}
    if tls.ssl_certfile is not None:
        options |= {"ssl_certfile": tls.ssl_certfile, "ssl_keyfile": tls.ssl_keyfile or tls.ssl_certfile}
        options["ssl_keyfile_password"] = tls.ssl_keyfile_password
    return options


@contextmanager
def _held(host: str, port: int) -> Iterator[None]:
    """Have nobody else get the port, Ray's own processes least of all, before Ray Serve's proxy listens there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # The proxy sets it, too.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind((host, port))
        yield


@contextmanager
def _cluster(http_options: dict[str, Any]) -> Iterator[Any]:
    """Ray Serve in a cluster of this machine alone, which ends with the block."""
    import ray
    from ray import serve
    from ray.exceptions import RayError

    try:
        with stage("starting Ray"):
            ray.init(
                "local",
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                logging_level=logging.WARNING,
                log_to_driver=True,
            )
            try:
                serve.start(http_options=http_options, logging_config={"log_level": "WARNING"})
            except (RuntimeError, RayError) as error:
                fail(f"Ray Serve could not be started: {_last_line(str(error))}")
        # Its news in this process are none for whoever has started it.
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        yield serve
    finally:
        # All of its processes end with it.
        ray.shutdown()


class _End(threading.Event):
    """The end of the command, which the first SIGINT or SIGTERM asks for; the second does what it did before."""

    def __init__(self) -> None:
        super().__init__()
        self._before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def listen(self) -> None:
        """Take the signals over, from whomever has them."""
        for number in self._before:
            signal.signal(number, self._asked)

    def _asked(self, number: int, frame: object) -> None:
        self.set()
        for each, handler in self._before.items():
            signal.signal(each, handler)


def _start(serve: Any, plan: Plan, ended: _End) -> tuple[str, list[tuple[str, str]]]:
    """Start the application, and wait until all replicas are ready. Ends the command if they cannot be, or must not."""
    from parallm_openai.replicas.application import application

    # The first that cannot be started is reason enough: none has served yet.
    options = {"ray_actor_options": _actor_options(plan), "max_constructor_retry_count": 1}
    target = serve.RunTarget(application(plan, options), name=APPLICATION, route_prefix="/")
    serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
    while (status := _status(serve)).status != "RUNNING":
        if status.status == "DEPLOY_FAILED":
            # Ray's own lines of the log may still be on their way; this one is to be the last.
            time.sleep(LOG_SECONDS)
            fail(f"the replicas could not be started: {_reason(status)}")
        if ended.wait(POLL_SECONDS):
            say("stopped before it served")
            raise typer.Exit(INTERRUPTED)
    facts: tuple[str, list[tuple[str, str]]] = (
        serve.get_deployment_handle("Engine", APPLICATION).facts.remote().result(timeout_s=60)
    )
    return facts


def _status(serve: Any) -> Any:
    """The state of the application."""
    return serve.status().applications[APPLICATION]


def _reason(status: Any) -> str:
    """Why the application could not be started: the last line of the traceback that Ray has of it."""
    return _last_line(max([status.message, *(each.message for each in status.deployments.values())], key=len))


def _last_line(traceback: str) -> str:
    lines = [line.strip() for line in traceback.splitlines() if line.strip()]
    return lines[-1].removeprefix("RuntimeError: ") if lines else "the lines above say why"


def _watch(serve: Any, ended: _End) -> None:
    """Wait for the end, and say how many replicas there are whenever that changes."""
    before: dict[str, int] = {}
    while not ended.wait(WATCH_SECONDS):
        states = _states(serve)
        if states and before and states != before:
            log.warning("replicas: %s", ", ".join(f"{count} {state.lower()}" for state, count in states.items()))
        before = states or before


def _states(serve: Any) -> dict[str, int]:
    """How many replicas are in each state; nothing if Ray Serve cannot say."""
    from ray.exceptions import RayError

    try:
        states: dict[str, int] = _status(serve).deployments["Engine"].replica_states
    except RayError:
        # Ray Serve's controller starts anew.
        return {}
    return states


def _actor_options(plan: Plan) -> dict[str, Any]:
    """Ray's options for each replica on this machine: its share of the processors, and of the GPUs if there are any."""
    import ray

    replicas = plan.replicas.most
    options: dict[str, Any] = {"num_cpus": 0}
    if gpus := ray.cluster_resources().get("GPU", 0):
        share = gpus / replicas
        options["num_gpus"] = min(1, share)
    if threads := threads_of_each(replicas):
        # Ray would leave each replica one thread.
        options["runtime_env"] = {"env_vars": threads}
    return options


def _number(plan: Plan) -> str:
    least, most = plan.replicas.replicas, plan.replicas.max_replicas
    return str(least) if most is None else f"{least} to {most}, as requests queue"
