"""`parallm-openai serve --launch`: the same command on every host, by mlx.launch."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import suppress
from types import FrameType
from typing import NoReturn

import psutil
import typer

from parallm_openai.cli.failure import BAD_USAGE, fail, say
from parallm_openai.cli.options import options_of
from parallm_openai.scaling_settings import RankSettings
from parallm_openai.settings import ServerSettings

THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")
# The line that tells rank 0 to stop.
STOP = b"stop"
# Once one rank has ended, the others have so many seconds.
LATE_SECONDS = 20
# And so many, once the user does not want to wait.
FORCED_SECONDS = 5
# Hands on what it reads, and says to stop when whoever writes has ended, be it killed. mlx.launch's input stays open
# that long: at its end, mlx.launch would read on without a rest.
KEEPER = "trap '' INT HUP TERM; cat; echo stop; while kill -0 \"$1\" 2>/dev/null; do sleep 1; done"


def is_rank() -> bool:
    """Whether mlx.launch, or MPI, has started this process as one of several."""
    return "MLX_RANK" in os.environ or int(os.environ.get("OMPI_COMM_WORLD_SIZE", "1")) > 1


def threads_of_each(processes: int) -> dict[str, str]:
    """The variables by which so many processes share this machine's processors; none if the user has set them."""
    if any(os.environ.get(name) for name in THREADS):
        return {}
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes))}


def launch(settings: RankSettings) -> NoReturn:
    """Start mlx.launch with this process's own arguments, and end as the ranks do: with 0 only if they were told to."""
    if not settings.hosts and settings.hostfile is None and settings.repeat_hosts == 1:
        fail("--launch: needs --hosts, --hostfile or -n; one process alone shares nothing", BAD_USAGE)
    launcher = shutil.which("mlx.launch", path=sysconfig.get_path("scripts")) or shutil.which("mlx.launch")
    if launcher is None:
        fail("--launch: mlx.launch is not here; it comes with mlx")
    # The processes know by their rank that they need not launch others.
    own = [sys.executable, "-m", "parallm_openai", *sys.argv[1:]]
    ranks_read, keeper_writes = os.pipe()
    ranks = subprocess.Popen([launcher, *_arguments(settings), "--", *own], stdin=ranks_read, start_new_session=True)
    keeper = subprocess.Popen(
        ["/bin/sh", "-c", KEEPER, "keeper", str(ranks.pid)],
        stdin=subprocess.PIPE,
        stdout=keeper_writes,
        start_new_session=True,
    )
    os.close(ranks_read)
    os.close(keeper_writes)
    assert keeper.stdin is not None
    signals = _Signals(ranks, keeper.stdin.fileno())
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signals)
    status = _ended(ranks)
    if signals.count > 1:
        _kill_late(ranks)
    if signals.count:
        raise typer.Exit
    say("the ranks have ended; the lines above say why")
    # mlx.launch itself ends well whatever becomes of them.
    raise typer.Exit(status if status > 0 else 1)


class _Signals:
    """The first signal tells the ranks to finish, the second not to wait for requests, the third ends them."""

    def __init__(self, ranks: subprocess.Popen[bytes], writes: int) -> None:
        self._ranks, self._writes = ranks, writes
        self.count = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count > 1:
            _kill(self._ranks, signal.SIGTERM if self.count == 2 else signal.SIGKILL)
        with suppress(OSError):
            os.write(self._writes, STOP + b"\n")


def _ended(ranks: subprocess.Popen[bytes]) -> int:
    """Wait for mlx.launch. If a rank has ended, and another does not although it is told to, kill it."""
    launched = psutil.Process(ranks.pid)
    most, late = 0, 0
    while True:
        with suppress(subprocess.TimeoutExpired):
            return ranks.wait(1)
        with suppress(psutil.Error):
            here = len(launched.children())
            most = max(most, here)
            late = late + 1 if here < most else 0
        if late > LATE_SECONDS:
            say("a rank has ended, and another does not; it is killed")
            _kill(ranks, signal.SIGKILL)


def _kill_late(ranks: subprocess.Popen[bytes]) -> None:
    """Kill the ranks that are still here some seconds after mlx.launch: SIGTERM does not end one that is stopped."""
    for _ in range(FORCED_SECONDS * 10):
        try:
            os.killpg(ranks.pid, 0)
        except OSError:
            return
        time.sleep(0.1)
    _kill(ranks, signal.SIGKILL)


def _kill(ranks: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(ranks.pid, number)


def _arguments(settings: RankSettings) -> Iterator[str]:
    given = {
        "--hosts": ",".join(settings.hosts),
        "--repeat-hosts": str(settings.repeat_hosts),
        "--hostfile": settings.hostfile,
        "--backend": settings.backend,
        "--starting-port": settings.starting_port,
    }
    for flag, value in given.items():
        if value:
            yield from (flag, str(value))
    if not settings.hosts and settings.hostfile is None:
        # Each would compute with as many threads as there are processors.
        for name, number in threads_of_each(settings.repeat_hosts).items():
            yield from ("--env", f"{name}={number}")
    # Keys are for rank 0, and would show in lists of processes.
    secret = {option.variable for option in options_of(ServerSettings) if option.secret}
    for name, value in os.environ.items():
        if name.startswith("PARALLM_") and name not in secret:
            yield from ("--env", f"{name}={value}")
