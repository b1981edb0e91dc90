"""What all tests share: readable failures of the conformance suites."""

import pytest

pytest.register_assert_rewrite("provisioner.contracts.testing")
