"""Reads a small document, such as a manifest or a token, from a response."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, cast

import trio

from provisioner.contracts.errors import RemoteUnavailableError, SourceError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from provisioner.contracts import ImageStream

# A small document needs less than a second. min_rate alone would let a server hold a worker for an hour.
MAX_SECONDS = 60.0


async def read_document(stream: ImageStream, limit: int) -> bytes:
    """Return all bytes of ``stream``. Raises SourceError if they are more than ``limit`` or take over a minute."""
    body = bytearray()
    try:
        with trio.fail_after(MAX_SECONDS):
            async with aclosing(cast("AsyncGenerator[bytes]", aiter(stream))) as chunks:
                async for chunk in chunks:
                    body += chunk
                    if len(body) > limit:
                        raise SourceError(f"the registry sent a document of more than {limit // 1024} KiB")
    except trio.TooSlowError as error:
        raise RemoteUnavailableError(f"the registry sent a document for more than {MAX_SECONDS:g} s") from error
    return bytes(body)
