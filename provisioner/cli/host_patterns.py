"""Patterns of host names: ``kvm-[01-20]``, ``kvm-[1,3,5-7].example.org``, ``*``. Pure.

A list is separated by commas. Brackets in an address may also hold an IPv6 address, which is no pattern.
"""

from __future__ import annotations

import re
from itertools import product

# Names that one list may stand for. Far more than one command line should reach, and cheap to expand.
MOST = 10_000
_RANGE = re.compile(r"([0-9]{1,18})(?:-([0-9]{1,18}))?")
_IPV6 = re.compile(r"[0-9A-Fa-f:.%]*:[0-9A-Fa-f:.%]*:[^\]]*")


class PatternError(ValueError):
    """A pattern that stands for nothing; the message says why."""


def split(text: str) -> list[str]:
    """Return the items of a list that is separated by commas outside brackets. Raises PatternError."""
    items, depth, start = [], 0, 0
    for at, char in enumerate(text):
        depth += (char == "[") - (char == "]")
        if depth not in {0, 1}:
            raise PatternError(f"{text!r} has a bracket without its other half")
        if char == "," and depth == 0:
            items.append(text[start:at].strip())
            start = at + 1
    if depth:
        raise PatternError(f"{text!r} has a bracket without its other half")
    items.append(text[start:].strip())
    if "" in items:
        raise PatternError("a name is missing" if text.strip() else "no host is named")
    return items


def expand(pattern: str) -> list[str]:
    """Return the names that a pattern with brackets stands for, in its order. Raises PatternError."""
    parts: list[list[str]] = []
    for literal, inside in re.findall(r"([^\[\]]*)(\[[^\]]*\])?", pattern):
        parts.append([literal])
        if inside:
            parts.append([inside] if _IPV6.fullmatch(inside[1:-1]) else _numbers(pattern, inside[1:-1]))
    count = 1
    for part in parts:
        count *= len(part)
    if count > MOST:
        raise PatternError(f"{pattern!r} stands for more than {MOST:,} hosts")
    return list(dict.fromkeys("".join(choice) for choice in product(*parts)))


def _numbers(pattern: str, inside: str) -> list[str]:
    """Return the numbers of ``01-03,7``: as wide as their range's beginning."""
    numbers: list[str] = []
    for item in inside.split(","):
        found = _RANGE.fullmatch(item.strip())
        if found is None:
            raise PatternError(f"{pattern!r}: brackets hold numbers and ranges, such as [01-20] or [1,3,5-7]")
        first, last = found[1], found[2] or found[1]
        if int(last) < int(first):
            raise PatternError(f"{pattern!r}: the range {item.strip()} ends before it begins")
        if len(numbers) + int(last) - int(first) >= MOST:
            raise PatternError(f"{pattern!r} stands for more than {MOST:,} hosts")
        numbers += [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]
    return numbers
