"""The API's fixtures, for the rooms that serve it."""

from tests.provisioner.api.conftest import idle, service

__all__ = ["idle", "service"]
