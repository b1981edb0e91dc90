"""Decides what is collected here: the guest's tests in the guest, `outside/` where it is asked for, nothing elsewhere.

A plain run of the whole suite on a developer's machine leaves this folder alone; run.py is the way in.
"""

import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent
OUTSIDE = HERE / "outside"


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave alone what cannot run where this pytest runs (not a skip: nothing is missing there)."""
    if HERE not in collection_path.parents:
        return None
    outside = OUTSIDE in (collection_path, *collection_path.parents)
    wanted = "LVP_GUEST_OUTSIDE" if outside else "LVP_IN_GUEST"
    return None if wanted in os.environ else True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what stands in this folder, so that `-m guest` finds it."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.guest)
