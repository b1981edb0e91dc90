"""`make bench`: runs every benchmark with its usual sizes; prints the tables and saves them in build/bench.md.

Needs root (loop devices), nginx and curl; uses nbdcopy if it is installed. Quote ratios and the load.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from series import machine

HERE = Path(__file__).parent
KEPT = Path("build/bench.md")
BENCHES = (
    ("download.py", ["--size", "512", "--runs", "5", "--server", "http", "--server", "https"]),
    ("convert.py", ["--size", "1024", "--runs", "5"]),
    ("cold.py", ["--size", "1024", "--runs", "3"]),
    ("page_cache.py", []),
    ("health.py", ["--seconds", "10"]),
    ("events.py", ["--runs", "5"]),
    ("latency.py", []),
    ("scale.py", []),
)


def main() -> int:
    KEPT.parent.mkdir(exist_ok=True)
    status = 0
    with KEPT.open("w") as kept:

        def say(text: str) -> None:
            print(text, end="", flush=True)
            kept.write(text)

        for name, arguments in BENCHES:
            say(f"\n## {name} {' '.join(arguments)}\n\n{machine()}\n\n")
            command = [sys.executable, HERE / name, *arguments]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as bench:
                for line in bench.stdout:
                    say(line)
            status |= bench.returncode
    return status


if __name__ == "__main__":
    sys.exit(main())
