"""The sources use only ``contracts.cancel_shield`` for shields: a bare shielded scope hides its own expiry."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
OWN = "provisioner/contracts/cancel_shield.py"
# (file, function) -> reason. The list is exact: an obsolete entry fails the test.
ALLOWED = {
    ("provisioner/contracts/tool.py", "_end_group"): "checks the process after each deadline",
}


def bare_shields(source: str) -> set[str]:
    """Return the names of the functions that create a shielded scope themselves."""
    found = set()

    def walk(node: ast.AST, function: str) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function = node.name
        if isinstance(node, ast.Call):
            values = [keyword.value for keyword in node.keywords if keyword.arg == "shield"]
            if any(not (isinstance(value, ast.Constant) and value.value is False) for value in values):
                found.add(function)
        if isinstance(node, ast.Attribute) and node.attr == "shield" and isinstance(node.ctx, ast.Store):
            found.add(function)
        for child in ast.iter_child_nodes(node):
            walk(child, function)

    walk(ast.parse(source), "")
    return found


def test_no_bare_shields():
    sources = [path for root in ("provisioner", "plugins") for path in sorted((ROOT / root).rglob("*.py"))]
    found = {
        (name, function)
        for path in sources
        if (name := str(path.relative_to(ROOT))) != OWN
        for function in bare_shields(path.read_text())
    }
    assert found == set(ALLOWED)


@pytest.mark.parametrize(
    "line",
    [
        "with trio.CancelScope(shield=True, deadline=1): pass",
        "with CancelScope(deadline=1, shield=True): pass",
        "with trio.move_on_after(1, shield=True): pass",
        "with trio.fail_after(1, shield=last): pass",
        "scope.shield = True",
    ],
)
def test_bare_shield_detected(line):
    assert bare_shields(f"async def work():\n    {line}") == {"work"}


@pytest.mark.parametrize("line", ["with trio.move_on_after(1): pass", "with trio.CancelScope(shield=False): pass"])
def test_unshielded_scope_permitted(line):
    assert bare_shields(f"async def work():\n    {line}") == set()
