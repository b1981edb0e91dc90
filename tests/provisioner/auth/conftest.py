"""Makes the API's fixtures available to the tests of authentication."""

from tests.provisioner.api.conftest import idle, service

__all__ = ["idle", "service"]
