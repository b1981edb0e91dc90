#!/usr/bin/env python3
"""Run a real daemon under random operations and faults, and check its guarantees after each round.

    .venv/bin/python contrib/soak/soak.py --minutes 5 --seed 1

Exit status 0: all guarantees held. 1: one was violated; the seed and the folder with all logs are printed.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from contrib.soak import invariants
from contrib.soak.clients import Client
from contrib.soak.faults import FAULTS
from contrib.soak.lab import CLIENTS, Harness, lab

if TYPE_CHECKING:
    from contrib.soak.invariants import Figures

ROUND_SECONDS = 6.0
# How much a process may grow, at rest, after its first rounds: allocator noise and idle worker threads.
WARM_UP_ROUNDS = 5
SETTLE_SECONDS = 60  # by then, idle connections and worker threads have ended
GROWTH_MIB = 48.0
GROWTH_DESCRIPTORS = 8
GROWTH_THREADS = 8


def main() -> int:
    options = arguments()
    # However it is stopped, its servers and mounts go too. A shell's background would ignore SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = Path(tempfile.mkdtemp(prefix="lvp-soak-"))
    done: Counter[str] = Counter()
    try:
        with lab(folder, options.seed) as running:
            rounds = soak(running, options, done)
    except KeyboardInterrupt:
        print("soak: interrupted", file=sys.stderr)
        return 130
    except Exception as error:  # noqa: BLE001 - print the seed and the folder for every error
        print(f"soak: FAILED with seed {options.seed}: {type(error).__name__}: {error}\nsoak: see {folder}", flush=True)
        return 1
    summarize(rounds, done, running)
    shutil.rmtree(folder)
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", help=f"only these, separated by commas: {', '.join(FAULTS)}")
    parser.add_argument("--report", type=Path, help="append one JSON line for each round to this file")
    options = parser.parse_args()
    options.faults = options.faults.split(",") if options.faults else list(FAULTS)
    if unknown := set(options.faults) - FAULTS.keys():
        parser.error(f"unknown faults: {', '.join(sorted(unknown))}")
    return options


def soak(running: Harness, options: argparse.Namespace, done: Counter[str]) -> list[dict[str, object]]:
    """Run rounds until the time is over; every fault is used once before any is repeated."""
    chance = random.Random(options.seed)
    clients = [Client(number, running, done) for number in range(CLIENTS)]
    stop = time.monotonic() + options.minutes * 60
    rounds: list[dict[str, object]] = []
    lives: dict[int, list[Figures]] = {}  # the figures at rest after each round, by process id
    waiting: list[str] = []
    while time.monotonic() < stop:
        if not waiting:
            waiting = chance.sample(options.faults, len(options.faults))
        fault = waiting.pop()
        begun = time.monotonic()
        play(running, clients, fault, chance)
        invariants.wait_until_quiet(running, clients)
        invariants.check(running, clients)
        now = settled_figures(running, lives)
        rounds.append({"round": len(rounds) + 1, "fault": fault, "seconds": round(time.monotonic() - begun, 1),
                       "jobs": sum(len(client.reported) for client in clients), **now._asdict()})  # fmt: skip
        print(" ".join(f"{key}={value}" for key, value in rounds[-1].items()), flush=True)
        if options.report:
            with options.report.open("a") as file:
                file.write(json.dumps(rounds[-1]) + "\n")
    return rounds


def play(running: Harness, clients: list[Client], fault: str, chance: random.Random) -> None:
    """Run the clients while the fault is injected."""
    threads = [
        threading.Thread(target=client.work, args=(random.Random(chance.random()), ROUND_SECONDS)) for client in clients
    ]
    for thread in threads:
        thread.start()
    try:
        FAULTS[fault](running, chance)
    finally:
        for thread in threads:
            thread.join()
    for client in clients:
        for error in client.errors:
            raise error


def settled_figures(running: Harness, lives: dict[int, list[Figures]]) -> Figures:
    """Return the figures at rest. Raises BrokenPromiseError if they stay above those of the process's first rounds."""
    life = lives.setdefault(running.daemon.pid, [])
    limits = (GROWTH_MIB, GROWTH_DESCRIPTORS, GROWTH_THREADS)
    stop = time.monotonic() + SETTLE_SECONDS
    while True:
        now = invariants.figures(running)
        before = [max(values) for values in zip(*life[:WARM_UP_ROUNDS], strict=True)]
        grown = [
            f"{name} from {old} to {new}"
            for name, old, new, limit in zip(now._fields, before, now, limits, strict=False)
            if len(life) >= WARM_UP_ROUNDS and new > old + limit
        ]
        if not grown:
            life.append(now)
            return now
        if time.monotonic() > stop:
            raise invariants.BrokenPromiseError(f"the daemon grew: {', '.join(grown)}")
        time.sleep(0.2)


def summarize(rounds: list[dict[str, object]], done: Counter[str], running: Harness) -> None:
    faults = Counter(str(entry["fault"]) for entry in rounds)
    print(f"soak: {len(rounds)} rounds, {rounds[-1]['jobs'] if rounds else 0} jobs ended, "
          f"{len(running.starts)} starts (slowest {max(running.starts):.1f} s), all guarantees held")  # fmt: skip
    print("soak: faults: " + ", ".join(f"{name} {count}" for name, count in sorted(faults.items())))
    print("soak: responses: " + ", ".join(f"{name}: {count}" for name, count in sorted(done.items())))
    for key in ("rss_mib", "descriptors", "threads"):
        values = [entry[key] for entry in rounds]
        print(f"soak: {key} at rest: first {values[0]}, last {values[-1]}, most {max(values)}")


if __name__ == "__main__":
    sys.exit(main())
