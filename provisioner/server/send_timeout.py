"""Disconnects clients that stop reading, so that they cannot delay shutdown.

Hypercorn shields sending from cancellation, even at shutdown (``hypercorn_quirks``, 5). So the deadline is here, below
TLS, and applies to each chunk: a slow connection passes, a dead one fails.
"""

from __future__ import annotations

import trio

# Seconds for each chunk to be sent, and its size: a client slower than about 2 KiB/s is disconnected.
_SEND_TIMEOUT = 30.0
_CHUNK = 64 * 1024
# Bytes to keep of what a client sent first: enough for the head of a usual request.
_HEAD = 2048


class SendTimeoutStream(trio.abc.HalfCloseableStream):
    """A socket's stream with a deadline for sending. Hypercorn takes the addresses from ``socket``.

    ``last_received`` is when the peer last sent something, on trio's clock; initially when it connected.
    ``head`` is what the peer sent first, before any TLS; the handshake clears it.
    """

    def __init__(self, stream: trio.SocketStream, timeout: float = _SEND_TIMEOUT) -> None:
        self._stream = stream
        self._timeout = timeout
        self.socket = stream.socket
        self.last_received = trio.current_time()
        self.head = b""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send the data. Raises BrokenResourceError if a chunk cannot be sent in time."""
        view = memoryview(data)
        for at in range(0, len(view), _CHUNK):
            with trio.move_on_after(self._timeout) as scope:
                await self._stream.send_all(view[at : at + _CHUNK])
            if scope.cancelled_caught:
                await trio.aclose_forcefully(self._stream)
                raise trio.BrokenResourceError(f"the peer did not read for {self._timeout:g} s")

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await self._stream.receive_some(max_bytes)
        self.last_received = trio.current_time()
        if len(self.head) < _HEAD:
            self.head += data[: _HEAD - len(self.head)]
        return data

    async def aclose(self) -> None:
        await self._stream.aclose()
