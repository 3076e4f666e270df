"""The channel between ranks: what rank 0 sends arrives in order, and nobody waits for a rank that is gone."""

from __future__ import annotations

import threading
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from queue import Queue

import pytest

from parallm_openai.distributed.channel import ChannelBroken, Receiver, Sender
from parallm_openai.scaling_settings import RankSettings

# Longer than anything takes here.
NEVER = 1000.0


def sender(connection: Connection, lost: Queue[str], *, pulse: float = NEVER, silence: float = NEVER) -> Sender:
    return Sender({1: connection}, lost.put, pulse=pulse, silence=silence)


def test_what_is_sent_arrives_in_order_between_pulses() -> None:
    here, there = Pipe()
    lost: Queue[str] = Queue()
    sending = sender(here, lost, pulse=0.001)
    received = iter(Receiver(there, lost.put, pulse=0.001))
    for number in range(1000):
        sending.send(number)
    assert [next(received) for _ in range(1000)] == list(range(1000))
    sending.close()
    assert list(received) == []
    assert lost.empty()


def test_threads_that_send_at_the_same_time_do_not_tear_messages() -> None:
    here, there = Pipe()
    lost: Queue[str] = Queue()
    sending = sender(here, lost)
    received = iter(Receiver(there, lost.put, pulse=NEVER))
    large = [[number] * 100_000 for number in range(8)]
    threads = [threading.Thread(target=sending.send, args=(message,)) for message in large]
    for thread in threads:
        thread.start()
    assert sorted(next(received) for _ in large) == large


def test_the_end_of_another_rank_is_told_and_confirms_nothing() -> None:
    here, there = Pipe()
    lost: Queue[str] = Queue()
    sending = sender(here, lost)
    sending.confirm()
    there.close()
    with pytest.raises(ChannelBroken):
        sending.confirm()
    assert lost.get(timeout=60) == "rank 1 of the model has ended"


def test_a_rank_that_says_nothing_counts_as_ended() -> None:
    here, there = Pipe()
    lost: Queue[str] = Queue()
    sender(here, lost, pulse=0.01, silence=0.1)
    assert lost.get(timeout=60) == "rank 1 of the model has not been heard of for 0 s"
    Receiver(there, lost.put, pulse=NEVER, silence=NEVER)


def test_a_rank_0_that_says_nothing_counts_as_ended() -> None:
    _here, there = Pipe()
    lost: Queue[str] = Queue()
    received = iter(Receiver(there, lost.put, pulse=NEVER, silence=0.1))
    assert lost.get(timeout=60) == "rank 0 of the model has not been heard of for 0 s"
    assert list(received) == []


def test_a_message_that_is_cut_off_ends_the_rank() -> None:
    here, there = Pipe()
    lost: Queue[str] = Queue()
    received = iter(Receiver(there, lost.put, pulse=NEVER))
    here.send_bytes(b"no pickle")
    assert lost.get(timeout=60) == "rank 0 of the model has ended"
    assert list(received) == []


def test_ports_beyond_the_last_one_are_refused() -> None:
    assert RankSettings(launch=True, repeat_hosts=2, starting_port=65534).starting_port == 65534
    with pytest.raises(ValueError, match="--starting-port: 4 ports are needed"):
        RankSettings(launch=True, hosts=("10.0.0.1", "10.0.0.2"), repeat_hosts=2, starting_port=65533)
