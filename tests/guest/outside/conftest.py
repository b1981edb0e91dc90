"""Fixtures of the tests that control a guest from this machine."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.harness import Guest, Images, prepare


@pytest.fixture(scope="session")
def images() -> Images:
    """The images that every guest starts from; missing ones are built."""
    return prepare()


@pytest.fixture(scope="session")
def wheel() -> Path | None:
    """The built project, if run.py was given one."""
    name = os.environ.get("LVP_GUEST_WHEEL")
    return Path(name) if name else None


@pytest.fixture(scope="module")
def guest(images: Images, wheel: Path | None) -> Iterator[Guest]:
    """A running guest, shared by the tests of a module."""
    with Guest(images, wheel=wheel, user_mode=True) as guest:
        guest.boot()
        yield guest
