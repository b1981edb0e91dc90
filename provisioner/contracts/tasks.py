"""Run tasks concurrently, and pick the one error to show if several fail."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from provisioner.contracts.errors import ProvisionerError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


async def run_both(first: Callable[[], Awaitable[object]], second: Callable[[], Awaitable[object]]) -> None:
    """Run both concurrently. The first error cancels the other and is raised bare, not in a group."""
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
    """Return the error to report: ours before any other, Cancelled only if there is no other."""
    causes = leaves(error)
    for kind in (ProvisionerError, Exception):
        for cause in causes:
            if isinstance(cause, kind):
                return cause
    return causes[0]


def leaves(error: BaseException) -> list[BaseException]:
    """Return the exceptions of a nested group in order; a bare exception is its own leaf."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in leaves(inner)]
    return [error]
