"""Pairs of operations in every order of awaits with one deviation from the default, and in random orders."""

import os

import pytest

from provisioner.contracts import Duration, KeepingSettings
from tests.interleavings import operations as op
from tests.interleavings.host import scenario
from tests.interleavings.schedule import explore

# Not in `make check`: together they take a minute of processor time.
pytestmark = pytest.mark.slow

# For a longer run: INTERLEAVINGS=2000 make test-some TESTS=tests/interleavings
RANDOM_RUNS = int(os.environ.get("INTERLEAVINGS", "15"))
PAIRS = [
    (op.submit, op.submit, None),
    (op.submit, op.submit, op.a_volume),
    (op.submit, op.cancel, None),
    (op.submit, op.cancel, op.a_foreign_volume),
    (op.submit, op.remove_volume, op.a_volume),
    (op.submit, op.evict, op.a_volume),
    (op.submit, op.prune, op.a_volume),
    (op.submit, op.pin, op.a_volume),
    (op.submit, op.drain, op.a_volume),
    (op.submit, op.drain, None),
    (op.hang_up, op.submit, None),
    (op.hang_up, op.drain, None),
    (op.cancel, op.drain, None),
    (op.remove_volume, op.remove_volume, op.a_volume),
    (op.remove_volume, op.drain, op.a_volume),
    (op.resize_volume, op.submit, op.a_volume),
    (op.resize_volume, op.remove_volume, op.a_volume),
    (op.resize_volume, op.resize_volume, op.a_volume),
    (op.evict, op.pin, op.a_volume),
    (op.evict, op.prune, op.a_volume),
]
TRIPLES = [
    (op.submit, op.cancel, op.submit, op.a_volume),
    (op.submit, op.remove_volume, op.cancel, op.a_volume),
    (op.submit, op.cancel, op.drain, op.a_volume),
    (op.submit, op.prune, op.evict, op.a_volume),
]
KEPT_PAIRS = [
    (op.submit, op.cancel, op.a_foreign_volume),
    (op.submit, op.adopt, op.a_foreign_volume),
    (op.submit, op.drain, op.a_foreign_volume),
    (op.submit, op.restore, op.a_kept_volume),
    (op.restore, op.restore, op.a_kept_volume),
    (op.restore, op.remove_volume, op.a_kept_volume),
    (op.restore, op.drain, op.a_kept_volume),
    (op.restore, op.remove_kept, op.a_kept_volume),
    (op.remove_kept, op.remove_kept, op.a_kept_volume),
]
SEED_PAIRS = [
    (op.submit_seeded, op.cancel, None),
    (op.submit_seeded, op.drain, None),
    (op.submit_seeded, op.cancel, op.a_seeded_volume),
    (op.submit_seeded, op.drain, op.a_seeded_volume),
    (op.submit_seeded, op.remove_volume, op.a_seeded_volume),
    (op.submit_seeded, op.submit, op.a_seeded_volume),
    (op.remove_volume, op.remove_volume, op.a_seeded_volume),
    (op.remove_volume, op.submit, op.a_seeded_volume),
]
# The time of a replaced volume is up at once.
EXPIRED_PAIRS = [
    (op.restore, op.expire, op.a_kept_volume),
    (op.submit, op.expire, op.a_kept_volume),
    (op.expire, op.expire, op.a_kept_volume),
]


def name_of(case):
    *operations, before = case
    return "-".join(operation.__name__ for operation in operations) + (f"-{before.__name__}" if before else "")


@pytest.mark.parametrize("case", PAIRS, ids=name_of)
def test_pair(case):
    *operations, before = case
    explore(scenario(*operations, before=before), random_runs=RANDOM_RUNS, at_least=30)


@pytest.mark.parametrize("case", TRIPLES, ids=name_of)
def test_triple(case):
    *operations, before = case
    explore(scenario(*operations, before=before), random_runs=2 * RANDOM_RUNS)


@pytest.mark.parametrize("case", KEPT_PAIRS, ids=name_of)
def test_pair_with_kept_volumes(case):
    *operations, before = case
    explore(scenario(*operations, before=before, keeping=KeepingSettings()), random_runs=RANDOM_RUNS, at_least=10)


@pytest.mark.parametrize("case", SEED_PAIRS, ids=name_of)
def test_pair_with_seeds(case):
    *operations, before = case
    explore(scenario(*operations, before=before, keeping=KeepingSettings()), random_runs=RANDOM_RUNS, at_least=10)


@pytest.mark.parametrize("case", EXPIRED_PAIRS, ids=name_of)
def test_pair_with_expired_volumes(case):
    *operations, before = case
    keeping = KeepingSettings(keep_replaced_foreign=Duration(1e-9))
    explore(scenario(*operations, before=before, keeping=keeping), random_runs=RANDOM_RUNS, at_least=10)
