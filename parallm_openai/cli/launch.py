"""`parallm-openai serve --launch`: the same command on every host, by mlx.launch."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import suppress
from types import FrameType
from typing import NoReturn

import typer

from parallm_openai.cli.failure import fail, say
from parallm_openai.cli.options import options_of
from parallm_openai.settings import RankSettings, ServerSettings

THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")
# The line that tells rank 0 to stop.
STOP = b"stop"


def is_rank() -> bool:
    """Whether mlx.launch, or MPI, has started this process as one of several."""
    return "MLX_RANK" in os.environ or int(os.environ.get("OMPI_COMM_WORLD_SIZE", "1")) > 1


def launch(settings: RankSettings) -> NoReturn:
    """Start mlx.launch with this process's own arguments, and end as the ranks do: with 0 only if they were told to."""
    launcher = shutil.which("mlx.launch", path=sysconfig.get_path("scripts")) or shutil.which("mlx.launch")
    if launcher is None:
        fail("--launch: mlx.launch is not here; it comes with mlx")
    # The processes know by their rank that they need not launch others.
    own = [sys.executable, "-m", "parallm_openai", *sys.argv[1:]]
    reads, writes = os.pipe()
    # mlx.launch holds its own input open: at its end it would read on without a rest.
    ranks = subprocess.Popen(
        [launcher, *_arguments(settings), "--", *own], stdin=reads, pass_fds=(writes,), start_new_session=True
    )
    os.close(reads)
    told = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal told
        if told:
            os.killpg(ranks.pid, signal.SIGTERM)
        told = True
        with suppress(BrokenPipeError):
            os.write(writes, STOP + b"\n")

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    status = ranks.wait()
    if told:
        raise typer.Exit
    say("the ranks have ended; the lines above say why")
    # mlx.launch itself ends well whatever becomes of them.
    raise typer.Exit(status if status > 0 else 1)


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
    if not settings.hosts and settings.hostfile is None and not any(os.environ.get(name) for name in THREADS):
        # Each would compute with as many threads as there are processors.
        yield from ("--env", f"OMP_NUM_THREADS={max(1, (os.cpu_count() or 1) // settings.repeat_hosts)}")
    # Keys are for rank 0, and would show in lists of processes.
    secret = {option.variable for option in options_of(ServerSettings) if option.secret}
    for name, value in os.environ.items():
        if name.startswith("PARALLM_") and name not in secret:
            yield from ("--env", f"{name}={value}")
