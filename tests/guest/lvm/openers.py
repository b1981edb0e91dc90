"""Opens a volume at the worst moment. The test process opens it itself; to the kernel all openers are alike."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lvp_target_lvm.group import GroupTarget
    from provisioner.contracts import Volume

# Commands that remove or rename a volume.
_TAKES_AWAY = {"lvrename", "lvremove"}


@contextmanager
def opened_midway(target: GroupTarget, volume: Volume) -> Iterator[list[str]]:
    """Open ``volume`` right before the first command that removes, renames or deactivates it; close it at the end.

    Yields a list that gets this command once it is reached.
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
