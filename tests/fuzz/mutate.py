"""Makes new inputs from saved ones: changes bytes, inserts words, and cuts, repeats or exchanges parts."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

MOST = 256 * 1024
INTERESTING = [0, 1, 7, 8, 9, 16, 63, 64, 127, 128, 255]


def mutated(chance: random.Random, corpus: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    """Return a new input, made from one or two of the corpus."""
    data = bytearray(chance.choice(corpus))
    for _ in range(chance.choice([1, 1, 2, 3, 5, 8])):
        _STEPS[chance.randrange(len(_STEPS))](chance, data, corpus, words)
    return bytes(data[:MOST])


def _at(chance: random.Random, data: bytearray) -> int:
    # Prefer the beginning, because parsers decide most by the header.
    length = min(len(data), 128) if chance.random() < 0.4 else len(data)
    return chance.randrange(length + 1)


def _flip(chance: random.Random, data: bytearray, *_rest: object) -> None:
    if data:
        data[_at(chance, data) % len(data)] ^= 1 << chance.randrange(8)


def _set(chance: random.Random, data: bytearray, *_rest: object) -> None:
    if data:
        data[_at(chance, data) % len(data)] = chance.choice(INTERESTING)


def _number(chance: random.Random, data: bytearray, *_rest: object) -> None:
    width = chance.choice([2, 4, 8])
    at = _at(chance, data) // width * width
    value = chance.choice([0, 1, 2 ** (8 * width) - 1, 2 ** (8 * width - 1), chance.getrandbits(8 * width)])
    data[at : at + width] = value.to_bytes(width, chance.choice(["big", "little"]))


def _word(chance: random.Random, data: bytearray, _corpus: object, words: Sequence[bytes]) -> None:
    word, at = chance.choice(words), _at(chance, data)
    data[at : at + chance.choice([0, len(word)])] = word


def _cut(chance: random.Random, data: bytearray, *_rest: object) -> None:
    start, stop = sorted((_at(chance, data), _at(chance, data)))
    del data[start : stop if chance.random() < 0.7 else len(data)]


def _repeat(chance: random.Random, data: bytearray, *_rest: object) -> None:
    start, stop = sorted((_at(chance, data), _at(chance, data)))
    data[start:start] = data[start:stop] * chance.choice([1, 2, 10])
    del data[MOST:]


def _graft(chance: random.Random, data: bytearray, corpus: Sequence[bytes], _words: object) -> None:
    other, at = chance.choice(corpus), _at(chance, data)
    data[at:] = other[min(at, len(other)) if chance.random() < 0.5 else 0 :]


_STEPS = [_flip, _set, _number, _number, _word, _word, _cut, _repeat, _graft]
