#!/usr/bin/env python3
"""Generate clients from api.yaml, build them and run each against a real daemon.

    .venv/bin/python contrib/clients/run.py                   all clients
    .venv/bin/python contrib/clients/run.py python java       some of them

Exit status 0: every client ran and found the values that it expects. 1: one did not, or could not be built.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from contrib.clients.service import WAYS, Service, running
from contrib.clients.toolchain import CLIENTS, Command, MissingToolError, built

# Seconds; only ends clients that hang.
TIMEOUT = 600


def run(service: Service, name: str, command: Command) -> None:
    """Run a client in each of the ways. Raises AssertionError if one of them fails."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("LVP_")}
    for way in WAYS:
        volume = f"{name}-{way}"
        environment = kept | service.settings(way, volume)
        done = subprocess.run(
            command, env=environment, text=True, timeout=TIMEOUT, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == 0, f"{name}, {way}: status {done.returncode}\n{done.stdout}"
        service.check(volume)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"clients: {', '.join(CLIENTS)} (default: all)")
    names = parser.parse_args().names or list(CLIENTS)
    if unknown := set(names) - set(CLIENTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(CLIENTS)}")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    failed = []
    with tempfile.TemporaryDirectory(prefix="lvp-clients-") as folder, running(Path(folder)) as service:
        for name in names:
            start = time.monotonic()
            try:
                command = built(name)
                ready = time.monotonic()
                run(service, name, command)
            except (AssertionError, RuntimeError, MissingToolError, subprocess.TimeoutExpired) as error:
                failed.append(name)
                print(f"{name}: FAILED: {error}", flush=True)
            else:
                spent = f"built in {ready - start:.0f} s, ran in {time.monotonic() - ready:.1f} s"
                print(f"{name}: ok, {len(WAYS)} runs ({spent})", flush=True)
    print(f"clients: {len(names) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
