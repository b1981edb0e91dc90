"""Tasks side by side, and the one cause a person should read when several failed. Owns no error of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from provisioner.contracts.errors import ProvisionerError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


async def run_both(first: Callable[[], Awaitable[object]], second: Callable[[], Awaitable[object]]) -> None:
    """Run both to their end. The first error ends the other and is raised by itself, not in a group."""
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first)
            nursery.start_soon(second)
    except BaseExceptionGroup as group:
        cause = first_cause(group)
        if isinstance(cause, trio.Cancelled):
            raise
        raise cause from group


def first_cause(error: BaseException) -> BaseException:
    """The error to tell of: one of our own before any other, Cancelled only where there is nothing else."""
    causes = leaves(error)
    for kind in (ProvisionerError, Exception):
        for cause in causes:
            if isinstance(cause, kind):
                return cause
    return causes[0]


def leaves(error: BaseException) -> list[BaseException]:
    """The exceptions in a group, however nested, in order; a bare exception is its own leaf."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in leaves(inner)]
    return [error]
