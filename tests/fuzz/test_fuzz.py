"""Fuzz tests: the saved inputs, and a few hundred new ones made from them. For longer: ``make fuzz MINUTES=10``."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.mutate import mutated
from tests.fuzz.targets import TARGETS, WORDS, saved_inputs

EXAMPLES = {"qcow2": 60, "inspection": 100}


@pytest.mark.parametrize(
    ("name", "file"),
    [pytest.param(name, file, id=f"{name}-{file.name}") for name in TARGETS for file in saved_inputs(name)],
)
def test_parser_saved_input(name, file):
    TARGETS[name](file.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_parser_mutated_input(name):
    corpus = [file.read_bytes() for file in saved_inputs(name)]

    @settings(max_examples=EXAMPLES.get(name, 300), deadline=None)
    @given(st.integers(0, 2**64 - 1))
    def run(seed):
        TARGETS[name](mutated(random.Random(seed), corpus, WORDS[name]))

    run()


@pytest.mark.parametrize("name", [name for name in TARGETS if name not in {"qcow2", "decompress"}])
def test_parser_random_bytes(name):
    @settings(max_examples=100, deadline=None)
    @given(st.one_of(st.binary(max_size=2000), st.text(max_size=500).map(lambda text: text.encode("utf-8", "replace"))))
    def run(data):
        TARGETS[name](data)

    run()
