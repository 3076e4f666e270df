"""The channel on which rank 0 tells the other ranks what to do: a connection to each, which breaks if a side ends."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener, wait
from queue import SimpleQueue
from typing import Any

import mlx.core as mx
import numpy as np

# A rank must be there this long after rank 0 waits for it.
SECONDS = 60.0
ADDRESS_BYTES = 512
# Each side says that it is there. A machine that has lost its power or its network breaks no connection.
BEAT, END = "beat", "end"
BEAT_SECONDS, SILENCE_SECONDS = 2.0, 15.0

OnLoss = Callable[[str], None]
"""Called, from a thread of its own, with a sentence that says which rank has ended."""


class ChannelBroken(RuntimeError):
    """Another rank has ended, or cannot be reached."""


class Sender:
    """Rank 0's side: a connection to each other rank, by its number."""

    def __init__(self, connections: Mapping[int, Connection], on_loss: OnLoss) -> None:
        self._connections = connections
        self._sending = threading.Lock()
        self._closed = False
        _in_background(self._watch, on_loss)
        _in_background(self._beat)

    def send(self, message: object) -> None:
        try:
            with self._sending:
                for connection in self._connections.values():
                    connection.send(message)
        except OSError as error:
            raise ChannelBroken("another rank has ended") from error

    def close(self) -> None:
        """Tell the other ranks that there is nothing more to do."""
        self._closed = True
        with contextlib.suppress(ChannelBroken):
            self.send(END)

    def _beat(self) -> None:
        with contextlib.suppress(ChannelBroken):
            while not self._closed:
                time.sleep(BEAT_SECONDS)
                self.send(BEAT)

    def _watch(self, on_loss: OnLoss) -> None:
        said = self._loss()
        if not self._closed:
            on_loss(said)

    def _loss(self) -> str:
        """Wait for a rank that ends, or says nothing any more."""
        heard = dict.fromkeys(self._connections, time.monotonic())
        while True:
            ready = wait(list(self._connections.values()), BEAT_SECONDS)
            for rank, connection in self._connections.items():
                if connection in ready and not _reads_beat(connection):
                    return f"rank {rank} of the model has ended"
                if connection in ready:
                    heard[rank] = time.monotonic()
                elif time.monotonic() - heard[rank] > SILENCE_SECONDS:
                    return f"nothing is heard of rank {rank} of the model"


class Receiver:
    """Another rank's side: what rank 0 sends, in order, until it closes."""

    def __init__(self, connection: Connection, on_loss: OnLoss) -> None:
        self._messages: SimpleQueue[Any] = SimpleQueue()
        # Beside the thread that computes: that one may wait for a rank that has ended.
        _in_background(self._read, connection, on_loss)
        _in_background(self._beat, connection)

    def _read(self, connection: Connection, on_loss: OnLoss) -> None:
        message = None
        try:
            while connection.poll(SILENCE_SECONDS) and (message := connection.recv()) != END:
                if message != BEAT:
                    self._messages.put(message)
            if message != END:
                on_loss("nothing is heard of rank 0 of the model")
        except (EOFError, OSError):
            on_loss("rank 0 of the model has ended")
        self._messages.put(END)

    def _beat(self, connection: Connection) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection.send(BEAT)
                time.sleep(BEAT_SECONDS)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._messages.get, END)


def _in_background(work: Callable[..., None], *arguments: Any) -> None:
    threading.Thread(target=work, args=arguments, name="ranks", daemon=True).start()


def _reads_beat(connection: Connection) -> bool:
    """Read what the rank has sent, which is a beat; False if it has ended."""
    try:
        connection.recv()
    except (EOFError, OSError):
        return False
    return True


def open_sender(group: mx.distributed.Group, on_loss: OnLoss) -> Sender:
    """Wait for all other ranks, and tell them by the group itself where and with which key to come.

    Raises ChannelBroken if they do not.
    """
    key = secrets.token_bytes(32)
    host = _own_address()
    listener = Listener((host, 0), authkey=key)
    _shared(group, json.dumps([host, listener.address[1], key.hex()]).encode())
    come: dict[int, Connection] = {}

    def accept() -> None:
        while len(come) < group.size() - 1:
            # Whoever else comes does not have the key.
            with contextlib.suppress(AuthenticationError, EOFError, OSError):
                connection = listener.accept()
                come[connection.recv()] = connection
        listener.close()

    # A listener has no time limit of its own.
    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    accepting.join(SECONDS)
    if accepting.is_alive():
        raise ChannelBroken(f"{group.size() - 1 - len(come)} of the other ranks have not come within {SECONDS:.0f} s")
    return Sender(come, on_loss)


def open_receiver(group: mx.distributed.Group, on_loss: OnLoss) -> Receiver:
    """The other side of `open_sender`. Raises ChannelBroken if rank 0 has ended."""
    address = _shared(group, b"")
    if not address:
        # mx.distributed goes on with zeros if it breaks.
        raise ChannelBroken("rank 0 of the model cannot be reached")
    host, port, key = json.loads(address)
    connection = Client((host, port), authkey=bytes.fromhex(key))
    connection.send(group.rank())
    return Receiver(connection, on_loss)


def _own_address() -> str:
    """This rank's address as the others reach it: that of the ring's file, else what the host's name leads to."""
    file = os.environ.get("MLX_HOSTFILE")
    if file:
        with open(file, encoding="utf-8") as hosts:
            first = json.load(hosts)[0]
        return str(first[0] if isinstance(first, list) else first).rpartition(":")[0]
    return os.environ.get("NCCL_HOST_IP") or socket.gethostbyname(socket.gethostname())


def _shared(group: mx.distributed.Group, own: bytes) -> bytes:
    """Rank 0's bytes, at every rank."""
    padded = np.zeros(ADDRESS_BYTES, dtype=np.int32)
    padded[: len(own)] = np.frombuffer(own, dtype=np.uint8)
    found = np.array(mx.distributed.all_sum(mx.array(padded), group=group, stream=mx.cpu))
    return bytes(found.astype(np.uint8).tolist()).rstrip(b"\0")
