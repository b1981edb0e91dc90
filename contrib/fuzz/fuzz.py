"""Fuzz the parsers of untrusted bytes: ``make fuzz MINUTES=10 TARGETS="urls qcow2"``.

New inputs are made from the saved ones (tests/fuzz/corpus). An input that raises an unexpected error, breaks a promise
or takes longer than ten seconds is saved there as ``found-...``: fix the bug and keep the file. ``api`` sends generated
requests to a running daemon instead.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import structlog

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "plugins")]

from tests.fuzz.mutate import mutated  # noqa: E402 - the path first
from tests.fuzz.targets import CORPUS, TARGETS, WORDS, saved_inputs  # noqa: E402

HANG = 10


class Hang(BaseException):
    """An input took too long. Not an Exception, so that no parser catches it."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("targets", nargs="*", default=[*TARGETS, "api"])
    asked = parser.parse_args()
    if unknown := set(asked.targets) - {*TARGETS, "api"}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose from: {', '.join([*TARGETS, 'api'])}")
    seed = asked.seed if asked.seed is not None else random.SystemRandom().getrandbits(32)
    findings = 0
    for name in asked.targets:
        findings += api(asked.minutes) if name == "api" else fuzz(name, asked.minutes, seed)
    return 1 if findings else 0


def fuzz(name: str, minutes: float, seed: int) -> int:
    chance, corpus = random.Random(seed), [file.read_bytes() for file in saved_inputs(name)]
    seen: set[str] = set()
    runs, slowest, started = 0, 0.0, time.monotonic()
    signal.signal(signal.SIGALRM, _hang)
    logging.disable(logging.CRITICAL)  # the library that inspects images logs something for each
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    while time.monotonic() < started + 60 * minutes:
        data = mutated(chance, corpus, WORDS[name])
        begun = time.monotonic()
        signal.alarm(HANG)
        try:
            TARGETS[name](data)
        except (Exception, Hang) as error:  # noqa: BLE001 - the target lets only unexpected errors through
            _keep(name, data, error, seen)
        finally:
            signal.alarm(0)
        runs, slowest = runs + 1, max(slowest, time.monotonic() - begun)
    print(f"{name}: seed {seed}, {runs} inputs, {len(seen)} findings, slowest {slowest:.2f} s", flush=True)
    return len(seen)


def _hang(*_arguments: object) -> None:
    raise Hang


def _keep(name: str, data: bytes, error: BaseException, seen: set[str]) -> None:
    """Save the first input of each finding; errors from the same line of code are the same finding."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    kind = f"{type(error).__name__} at {Path(where.filename).name}:{where.lineno}"
    if kind in seen:
        return
    seen.add(kind)
    file = CORPUS / name / f"found-{hashlib.sha256(data).hexdigest()[:12]}"
    file.write_bytes(data)
    print(f"{name}: {kind}: {error}\n  saved in {file.relative_to(ROOT)}", flush=True)


def api(minutes: float) -> int:
    """Send requests generated from api.yaml, with a credential, until the time is up."""
    environment = {**os.environ, "LVP_FUZZ_MINUTES": str(minutes)}
    command = [sys.executable, "-m", "pytest", "-q", "tests/end_to_end/test_schemathesis.py"]
    return 1 if subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode else 0


if __name__ == "__main__":
    sys.exit(main())
