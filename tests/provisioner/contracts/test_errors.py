"""What the API relies on for every error of the hierarchy."""

import inspect

import pytest

from provisioner.contracts import errors
from provisioner.contracts.errors import ConfigError, ProvisionerError, ToolError

ALL = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)]


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_error_class_attributes(kind):
    assert issubclass(kind, ProvisionerError)
    assert 400 <= kind.code <= 599
    assert kind.category == kind.category.lower()
    assert kind.category
    assert isinstance(kind.temporary, bool)
    assert kind.__doc__
    assert kind.__name__.endswith("Error")


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_error_temporary_only_for_429_and_5xx(kind):
    """A retry may help only after 429 and 5xx."""
    assert not kind.temporary or kind.code == 429 or kind.code >= 500


def test_error_message():
    error = ConfigError("a sentence")
    assert error.message == str(error) == "a sentence"


def test_tool_error_attributes():
    error = ToolError("lvs failed", tool="lvs", status=5, stderr="no such group")
    assert (error.tool, error.status, error.stderr) == ("lvs", 5, "no such group")
    assert (ToolError("x").tool, ToolError("x").status, ToolError("x").stderr) == ("", None, "")
