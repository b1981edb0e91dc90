"""Decides which tests are collected: in the guest all but `outside/`, with `--outside` only that, elsewhere none.

A plain run of the whole suite on a developer's machine ignores this folder. Use run.py instead.
"""

import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent
OUTSIDE = HERE / "outside"


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Ignore tests that cannot run where this pytest runs. They are not skips: nothing is missing."""
    if HERE not in collection_path.parents:
        return None
    outside = OUTSIDE in (collection_path, *collection_path.parents)
    wanted = "LVP_GUEST_OUTSIDE" if outside else "LVP_IN_GUEST"
    return None if wanted in os.environ else True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests in this folder, so that `-m guest` selects them."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.guest)
