"""Batch files: many volumes on many hosts, in TOML or JSON lines. Checked as a whole; sends nothing.

An entry has the fields of the API's job request, and ``hosts``. Every error is found and named with its line.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from provisioner.cli.exit_status import CliError, ExitStatus
from provisioner.cli.fleet.batch_fields import check_entry, request_of
from provisioner.cli.fleet.batch_toml import Section, read_toml
from provisioner.cli.formatting import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

# The most volumes of a batch.
MOST = 20_000
# Bytes; the volumes of such a file would not be counted by hand any more.
_MOST_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Wanted:
    """A volume that a batch asks of one host; ``body`` is the request, ``line`` that of its entry (0: none)."""

    host: str
    body: Mapping[str, Any]
    line: int = 0


class BatchError(CliError):
    """A batch file with errors: one line for each."""

    def __init__(self, name: str, errors: Sequence[tuple[int, str]]) -> None:
        lines = [f"{name}:{line}: {message}" if line else f"{name}: {message}" for line, message in sorted(errors)]
        noun = "error" if len(lines) == 1 else "errors"
        super().__init__("\n".join([*lines, f"{len(lines)} {noun}; nothing was sent"]), ExitStatus.USAGE)

    def show(self, file: Any = None) -> None:
        """Print the lines in the form that editors read: ``FILE:LINE: MESSAGE``."""
        del file
        click.echo("\n".join(map(printable, self.message.split("\n"))), err=True)


def read_batch(file: Path, hosts_of: Callable[[str], Sequence[str]], default: str | None) -> list[Wanted]:
    """Return every volume of the batch, by the file's order and then the hosts'.

    ``hosts_of`` returns the names that a list of hosts stands for, and raises CliError. ``default``: the hosts of
    entries that name none. Raises BatchError with all errors.
    """
    name = "standard input" if str(file) == "-" else str(file)
    text = _text(file, name)
    sections, errors = (read_toml if _is_toml(file, text) else _read_lines)(text)
    wanted: list[Wanted] = []
    base = Path() if str(file) == "-" else file.parent
    for section in sections:
        problems = check_entry(section.fields)
        if problems:
            own = [(name, message) for name, message in problems if name not in section.inherited]
            errors += [(section.line_of(name), message) for name, message in own]
            continue
        try:
            names = hosts_of(_list(section.fields.get("hosts"), default))
            entries = [Wanted(host, request_of(section.fields, host, base), section.line) for host in names]
        except CliError as error:
            errors.append((section.line_of("hosts"), error.message))
            continue
        wanted += entries
        if len(wanted) > MOST:
            raise BatchError(name, [(section.line, f"the batch has more than {MOST:,} volumes")])
    errors += _duplicates(wanted)
    if not errors and not wanted:
        errors = [(0, "the batch has no volumes")]
    if errors:
        raise BatchError(name, errors)
    return wanted


def _list(given: object, default: str | None) -> str:
    """Return the list of hosts of an entry as one text. Raises CliError."""
    if given is None:
        if default is None:
            raise CliError("hosts is missing, and --hosts is not given", ExitStatus.USAGE)
        return default
    return given if isinstance(given, str) else ",".join(map(str, given if isinstance(given, list) else [given]))


def _duplicates(wanted: Sequence[Wanted]) -> list[tuple[int, str]]:
    """Return an error for each volume that the batch asks for twice; the server would replace it or refuse it."""
    first: dict[tuple[str, object, object], Wanted] = {}
    errors = []
    for one in wanted:
        key = (one.host, one.body["volume_name"], one.body.get("target"))
        if key in first:
            words = f"the volume {key[1]!r} on {one.host} is already that of line {first[key].line}"
            errors.append((one.line, words))
        else:
            first[key] = one
    return list(dict.fromkeys(errors))


def _text(file: Path, name: str) -> str:
    import sys

    try:
        if str(file) == "-":
            data = sys.stdin.buffer.read(_MOST_BYTES + 1)
        else:
            with file.open("rb") as opened:
                data = opened.read(_MOST_BYTES + 1)
    except OSError as error:
        raise CliError(f"{name} cannot be read: {error.strerror}", ExitStatus.USAGE) from error
    if len(data) > _MOST_BYTES:
        raise CliError(f"{name} has more than 64 MiB", ExitStatus.USAGE)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise BatchError(name, [(line, "this is not UTF-8 text")]) from error


def _is_toml(file: Path, text: str) -> bool:
    """Return whether the text is TOML: its name says so, or it does not begin like an object of JSON."""
    if file.suffix in {".toml", ".jsonl", ".ndjson", ".json"}:
        return file.suffix == ".toml"
    return not text.lstrip().startswith("{")


def _read_lines(text: str) -> tuple[list[Section], list[tuple[int, str]]]:
    """Return the objects of JSON lines, and the errors with their lines."""
    sections, errors = [], []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line, object_pairs_hook=_once, parse_constant=_no_constant)
        except json.JSONDecodeError as error:
            errors.append((number, f"this is not valid JSON: {error.msg} (column {error.colno})"))
        except (ValueError, RecursionError) as error:
            errors.append((number, f"this is not valid JSON: {error}"))
        else:
            if isinstance(fields, dict):
                sections.append(Section(number, fields))
            else:
                errors.append((number, "a line must be an object, such as {...}"))
    return sections, errors


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return an object. Raises ValueError if it names a field twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is there twice")
    return found


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not a value")
