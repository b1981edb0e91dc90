"""Formatting of sizes, durations, tables and untrusted text. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def size(count: float) -> str:
    """Return bytes in binary units: ``600 MiB``, ``1.5 GiB``."""
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while count >= 1024 and len(units) > 1:
        count /= 1024
        units.pop(0)
    unit = units[0]
    return f"{count:.1f}".removesuffix(".0") + f" {unit}" if count < 10 else f"{count:.0f} {unit}"


def span(seconds: float) -> str:
    """Return seconds as ``45 s``, ``2 min 05 s``, ``1 h 10 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def printable(text: object) -> str:
    """Return untrusted text that is safe for a terminal: control characters become ``?``."""
    return "".join(char if char.isprintable() else "?" for char in str(text))


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return aligned columns, two blanks apart. Nothing is truncated, so a pipe gets what a terminal shows."""
    lines = [list(header), *([printable(cell) if cell not in {None, ""} else "-" for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
