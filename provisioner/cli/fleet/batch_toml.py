"""Batch files in TOML: ``[defaults]`` and tables ``[[volume]]``, with the lines on which they are.

The standard library's parser tells no lines, so the text is cut at its headers, each piece of which is TOML of its own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from provisioner.cli.fleet.batch_fields import check_fields

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_HEADER = re.compile(r"\s*\[\[\s*volume\s*\]\]\s*(#.*)?")
_PLACE = re.compile(r"\s*\(at (?:line (\d+), column (\d+)|end of document)\)$")


@dataclass(frozen=True, slots=True)
class Section:
    """An entry: the line on which it begins, its fields, and its own text if fields have lines of their own.

    ``inherited``: the fields that are not its own, but the defaults'.
    """

    line: int
    fields: Mapping[str, Any]
    text: Sequence[str] = ()
    inherited: frozenset[str] = frozenset()

    def line_of(self, name: str) -> int:
        """Return the line of a field, or that of the entry."""
        pattern = re.compile(rf"""\s*(?:\[\s*(?:volume\.)?)?["']?{re.escape(name)}["']?\s*[=.\]]""")
        found = (number for number, line in enumerate(self.text) if name and pattern.match(line))
        return self.line + next(found, 0)


@dataclass(frozen=True, slots=True)
class _Piece:
    line: int
    text: Sequence[str]
    document: Mapping[str, Any]


def read_toml(text: str) -> tuple[list[Section], list[tuple[int, str]]]:
    """Return the volumes, with the defaults below their own fields, and the errors with their lines."""
    pieces, errors = _pieces(text.replace("\r\n", "\n").split("\n"))
    head = pieces[0].document if pieces and not _HEADER.fullmatch(pieces[0].text[0]) else {}
    defaults = head.get("defaults", {})
    top = Section(1, {}, pieces[0].text if head else ())
    for name in head:
        if name != "defaults":
            errors.append((top.line_of(name), f"unknown table or field {name!r}; allowed: [defaults] and [[volume]]"))
    if not isinstance(defaults, dict):
        errors.append((top.line_of("defaults"), "defaults must be a table: [defaults]"))
        defaults = {}
    errors += [(top.line_of(name), message) for name, message in check_fields(defaults)]
    sections = []
    for piece in pieces:
        for entry in piece.document.get("volume", []) if piece.document is not head else []:
            fields = {**_without(defaults, entry), **entry}
            sections.append(Section(piece.line, fields, piece.text, frozenset(fields.keys() - entry.keys())))
        more = [name for name in piece.document if name != "volume"] if piece.document is not head else []
        errors += [(piece.line, f"the table [{name}] must stand before the first [[volume]]") for name in more]
    return sections, errors


def _without(defaults: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults that an entry does not replace: one way to name the image replaces the other."""
    pairs = {"image": "image_url", "image_url": "image"}
    return {name: value for name, value in defaults.items() if pairs.get(name) not in entry}


def _pieces(lines: Sequence[str]) -> tuple[list[_Piece], list[tuple[int, str]]]:
    """Return the parsed pieces of the text, and the errors of those that are no TOML."""
    starts = [0, *(number for number, line in enumerate(lines) if number and _HEADER.fullmatch(line))]
    pieces: list[_Piece] = []
    errors: list[tuple[int, str]] = []
    at = 0
    while at < len(starts):
        document, error, stop = _parse(lines, starts, at)
        begin = starts[at]
        if document is not None:
            pieces.append(_Piece(begin + 1, lines[begin : starts[stop] if stop < len(starts) else None], document))
        elif error is not None:
            errors.append((begin + error[0], error[1]))
        at = stop
    return pieces, errors


def _parse(
    lines: Sequence[str], starts: Sequence[int], at: int
) -> tuple[dict[str, Any] | None, tuple[int, str] | None, int]:
    """Return the document of the piece that begins at ``starts[at]``, or its error; and the next piece.

    A line in a text of several lines may look like a header; a piece that ends within such a text is made longer.
    """
    import tomllib

    first: tuple[int, str] | None = None
    for stop in range(at + 1, len(starts) + 1):
        part = lines[starts[at] : starts[stop] if stop < len(starts) else None]
        try:
            return tomllib.loads("\n".join(part) + "\n"), None, stop
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            message, line = _said(error, len(part))
            first = first or (line, message)
            quotes = sum(one.count('"""') + one.count("'''") for one in part)
            if quotes % 2 == 0:
                break
    return None, first, at + 1


def _said(error: Exception, last: int) -> tuple[str, int]:
    """Return the parser's message, and the line within the piece."""
    text = str(error)
    place = _PLACE.search(text)
    line = int(place[1]) if place and place[1] else last
    return f"this is not valid TOML: {_PLACE.sub('', text) or 'too deeply nested'}", line
