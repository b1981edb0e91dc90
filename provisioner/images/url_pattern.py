"""Url patterns with placeholders such as ``{version}``: which folder to list next, and which entry is the newest.

Pure functions of texts.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING
from urllib.parse import unquote

from provisioner.config.images import PLACEHOLDER

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# Values without letters, so that "rc1" and "beta" are not taken for a release.
DEFAULT_MATCH = r"[0-9](?:[0-9._-]*[0-9])?"


def folder(pattern: str) -> str | None:
    """Return the url of the folder that lists the first placeholder's values; None if the pattern has none."""
    before, brace, _ = pattern.partition("{")
    return before.rpartition("/")[0] + "/" if brace else None


def newest(pattern: str, names: Iterable[str], match: Mapping[str, str]) -> dict[str, str] | None:
    """Return the values of the placeholders in the first path segment that has any, for the newest name.

    ``names`` are the entries of the folder. The newest is the one whose values, compared number by number, are the
    greatest. None if no name matches.
    """
    base = folder(pattern)
    assert base is not None, "only a pattern with placeholders has values"
    segment = pattern.removeprefix(base).partition("/")[0]
    expression = re.compile(_expression(segment, match))
    found = [hit.groupdict() for name in names if (hit := expression.fullmatch(name))]
    return max(found, key=lambda values: [_numbers(value) for value in values.values()], default=None)


def fill(pattern: str, values: Mapping[str, str]) -> str:
    """Return the pattern with the known placeholders replaced."""
    return PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), pattern)


def values_in(pattern: str, url: str, match: Mapping[str, str]) -> dict[str, str] | None:
    """Return the values of the placeholders in a url that the pattern made; None if it did not."""
    hit = re.fullmatch(_expression(pattern, match), url)
    return hit.groupdict() if hit else None


def order(values: Mapping[str, str]) -> list[list[int]]:
    """Return a sort key: the newer, the greater."""
    return [_numbers(value) for value in values.values()]


def _expression(pattern: str, match: Mapping[str, str]) -> str:
    """Return a regular expression with a group for each placeholder, which has the same value each time."""
    seen: set[str] = set()
    parts = []
    for number, part in enumerate(PLACEHOLDER.split(pattern)):
        if number % 2 == 0:
            parts.append(re.escape(part))
        elif part in seen:
            parts.append(f"(?P={part})")
        else:
            seen.add(part)
            parts.append(f"(?P<{part}>{match.get(part, DEFAULT_MATCH)})")
    return "".join(parts)


def _numbers(value: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", value)]


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.targets += [value for key, value in attrs if key == "href" and value]


def names_in_listing(html: str, url: str) -> list[str]:
    """Return the names of the entries that a web server's listing of the folder ``url`` links to.

    Links that lead out of the folder are left out, as are those that sort the listing.
    """
    links = _Links()
    links.feed(html)
    path = "/" + url.split("/", 3)[3]
    names = []
    for target in links.targets:
        relative = target.removeprefix(url).removeprefix(path).removeprefix("./").removesuffix("/")
        name = unquote(relative)
        if name not in {"", ".", ".."} and not re.search(r"[/?#:]", relative + name):
            names.append(name)
    return names
