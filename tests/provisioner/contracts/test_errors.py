"""The tree of errors: what the API can rely on, whichever error reaches it."""

import inspect

import pytest

from provisioner.contracts import errors
from provisioner.contracts.errors import ConfigError, ProvisionerError, ToolError

ALL = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)]


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_error_is_of_the_tree_and_says_what_the_api_needs(kind):
    assert issubclass(kind, ProvisionerError)
    assert 400 <= kind.code <= 599
    assert kind.category == kind.category.lower()
    assert kind.category
    assert isinstance(kind.temporary, bool)
    assert kind.__doc__
    assert kind.__name__.endswith("Error")


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_a_request_at_fault_is_never_said_to_be_worth_repeating(kind):
    """Trying again without a change helps only where time changes something: 429, 5xx."""
    assert not kind.temporary or kind.code == 429 or kind.code >= 500


def test_the_message_is_the_error():
    error = ConfigError("a sentence")
    assert error.message == str(error) == "a sentence"


def test_a_tool_error_remembers_the_tool():
    error = ToolError("lvs failed", tool="lvs", status=5, stderr="no such group")
    assert (error.tool, error.status, error.stderr) == ("lvs", 5, "no such group")
    assert (ToolError("x").tool, ToolError("x").status, ToolError("x").stderr) == ("", None, "")
