"""Keys of gpg, made once: it takes a second."""

import pytest

from tests.signers import gpg_home


@pytest.fixture(scope="session")
def gpg():
    with gpg_home() as gpg:
        gpg.new_key("publisher")
        gpg.new_key("stranger")
        gpg.new_key("expired", expires="1y")
        gpg.new_key("revoked")
        yield gpg
