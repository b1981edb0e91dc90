"""A script: waits for a lease on an object of a pool, holds it, and renews it when it is told to.

``lease_holder.py REQUEST`` with the keys of ``image_calls.py`` and the arguments ``key`` and ``seconds``. Prints
``held`` once it has the lease. For each line on its standard input it renews the lease and prints ``renewed``, or
``lost`` if another client holds it by now. Prints an error as ``image_calls.py`` does, and ends. At the end of its
input it gives the lease up: so a service that is killed frees it at once, and one that is frozen when ``seconds`` of
the cluster's clock are over.
"""

from __future__ import annotations

import json
import select
import sys
import uuid
from typing import Any

import rados

sys.path.append(__file__.rpartition("/")[0])
from image_calls import release  # type: ignore[import-not-found]
from pool_reads import CallError, connected, failure_of  # type: ignore[import-not-found]

# Seconds between two tries. Others hold a lease for as long as they write an image.
_POLL = 0.3
_MAY_RENEW = 1


def main(request: dict[str, Any]) -> None:
    """Wait for the lease, then renew it line by line."""
    key, seconds = request["arguments"]["key"], request["arguments"]["seconds"]
    cookie = uuid.uuid4().hex
    with connected(request) as (_, io):
        if not _wait(io, key, cookie, seconds):
            return
        print("held", flush=True)
        for _line in sys.stdin:
            held = _take(io, key, cookie, seconds, _MAY_RENEW)
            print("renewed" if held else "lost", flush=True)
        release(io, key, cookie)


def _wait(io: Any, key: str, cookie: str, seconds: int) -> bool:
    """Return True with the lease, or False when the input ends before."""
    while not _take(io, key, cookie, seconds, 0):
        if select.select([sys.stdin], [], [], _POLL)[0]:
            return False
    return True


def _take(io: Any, key: str, cookie: str, seconds: int, flags: int) -> bool:
    try:
        io.lock_exclusive(key, "lvp", cookie, "", seconds, flags)
    except (rados.ObjectBusy, rados.ObjectExists):
        return False
    return True


if __name__ == "__main__":
    try:
        main(json.loads(sys.argv[1]))
    except (CallError, rados.Error) as error:
        print(json.dumps(failure_of(error)), flush=True)
