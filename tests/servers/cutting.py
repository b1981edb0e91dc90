"""A TCP proxy on loopback that cuts connections after a random number of response bytes, and counts the bytes."""

from __future__ import annotations

import random
import socket
import struct
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHUNK = 256 * 1024


@dataclass
class CuttingProxy:
    """``passed``: bytes sent to clients; ``cuts``: connections that were cut."""

    port: int
    upstream: int
    chance: random.Random
    cut_after: tuple[int, int]  # bytes, from and to
    cut_share: float  # share of the connections that are cut
    passed: int = 0
    cuts: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def serve(self, client: socket.socket) -> None:
        with self._lock:
            budget = self.chance.randint(*self.cut_after) if self.chance.random() < self.cut_share else None
        with client, suppress(OSError), socket.create_connection(("127.0.0.1", self.upstream)) as server:
            requests = threading.Thread(target=_pump_requests, args=(client, server), daemon=True)
            requests.start()
            try:
                self._pass_on(server, client, budget)
            finally:
                # Closing a socket does not wake a thread that reads from it.
                with suppress(OSError):
                    client.shutdown(socket.SHUT_RD)
                requests.join()

    def _pass_on(self, server: socket.socket, client: socket.socket, budget: int | None) -> None:
        while chunk := server.recv(_CHUNK):
            if budget is not None and len(chunk) > budget:
                chunk = chunk[:budget]
            client.sendall(chunk)
            with self._lock:
                self.passed += len(chunk)
            if budget is not None:
                budget -= len(chunk)
                if not budget:
                    self._cut(client)
                    return

    def _cut(self, client: socket.socket) -> None:
        with self._lock:
            self.cuts += 1
            hard = self.chance.random() < 0.5
        if hard:  # a reset instead of an orderly end
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _pump_requests(client: socket.socket, server: socket.socket) -> None:
    with suppress(OSError):
        while chunk := client.recv(_CHUNK):
            server.sendall(chunk)


@contextmanager
def cutting_proxy(upstream: int, *, seed: int, cut_after: tuple[int, int], cut_share: float) -> Iterator[CuttingProxy]:
    """Run a proxy for the server on local port ``upstream`` until the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        proxy = CuttingProxy(listening.getsockname()[1], upstream, random.Random(seed), cut_after, cut_share)

        def accept() -> None:
            with suppress(OSError):
                while True:
                    client, _ = listening.accept()
                    threading.Thread(target=proxy.serve, args=(client,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield proxy
        listening.shutdown(socket.SHUT_RDWR)
