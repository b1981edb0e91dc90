"""A proxy on loopback that adds a round-trip time to TCP connections, for benchmarks.

Kernels of small test machines often lack netem. A new connection costs one round trip before its first byte, like a
real handshake; every further byte arrives half a round trip later. Loss and slow start are not modelled.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

PIECE = 256 * 1024


class DelayProxy:
    """Forwards a port of its own to ``target``. ``rtt`` is in seconds and counts for connections made from then on.

    ``connections`` counts the accepted connections. ``bytes_per_second`` limits each connection; None does not.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self.port = 0
        self.rtt = 0.0
        self.bytes_per_second: float | None = None
        self.connections = 0
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> DelayProxy:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        self.close_connections()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def close_connections(self) -> None:
        """Close every connection, as a server does with idle ones; return when it is done."""
        done = threading.Event()

        def close() -> None:
            for writer in self._open:
                writer.close()
            self._loop.call_later(0.02, done.set)

        self._loop.call_soon_threadsafe(close)
        done.wait()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        for task in self._tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*self._tasks, return_exceptions=True))
        server.close()
        self._loop.close()

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        self.connections += 1
        opens = self._loop.time() + self.rtt
        server, to_server = await asyncio.open_connection("127.0.0.1", self._target)
        self._open |= {to_client, to_server}
        ways = [
            self._loop.create_task(self._forward(client, to_server, opens, self.rtt / 2)),
            self._loop.create_task(self._forward(server, to_client, opens, self.rtt / 2)),
        ]
        self._tasks |= set(ways)
        await asyncio.wait(ways)
        self._tasks -= set(ways)
        self._open -= {to_client, to_server}

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, opens: float, delay: float
    ) -> None:
        """Forward one direction: a task reads and notes when each piece is due, this one writes it then."""
        # Its length bounds what is on the way: 64 pieces, like the window of a connection.
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(64)

        async def read() -> None:
            free = opens
            with suppress(OSError):
                while data := await reader.read(PIECE):
                    free = max(free, self._loop.time())
                    if self.bytes_per_second is not None:
                        free += len(data) / self.bytes_per_second
                    await pieces.put((free + delay, data))
            await pieces.put((self._loop.time() + delay, b""))

        reading = self._loop.create_task(read())
        try:
            with suppress(OSError):
                while True:
                    due, data = await pieces.get()
                    await asyncio.sleep(max(0.0, due - self._loop.time()))
                    if not data:
                        return
                    writer.write(data)
                    await writer.drain()
        finally:
            reading.cancel()
            writer.close()
