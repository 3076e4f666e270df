"""`parallm-openai serve` as one of the processes that mlx.launch has started: who serves, and who computes for it."""

from __future__ import annotations

import os
import signal
import stat
import sys
import threading
import time
from typing import TYPE_CHECKING, NoReturn

from parallm_openai.cli.failure import BAD_USAGE, explained, fail, say
from parallm_openai.cli.launch import STOP, is_rank
from parallm_openai.cli.loading import load_draft, load_model
from parallm_openai.scaling_settings import RankSettings
from parallm_openai.setting_types import flag_of
from parallm_openai.settings import DraftSettings, ModelSettings

if TYPE_CHECKING:
    from parallm_openai.distributed.ranks import Ranks
    from parallm_openai.engine.async_engine import AsyncEngine

# Once another rank has ended, requests have so many seconds to be answered with an error.
SECONDS = 5.0


def join_ranks(settings: RankSettings) -> Ranks | None:
    """The other processes, if mlx.launch has started several. Ends the command if they cannot be reached."""
    ranks = None
    if is_rank():
        ranks = _joined(settings)
        if ranks is None or not ranks.rank:
            threading.Thread(target=_read_launcher, name="launcher", daemon=True).start()
    for name in ("pipeline", "shard_draft") if ranks is None else ():
        if getattr(settings, name):
            fail(f"{flag_of(name)}: needs several processes; --launch starts them", BAD_USAGE)
    return ranks


def _joined(settings: RankSettings) -> Ranks | None:
    from parallm_openai.distributed.ranks import join

    def waiting() -> None:
        if os.environ.get("MLX_RANK") == "0":
            say("waiting for the other ranks")

    try:
        return join(pipeline=settings.pipeline, on_loss=_end_at_once, on_waiting=waiting)
    except RuntimeError as error:
        fail(f"the other processes cannot be reached: {error}")


def follow_rank_0(model: ModelSettings, drafting: DraftSettings, settings: RankSettings, ranks: Ranks) -> NoReturn:
    """Compute this process's share of the model until rank 0 ends, and end with it."""
    from parallm_openai.api.serving import leave
    from parallm_openai.engine.build import follow_core
    from parallm_openai.models.loading import LoadedModel

    target = load_model(model, ranks)
    draft = load_draft(model, drafting, ranks) if settings.shard_draft else None
    # A terminal's interrupt reaches all. Rank 0 lets requests finish, and needs this process for that.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with explained():
            follow_core(target, draft if isinstance(draft, LoadedModel) else None)
    except RuntimeError as error:
        # If the reason is that another rank has ended, it is said by the thread that has noticed.
        time.sleep(1)
        _end_at_once(f"rank {ranks.rank} cannot go on: {error}")
    leave(0)


def _read_launcher() -> None:
    """Stop as by an interrupt once the launcher says so, or has ended."""
    if sys.stdin is None:
        return
    # mlx.launch hands on what it reads through a pipe, or a terminal of ssh. Another input's end says nothing.
    piped = stat.S_ISFIFO(os.fstat(sys.stdin.fileno()).st_mode)
    if _stop_read(sys.stdin.fileno()) or piped:
        os.kill(os.getpid(), signal.SIGINT)


def _stop_read(file: int) -> bool:
    """Whether a line says to stop, before the end. A thread that holds Python's own stdin would abort the exit."""
    line = b""
    while read := os.read(file, 1):
        line = b"" if read == b"\n" else line + read
        if line.strip() == STOP:
            return True
        line = line[-len(STOP) :]
    return False


def end_engine_on_loss(ranks: Ranks, engine: AsyncEngine) -> None:
    """From now on, if another rank ends, so do all requests, with an error; and then the server."""

    from parallm_openai.api.serving import leave

    def lost(said: str) -> None:
        say(said)
        # The engine's thread may wait for that rank for ever.
        threading.Timer(SECONDS, leave, (1,)).start()
        engine.fail(RuntimeError(said))

    ranks.on_loss = lost


def _end_at_once(said: str) -> NoReturn:
    from parallm_openai.api.serving import leave

    say(said)
    leave(1)
