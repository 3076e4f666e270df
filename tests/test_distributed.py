"""A model sharded over two ranks answers as it does on one, drafts and all; and ends if one of them does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from support.processes import ROOT

from parallm_openai.distributed import channel
from parallm_openai.distributed.channel import Receiver, Sender

pytestmark = pytest.mark.slow


def launched(*arguments: str) -> list[dict[str, Any]]:
    """What two ranks on this machine print, by the ring backend."""
    command = [str(Path(sys.executable).parent / "mlx.launch"), "-n", "2", "--starting-port", str(free_port())]
    own = [sys.executable, "-m", "support.ranks", *arguments]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }
    done = subprocess.run([*command, *own], capture_output=True, text=True, env=environment, timeout=280)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert found, done.stdout + done.stderr
    return found


def free_port() -> int:
    """The first of two ports that are likely to be free, one for each rank."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.mark.parametrize(
    ("family", "split"),
    [("llama", "heads"), ("llama", "draft"), ("qwen3_5", "heads"), ("qwen2", "layers"), ("qwen3_next", "layers")],
)
def test_two_ranks_answer_as_one_does(family: str, split: str) -> None:
    plain, drafted = launched(family, split)
    assert all(plain["same"])
    assert all(drafted["same"])
    assert (plain["drafter"], drafted["drafter"]) == ("none", "draft_model+suffix")
    assert drafted["accepted"] > 20


def test_if_a_rank_ends_the_other_knows() -> None:
    assert launched("llama", "heads", "60") == [{"lost": "rank 1 of the model has ended"}]


def connected() -> tuple[Connection, Connection]:
    with Listener(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        accepted = pool.submit(listener.accept)
        return Client(listener.address), accepted.result()


def first_of(told: SimpleQueue[str]) -> str:
    return told.get(timeout=60)


def test_what_rank_0_sends_arrives_in_order_until_it_closes() -> None:
    told: SimpleQueue[str] = SimpleQueue()
    own, other = connected()
    sender, receiver = Sender({1: own}, told.put), Receiver(other, told.put)
    for number in range(100):
        sender.send(number)
    sender.close()
    assert list(receiver) == list(range(100))
    other.close()
    own.close()
    assert told.empty()


def test_a_side_that_says_nothing_is_lost_although_its_connection_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "SILENCE_SECONDS", 0.5)
    monkeypatch.setattr(channel, "BEAT_SECONDS", 0.1)
    told: SimpleQueue[str] = SimpleQueue()
    silent_rank, silent_leader = connected(), connected()
    Sender({1: silent_rank[0]}, told.put)
    assert first_of(told) == "nothing is heard of rank 1 of the model"
    Receiver(silent_leader[0], told.put)
    assert first_of(told) == "nothing is heard of rank 0 of the model"


def test_sides_that_have_nothing_to_say_stay_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "BEAT_SECONDS", 0.01)
    told: SimpleQueue[str] = SimpleQueue()
    own, other = connected()
    sender, receiver = Sender({1: own}, told.put), Receiver(other, told.put)
    time.sleep(1)
    sender.send("still here")
    assert next(iter(receiver)) == "still here"
    assert told.empty()
