"""The times of a contender's runs, and the table cells that show them."""

from __future__ import annotations

import os
import platform
import resource
import statistics
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1024**2


@dataclass
class Series:
    """Wall-clock and processor seconds of each run; the processor time is that of this process and its children."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.wall)

    @property
    def cells(self) -> str:
        spread = f"{min(self.wall):.2f}-{max(self.wall):.2f}"
        return f"{self.median:.2f} ({spread}) | {statistics.median(self.cpu):.2f}"

    @contextmanager
    def timed(self, *, counted: bool = True) -> Iterator[None]:
        """Time one run and record it, unless it only warms up."""
        cpu, start = cpu_seconds(), time.perf_counter()
        yield
        if counted:
            self.wall.append(time.perf_counter() - start)
            self.cpu.append(cpu_seconds() - cpu)


CELLS = "seconds: median (min-max) | CPU s"


def cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def machine() -> str:
    """Describe the machine in one line."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1024**3
    return (
        f"{os.cpu_count()} processors ({model}), {memory:.0f} GiB, Linux {platform.release()}, "
        f"Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}"
    )
