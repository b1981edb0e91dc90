"""Value types for settings: sizes, durations and paths as people write them, and secrets kept out of sight.

``refuse`` reports everything that is wrong with a table at once.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

from provisioner.contracts.small_file import read_small

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_CHECKSUM_FILE = re.compile(r"\{(?:dir|parent)\}/(?:[A-Za-z0-9._~%/+-]|\{name\})+")
_SIZE_UNITS = {"": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_TIME_UNITS = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


class InvalidSettingsError(ValueError):
    """Everything that is wrong with a table of settings, one sentence each."""

    def __init__(self, faults: Iterable[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("; ".join(self.faults))


def refuse(faults: Iterable[str]) -> None:
    """Raise InvalidSettingsError if there are any faults. For the ``__post_init__`` of a settings struct.

    A fault names the keys it is about: if the value of one of them is already known to be wrong, it is not reported.
    """
    if found := tuple(faults):
        raise InvalidSettingsError(found)


def checksum_file_faults(patterns: Iterable[str]) -> Iterator[str]:
    """Yield a message for each text that is not a pattern as ``ImageSource.checksum_files`` returns them."""
    for text in patterns:
        if not _CHECKSUM_FILE.fullmatch(text):
            yield f"'{text}' is not a pattern such as '{{dir}}/{{name}}-CHECKSUM' (it may use {{parent}} too)"


class ByteSize(int):
    """A size in bytes; in TOML ``"10GiB"``, ``"512 MiB"`` or a plain number of bytes."""

    __slots__ = ()

    @classmethod
    def parse(cls, value: object) -> ByteSize:
        """Parse a size from TOML. Raises ValueError with the permitted syntax."""
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return cls(value)
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", value.strip()) if isinstance(value, str) else None
        if match is None or match[2] not in _SIZE_UNITS:
            raise ValueError('a size such as "10GiB" (units B, KiB, MiB, GiB, TiB)')
        return cls(Decimal(match[1]) * _SIZE_UNITS[match[2]])  # exact: a float has only 53 bits

    def __str__(self) -> str:
        for unit in ("TiB", "GiB", "MiB", "KiB"):
            if self and self % _SIZE_UNITS[unit] == 0:
                return f"{self // _SIZE_UNITS[unit]}{unit}"
        return f"{int(self)}B"


class Duration(float):
    """A time span in seconds; in TOML ``"30s"``, ``"5m"``, ``"2h"``, ``"1d"`` or a plain number of seconds."""

    __slots__ = ()

    @classmethod
    def parse(cls, value: object) -> Duration:
        """Parse a duration from TOML. Raises ValueError with the permitted syntax."""
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf:
            return cls(value)
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", value.strip()) if isinstance(value, str) else None
        if match is None or match[2] not in _TIME_UNITS:
            raise ValueError('a time span such as "30s" (units ms, s, m, h, d)')
        return cls(float(match[1]) * _TIME_UNITS[match[2]])

    def __str__(self) -> str:
        for unit, seconds in (("d", 86400), ("h", 3600), ("m", 60)):
            if self and self % seconds == 0:
                return f"{int(self // seconds)}{unit}"
        return f"{float(self):.6f}".rstrip("0").rstrip(".") + "s"


class AbsolutePath(str):
    """The path of a file or folder; a relative one would depend on where the daemon was started."""

    __slots__ = ()

    @classmethod
    def parse(cls, value: object) -> AbsolutePath:
        """Raises ValueError saying what is allowed."""
        if isinstance(value, str) and value.startswith("/") and "\0" not in value:
            return cls(value)
        raise ValueError('an absolute path, such as "/srv/images"')


class SecretRef(str):
    """A reference to a secret: ``"file:/path"``, ``"env:NAME"`` or ``"credential:NAME"`` (systemd)."""

    __slots__ = ()

    @classmethod
    def parse(cls, value: object) -> SecretRef:
        """Parse a reference from TOML. Raises ValueError with the permitted syntax."""
        if isinstance(value, str) and re.fullmatch(r"(file:/.+|env:\w+|credential:[\w@-][\w.@-]*)", value):
            return cls(value)
        raise ValueError('a reference such as "file:/path", "env:NAME" or "credential:NAME", never the secret itself')

    def read(self, environ: Mapping[str, str]) -> str:
        """Return the secret. Raises OSError or KeyError if it is missing."""
        kind, _, location = self.partition(":")
        if kind == "env":
            return environ[location]
        path = Path(environ["CREDENTIALS_DIRECTORY"]) / location if kind == "credential" else Path(location)
        return read_small(path).decode().rstrip("\n")
