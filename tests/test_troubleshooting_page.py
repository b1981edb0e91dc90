"""Tests that docs/troubleshooting.md has an entry for each kind of error, and quotes messages that exist."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from functools import cache
from pathlib import Path

import pytest

import provisioner
from provisioner.api.app import _CATEGORIES
from provisioner.contracts import errors
from provisioner.contracts.errors import ProvisionerError
from provisioner.contracts.reasons import REASONS
from tests.test_api_yaml import DOCUMENT, nodes

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
ENTRIES = {
    part.partition("\n")[0]: part.partition("\n")[2].partition("\n## ")[0] for part in re.split(r"(?m)^### ", PAGE)[1:]
}
LOG = PAGE.partition("\n## Messages in the log")[2]
# Of a table row the first cell, elsewhere the sentences before the explanation.
MESSAGE = re.compile(r"`([^`]+)`")
# What else an entry quotes in its first lines: commands and settings.
COMMANDS = ("lvp ", "curl ", "qemu-img c", "lvchange ", "virsh ", "Content-Type", "[", "on_restart")
# Reasons of responses that no class of error stands for, and their status.
OTHERS = {"https-required": 400, "method-not-allowed": 405, "not-ready": 503}

# Scripts under the distribution's Python, which has Ceph's modules.
SCRIPTS = {f"lvp_target_rbd.{name}" for name in ("image_calls", "lease_holder", "pool_reads")}


def kinds(kind=ProvisionerError):
    yield kind
    for one in kind.__subclasses__():
        yield from kinds(one)


def import_everything():
    names = [provisioner.__name__, *(path.name for path in (ROOT / "plugins").glob("lvp_*"))]
    for name in names:
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            if not module.name.endswith("__main__") and module.name not in SCRIPTS:
                importlib.import_module(module.name)


def test_each_reason_has_an_entry_and_each_entry_a_reason():
    assert set(ENTRIES) == REASONS


def test_every_error_has_a_known_reason():
    """Also those that are defined elsewhere, such as in a plugin."""
    import_everything()
    found = {kind.__name__: kind.reason for kind in kinds() if "test" not in kind.__module__}
    assert len(found) > len(REASONS)
    assert {name: reason for name, reason in found.items() if reason not in REASONS} == {}


def test_statuses_without_a_class_have_a_reason():
    assert {category.replace(" ", "-") for category in _CATEGORIES.values()} <= REASONS


def test_examples_of_the_api_have_known_reasons():
    values = [node for _, node in nodes(DOCUMENT["components"]["examples"])]
    errors_and_jobs = [value for value in values if value.keys() & {"message", "error"}]
    given = {value[name] for value in errors_and_jobs for name in ("reason", "error_reason") if name in value}
    assert len(given) > 20
    assert given <= REASONS


@pytest.mark.parametrize("reason", sorted(REASONS))
def test_entry_names_the_status(reason):
    """Two commands on the host print what no response has."""
    text = ENTRIES[reason]
    if reason in {"invalid-configuration", "plugin-error"}:
        return
    codes = {OTHERS[reason]} if reason in OTHERS else {k.code for k in own_kinds() if k.reason == reason}
    stated = {int(number) for number in re.findall(r"(?m)\A\s*(\d{3})\b", text)}
    job_only = text.strip().startswith("A job.")
    assert stated == codes or job_only, (stated, codes)


def own_kinds():
    return [kind for kind in kinds() if kind.__module__ == errors.__name__]


@cache
def strings():
    """Return every string of the source; each value in an f-string is a NUL."""
    found = []
    for path in [*(ROOT / "provisioner").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(p.value if isinstance(p, ast.Constant) else "\0" for p in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def quoted(text):
    """Yield the messages that an entry quotes: the first cells of its table, or all that its first lines quote."""
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    words = [line for line in text.splitlines()[:4] if not line.startswith("|")]
    for place in [*rows, *words]:
        yield from (one for one in MESSAGE.findall(place) if " " in one and not one.startswith(COMMANDS))


@pytest.mark.parametrize("reason", [*sorted(REASONS), "log"])
def test_quoted_messages_exist(reason):
    text = LOG if reason == "log" else ENTRIES[reason]
    pieces = [(one, piece) for one in quoted(text) for piece in re.split(r"\.\.\.", one) if len(piece.strip()) > 4]
    missing = [one for one, piece in pieces if piece.strip(" ;,:()") not in strings()]
    assert missing == []


def test_most_entries_quote_a_message():
    assert len([reason for reason, text in ENTRIES.items() if list(quoted(text))]) > 40
