"""Runs a task beside a block."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable


@asynccontextmanager
async def beside(work: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Run ``work`` until the block ends. The block's own error is raised as it is, not in an exception group."""
    failure: list[Exception] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(work)
        try:
            yield
        except Exception as error:  # noqa: BLE001 - carried out of the nursery, which would wrap it
            failure.append(error)
        nursery.cancel_scope.cancel()
    if failure:
        raise failure[0]
