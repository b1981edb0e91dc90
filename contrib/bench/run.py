"""`make bench`: every benchmark with its usual sizes, one table after the other.

Needs root (loop devices), nginx and curl; nbdcopy where it is installed. Quote ratios, and the load.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
BENCHES = (
    ("download.py", ["--size", "512", "--runs", "5", "--server", "http", "--server", "https"]),
    ("convert.py", ["--size", "1024", "--runs", "5"]),
    ("health.py", ["--seconds", "10"]),
)


def main() -> int:
    status = 0
    for name, arguments in BENCHES:
        print(
            f"\n## {name} {' '.join(arguments)}   (load {os.getloadavg()[0]:.1f}, {os.cpu_count()} processors)",
            flush=True,
        )
        status |= subprocess.run([sys.executable, HERE / name, *arguments], check=False).returncode
    return status


if __name__ == "__main__":
    sys.exit(main())
