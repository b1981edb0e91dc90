"""Connections whose peer must take what it is sent: a reader that stops reading is cut, and holds nobody up.

Hypercorn sends under a shield, which not even the service's own end gets through. The deadline is therefore here, below
TLS, for each piece sent: a slow line gets through, a dead one does not.
"""

from __future__ import annotations

import trio

# Seconds for each piece to leave, and its size: slower than 2 KiB a second is not reading.
_PATIENCE = 30.0
_PIECE = 64 * 1024


class PatientStream(trio.abc.HalfCloseableStream):
    """A socket's stream that loses patience while sending. ``socket`` is what hypercorn asks addresses of."""

    def __init__(self, stream: trio.SocketStream, patience: float = _PATIENCE) -> None:
        self._stream = stream
        self._patience = patience
        self.socket = stream.socket

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Raises BrokenResourceError where a piece did not leave in time."""
        view = memoryview(data)
        for at in range(0, len(view), _PIECE):
            with trio.move_on_after(self._patience) as scope:
                await self._stream.send_all(view[at : at + _PIECE])
            if scope.cancelled_caught:
                await trio.aclose_forcefully(self._stream)
                raise trio.BrokenResourceError(f"the peer took nothing for {self._patience:g} s")

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self._stream.aclose()
