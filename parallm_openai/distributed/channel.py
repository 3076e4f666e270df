"""The channel on which rank 0 tells the other ranks what to do: a connection to each, which breaks if a side ends."""

from __future__ import annotations

import contextlib
import json
import logging
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

log = logging.getLogger(__name__)

# A rank must be there this long after rank 0 waits for it.
SECONDS = 60.0
# All ranks say so often that they are there, and one that has been silent for so long counts as ended: a machine that
# has lost its power or its network closes no connection.
PULSE_SECONDS = 2.0
SILENT_SECONDS = 20.0
PULSE = "pulse"
# Whoever waits longer for another rank says so.
PATIENCE_SECONDS = 10.0
ADDRESS_BYTES = 512

OnLoss = Callable[[str], None]
"""Called, from a thread of its own, with a sentence that says which rank has ended."""


class ChannelBroken(RuntimeError):
    """Another rank has ended, or cannot be reached."""


class Sender:
    """Rank 0's side: a connection to each other rank, by its number."""

    def __init__(
        self,
        connections: Mapping[int, Connection],
        on_loss: OnLoss,
        *,
        pulse: float = PULSE_SECONDS,
        silence: float = SILENT_SECONDS,
    ) -> None:
        self._connections = connections
        self._closed = threading.Event()
        # The engine's thread, the one that ends the server and the pulse all send.
        self._sending = threading.Lock()
        # Two threads: a rank that does not read may hold up who sends, but not who notices.
        threading.Thread(target=self._watch, args=(on_loss, pulse, silence), name="ranks", daemon=True).start()
        threading.Thread(target=self._beat, args=(pulse,), name="pulse", daemon=True).start()

    def send(self, message: object) -> None:
        try:
            with self._sending:
                for connection in self._connections.values():
                    connection.send(message)
        except OSError as error:
            raise ChannelBroken("another rank has ended") from error

    def confirm(self) -> None:
        """Raises ChannelBroken if another rank has ended: the ring then hands out numbers that nobody has computed."""
        if any(map(_has_ended, self._connections.values())):
            raise ChannelBroken("another rank has ended")

    def close(self) -> None:
        """Tell the other ranks that there is nothing more to do."""
        self._closed.set()
        with contextlib.suppress(ChannelBroken):
            self.send(None)

    def _beat(self, pulse: float) -> None:
        with contextlib.suppress(ChannelBroken):
            while not self._closed.wait(pulse):
                self.send(PULSE)

    def _watch(self, on_loss: OnLoss, pulse: float, silence: float) -> None:
        heard = dict.fromkeys(self._connections, time.monotonic())
        lost = None
        while lost is None:
            ready = wait(list(self._connections.values()), pulse)
            for rank, connection in self._connections.items():
                if connection in ready:
                    try:
                        connection.recv_bytes()
                        heard[rank] = time.monotonic()
                    except (EOFError, OSError):
                        lost = _ended(rank)
                elif time.monotonic() - heard[rank] > silence:
                    lost = _silent(rank, silence)
        if not self._closed.is_set():
            on_loss(lost)


class Receiver:
    """Another rank's side: what rank 0 sends, in order, until it closes."""

    def __init__(
        self,
        connection: Connection,
        on_loss: OnLoss,
        *,
        pulse: float = PULSE_SECONDS,
        silence: float = SILENT_SECONDS,
    ) -> None:
        self._messages: SimpleQueue[Any] = SimpleQueue()
        # Both beside the thread that computes: that one may wait for a rank that has ended.
        threading.Thread(target=self._read, args=(connection, on_loss, silence), name="rank 0", daemon=True).start()
        threading.Thread(target=self._beat, args=(connection, pulse), name="pulse", daemon=True).start()

    def _read(self, connection: Connection, on_loss: OnLoss, silence: float) -> None:
        try:
            while True:
                if not connection.poll(silence):
                    on_loss(_silent(0, silence))
                    break
                message = connection.recv()
                if message is None:
                    break
                if message != PULSE:
                    self._messages.put(message)
        except Exception:  # Also a message that has been cut off.
            on_loss(_ended(0))
        self._messages.put(None)

    def _beat(self, connection: Connection, pulse: float) -> None:
        # Who reads notices the end.
        with contextlib.suppress(OSError):
            while True:
                connection.send_bytes(b"")
                time.sleep(pulse)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._messages.get, None)


def _has_ended(connection: Connection) -> bool:
    """Whether the other side is gone, without taking what it has sent."""
    with socket.socket(fileno=os.dup(connection.fileno())) as other:
        try:
            return not other.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True


def _ended(rank: int) -> str:
    return f"rank {rank} of the model has ended"


def _silent(rank: int, seconds: float) -> str:
    return f"rank {rank} of the model has not been heard of for {seconds:.0f} s"


@contextlib.contextmanager
def patience() -> Iterator[None]:
    """For the length of a block that other ranks may make wait for ever: the log says so if it takes long."""
    late = threading.Timer(PATIENCE_SECONDS, log.warning, ("still waiting for the other ranks",))
    late.daemon = True
    late.start()
    try:
        yield
    finally:
        late.cancel()


def open_sender(group: mx.distributed.Group, on_loss: OnLoss) -> Sender:
    """Wait for all other ranks, and tell them by the group itself where and with which key to come.

    Raises ChannelBroken if they do not.
    """
    key = secrets.token_bytes(32)
    host = _own_address()
    listener = Listener((host, 0), authkey=key)
    with patience():
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
    try:
        host, port, key = json.loads(_shared(group, b""))
    except ValueError as error:
        # mx.distributed goes on with any numbers if it breaks.
        raise ChannelBroken("rank 0 of the model cannot be reached") from error
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
