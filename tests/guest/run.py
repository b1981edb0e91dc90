#!/usr/bin/env python3
"""Runs the guest tests: builds missing images, boots the guest once, runs pytest in it, and exits with its status.

    python3 tests/guest/run.py [--wheel FILE] [pytest arguments...]     the tests that run in the guest
    python3 tests/guest/run.py --outside [pytest arguments...]          the tests that control a guest from here
    python3 tests/guest/run.py --prepare                                only build missing images

See README.md beside this file.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.guest.harness import Guest, GuestError, prepare
from tests.guest.harness.images import CHECKOUT

RESULTS = "/var/tmp/results"  # in the guest, on its disk: its /tmp is a tmpfs
ENVIRONMENT = {
    "PYTHONUNBUFFERED": "1",
    "COVERAGE_FILE": f"{RESULTS}/.coverage",
    # Load only the plugin that the tests need (see pytest_command): each one takes seconds under emulation.
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
}
PASSED_ON = ("LVP_ALL_ROWS",)
HARNESS_FAILED = 70  # pytest does not use this status


def main() -> int:
    """Run the command and return the exit status."""
    options, pytest_arguments = arguments()
    # Unwind the stack on signals too, so that qemu is killed and its files are removed.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _frame: sys.exit(128 + received))
    try:
        if options.prepare:
            prepare()
            return 0
        return outside(options, pytest_arguments) if options.outside else inside(options, pytest_arguments)
    except GuestError as error:
        print(f"guest: {error}", file=sys.stderr)
        return HARNESS_FAILED


def arguments() -> tuple[argparse.Namespace, list[str]]:
    """Return our own options, and all other arguments for pytest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, help="the built project; without it the checkout's sources are used")
    parser.add_argument("--init", choices=("plain", "systemd"), default="plain", help="init of the guest")
    parser.add_argument("--cache", default="unsafe", help="qemu's cache mode for all disks (default: unsafe)")
    parser.add_argument("--forward", action="append", default=[], metavar="HERE:GUEST",
                        help="forward this machine's loopback port HERE to the guest's port")  # fmt: skip
    parser.add_argument("--timeout", type=float, default=1200, help="time limit for pytest in seconds (default: 1200)")
    parser.add_argument("--silence", type=float, default=240,
                        help="seconds without output after which the guest counts as hung (default: 240)")  # fmt: skip
    parser.add_argument("--coverage", action="store_true", help="measure coverage; the data is added to the results")
    parser.add_argument("--results", type=Path, help="directory for junit.xml, the console's log and coverage data")
    parser.add_argument("--outside", action="store_true", help="run tests/guest/outside here, not in the guest")
    parser.add_argument("--prepare", action="store_true", help="build the images and stop")
    return parser.parse_known_args()


def inside(options: argparse.Namespace, pytest_arguments: list[str]) -> int:
    """Boot the guest and run pytest in it."""
    started = time.monotonic()
    ports = {int(there): int(here) for here, there in (pair.split(":") for pair in options.forward)}
    with Guest(wheel=options.wheel, init=options.init, cache=options.cache, ports=ports) as guest:
        guest.boot()
        print(f"guest: ready {time.monotonic() - started:.1f} s after the start", file=sys.stderr, flush=True)
        guest.sh(f"mkdir -p {RESULTS}")
        done = guest.run(
            [*pytest_command(options.coverage), *with_paths(pytest_arguments, "tests/guest")],
            env={**ENVIRONMENT, **{name: os.environ[name] for name in PASSED_ON if name in os.environ}},
            sink=show, silence=options.silence, total=options.timeout,
        )  # fmt: skip
        if options.results:
            bring_results(guest, options.results)
    print(f"guest: {time.monotonic() - started:.1f} s in all", file=sys.stderr)
    return done.status if done.status >= 0 else 128 - done.status


def pytest_command(coverage: bool) -> list[str]:
    """Return the start of pytest's command line in the guest."""
    measure = ["-m", "coverage", "run", "--parallel-mode"] if coverage else []
    plugins = ["-p", "pytest_trio.plugin", "-p", "no:cacheprovider"]
    return ["python3", *measure, "-m", "pytest", *plugins, f"--junitxml={RESULTS}/junit.xml"]


def with_paths(pytest_arguments: list[str], default: str) -> list[str]:
    """Return the arguments, with the default path if they name none; pytest would run the whole suite otherwise."""
    named = any((CHECKOUT / argument.split("::")[0]).exists() for argument in pytest_arguments)
    return pytest_arguments if named else [*pytest_arguments, default]


def bring_results(guest: Guest, directory: Path) -> None:
    """Copy the results from the guest into ``directory``."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in guest.sh(f"ls -A {RESULTS}").split():
        (directory / name).write_bytes(guest.get(f"{RESULTS}/{name}"))
    (directory / "console.log").write_text(guest.console())


def outside(options: argparse.Namespace, pytest_arguments: list[str]) -> int:
    """Run the tests that control guests themselves, with this Python's pytest."""
    prepare()
    environment = os.environ | {"LVP_GUEST_OUTSIDE": "1"}
    if options.wheel:
        environment["LVP_GUEST_WHEEL"] = str(options.wheel.resolve())
    command = [sys.executable, "-m", "pytest", *with_paths(pytest_arguments, "tests/guest/outside")]
    with subprocess.Popen(command, cwd=CHECKOUT, env=environment) as child:
        try:
            return child.wait()
        except BaseException:
            child.terminate()
            raise


def show(piece: bytes) -> None:
    """Print pytest's output as it arrives."""
    sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main())
