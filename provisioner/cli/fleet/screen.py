"""A terminal that is redrawn in place: the other screen, one key at a time, and tables that fit its width.

Plain control sequences that every terminal of the last decades knows. The terminal is as before at the end, however it
comes, and after Ctrl-Z.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import termios
import tty
import unicodedata
from typing import TYPE_CHECKING, Any

import click

from provisioner.cli.formatting import printable
from provisioner.cli.output import flush, is_terminal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# The other screen without a cursor and without wrapping of lines; and back.
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l\x1b[?7l", "\x1b[?7h\x1b[?25h\x1b[?1049l"
_HOME, _CLEAR_LINE, _CLEAR_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"
# Narrower columns say nothing.
_LEAST_WIDTH, _LEAST_HEIGHT = 20, 4
_LEAST_COLUMN = 6


def can_redraw(environ: Mapping[str, str]) -> bool:
    """Return whether standard output is a terminal that can be redrawn."""
    return is_terminal() and environ.get("TERM", "dumb") not in {"dumb", "unknown", ""}


class Screen:
    """The terminal of standard output; keys come from standard input if that is a terminal too."""

    def __init__(self) -> None:
        self._keys = ""
        self._saved: list[Any] | None = None
        self._on_stop: Any = None
        self._on_terminate: Any = None

    def __enter__(self) -> Screen:
        self._take()
        self._on_stop = signal.signal(signal.SIGTSTP, self._stop)
        self._on_terminate = signal.signal(signal.SIGTERM, self._terminate)
        return self

    def __exit__(self, *exc: object) -> None:
        signal.signal(signal.SIGTSTP, self._on_stop)
        signal.signal(signal.SIGTERM, self._on_terminate)
        self._give_back()

    def _take(self) -> None:
        if sys.stdin is not None and sys.stdin.isatty():
            self._saved = termios.tcgetattr(sys.stdin)
            tty.setcbreak(sys.stdin)
        click.echo(_ENTER, nl=False, color=True)

    def _give_back(self) -> None:
        if self._saved is not None:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._saved)
            self._saved = None
        click.echo(_LEAVE, nl=False, color=True)

    def _stop(self, *_: object) -> None:
        """Leave the terminal as it was while the process is stopped."""
        self._give_back()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, self._stop)
        self._take()

    def _terminate(self, *_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    def size(self) -> tuple[int, int]:
        """Return the columns and lines of now; a terminal that does not tell has 80 and 24."""
        try:
            columns, lines = os.get_terminal_size(sys.stdout.fileno())
        except (OSError, ValueError):
            columns, lines = 0, 0
        if columns <= 0 or lines <= 0:
            columns, lines = shutil.get_terminal_size()
        return max(columns, _LEAST_WIDTH), max(lines, _LEAST_HEIGHT)

    def pressed(self) -> str:
        """Return the keys that were pressed since the last call of ``wait`` or ``draw``."""
        if self._saved is not None and select.select([sys.stdin], [], [], 0)[0]:
            self._keys += os.read(sys.stdin.fileno(), 100).decode(errors="replace")
        return self._keys

    def draw(self, lines: Sequence[str]) -> None:
        """Show the lines from the top; lines that do not fit are left out."""
        self._keys = ""
        width, height = self.size()
        shown = [f"{cut(line, width)}{_CLEAR_LINE}" for line in lines[:height]]
        click.echo(_HOME + "\r\n".join(shown) + _CLEAR_BELOW, nl=False, color=True)
        flush()


def width_of(text: str) -> int:
    """Return how many columns a text takes: wide characters two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(one) else 2 if unicodedata.east_asian_width(one) in "WF" else 1
               for one in text)  # fmt: skip


def cut(text: str, width: int) -> str:
    """Return as much of a text as fits, with ``~`` at its end if it is cut. Styles count no column and are closed."""
    if "\x1b" in text:
        plain = click.unstyle(text)
        return text if width_of(plain) <= width else cut(plain, width)
    if width_of(text) <= width:
        return text
    while text and width_of(text) >= width:
        text = text[:-1]
    return text + "~" * (width > 0)


def padded(text: str, width: int, *, right: bool = False) -> str:
    """Return a text that takes ``width`` columns."""
    text = cut(text, width)
    blanks = " " * (width - width_of(text))
    return blanks + text if right else text + blanks


def fitted(header: Sequence[str], rows: Sequence[Sequence[object]], width: int) -> list[str]:
    """Return a table that is no wider than ``width``.

    Columns on the right are left out if even short ones do not fit; then the widest are cut, and the first one last.
    """
    cells = [list(header), *([printable(cell) if cell not in {None, ""} else "" for cell in row] for row in rows)]
    kept = len(header)
    widths = [max(width_of(line[column]) for line in cells) for column in range(kept)]
    while kept > 2 and sum(min(one, _LEAST_COLUMN * 2) for one in widths[:kept]) + 2 * (kept - 1) > width:
        kept -= 1
    widths = _shrunk(widths[:kept], width - 2 * (kept - 1))
    return ["  ".join(padded(cell, size) for cell, size in zip(line, widths, strict=False)).rstrip() for line in cells]


def _shrunk(widths: list[int], room: int) -> list[int]:
    """Return the widths with the widest made smaller until their sum fits."""
    widths = list(widths)
    while sum(widths) > room and max(widths) > 1:
        widths[widths.index(max(widths))] -= 1
    return widths
