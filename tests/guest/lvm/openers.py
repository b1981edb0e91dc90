"""A volume that is opened at the worst moment, by this process: to the kernel one opener is like another."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lvp_target_lvm.group import GroupTarget
    from provisioner.contracts import Volume

# What takes a volume away, or takes its name.
_TAKES_AWAY = {"lvrename", "lvremove"}


@contextmanager
def opened_midway(target: GroupTarget, volume: Volume) -> Iterator[list[str]]:
    """Have ``volume`` opened right before the first command that takes it away, and closed when the block ends.

    Yields that command once it was reached.
    """
    change, reached, fds = target.lvm.change, [], []

    async def gated(command: str, *words: str) -> None:
        if not reached and (command in _TAKES_AWAY or (command == "lvchange" and "-an" in words)):
            reached.append(command)
            fds.append(os.open(volume.path, os.O_RDWR))
        await change(command, *words)

    target.lvm.change = gated  # type: ignore[method-assign]
    try:
        yield reached
    finally:
        target.lvm.change = change  # type: ignore[method-assign]
        for fd in fds:
            os.close(fd)
