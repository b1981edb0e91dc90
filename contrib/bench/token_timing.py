"""Measures whether the time to reject a token reveals how much of it is right. Prints a table and always exits with 0.

    python contrib/bench/token_timing.py [--rounds 20000] [--tokens 50]

Calls the token file directly, because network and HTTP would add too much noise, with tokens that are right in their
first 0, 1, 8, 16, 32 and 46 characters, in random order, so that a drift affects all alike. Shows medians in
nanoseconds and Welch's t against the tokens with no right character, over the fastest half of each (the slow half is
noise of the machine). If |t| stays below 4.5, the two cannot be told apart.
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import tempfile
import time
from pathlib import Path

from provisioner.auth.tokens import TokenFile

RIGHT = (0, 1, 8, 16, 32, 46)
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def guess(token: str, right: int) -> str:
    """Return a token of the same length whose first ``right`` characters are right, and whose next one is wrong."""
    rest = [random.choice(LETTERS) for _ in token[right:]]
    if rest and rest[0] == token[right]:
        rest[0] = "-"
    return token[:right] + "".join(rest)


def measure(tokens: TokenFile, token: str, rounds: int) -> dict[int, list[int]]:
    took: dict[int, list[int]] = {right: [] for right in RIGHT}
    # Create all tokens beforehand, so that the same happens before each measurement.
    shown = [(right, guess(token, right)) for _ in range(rounds) for right in random.sample(RIGHT, len(RIGHT))]
    gc.collect()
    gc.disable()
    for right, text in shown:
        begun = time.perf_counter_ns()
        tokens.authenticate(text, 0)
        ended = time.perf_counter_ns()  # before the next line: some dict look-ups take 20 ns longer than others
        took[right].append(ended - begun)
    gc.enable()
    return took


def welch(one: list[int], other: list[int]) -> float:
    one, other = sorted(one)[: len(one) // 2], sorted(other)[: len(other) // 2]
    spread = statistics.variance(one) / len(one) + statistics.variance(other) / len(other)
    return (statistics.fmean(one) - statistics.fmean(other)) / spread**0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20000)
    parser.add_argument("--tokens", type=int, default=50, help="in the file")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tokens = TokenFile(Path(folder) / "tokens.json")
        made = [tokens.create(f"token-{number}", "viewer") for number in range(given.tokens)]
        token = made[len(made) // 2]
        measure(tokens, token, 500)  # warm
        took = measure(tokens, token, given.rounds)
    print(f"{given.rounds} rounds, {given.tokens} tokens in the file")
    print(f"{'characters right':<18}{'median ns':>12}{'t':>8}")
    for right in RIGHT:
        t = welch(took[right], took[0]) if right else 0.0
        print(f"{right:<18}{statistics.median(took[right]):>12.0f}{t:>8.2f}")


if __name__ == "__main__":
    main()
