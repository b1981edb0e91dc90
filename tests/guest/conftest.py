"""Decides what is collected here: the guest's tests in the guest, `outside/` where it is asked for, nothing elsewhere.

A plain run of the whole suite on a developer's machine leaves this folder alone; run.py is the way in.
"""

import os
from pathlib import Path

import pytest

collect_ignore_glob = []
if "LVP_IN_GUEST" not in os.environ:
    collect_ignore_glob.append("test_*.py")
if "LVP_GUEST_OUTSIDE" not in os.environ:
    collect_ignore_glob.append("outside/*")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what stands in this folder, so that `-m guest` finds it."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.guest)
