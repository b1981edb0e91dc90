"""Tests that docs/cli.md lists exactly the commands and options, that help has examples, and that imports are lazy."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from provisioner.cli import cli
from provisioner.cli.client_settings import ENVIRONMENT
from provisioner.cli.exit_status import FLEET_RANGE, ExitStatus
from provisioner.cli.help_page import SectionedOption

DOCS = (Path(__file__).parents[3] / "docs" / "cli.md").read_text()
SECTIONS = dict(re.findall(r"^### `(lvp [^`]+)`\n(.*?)(?=^##|\Z)", DOCS, re.MULTILINE | re.DOTALL))


def commands(group, words):
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, [*words, name])
        else:
            yield " ".join([*words, name]), command


COMMANDS = dict(commands(cli, ["lvp"]))


def heading(name, command):
    """Return the command with its arguments, such as ``lvp job show ID``."""
    context = click.Context(command)
    metavars = [p.make_metavar(context) for p in command.params if isinstance(p, click.Argument)]
    return " ".join([name, *metavars])


def own_options(command):
    options = [p for p in command.params if isinstance(p, click.Option) and not isinstance(p, SectionedOption)]
    return {flag for option in options for flag in option.opts if flag.startswith("--")}


@pytest.mark.parametrize("name", COMMANDS)
def test_command_options_are_documented(name):
    section = SECTIONS[heading(name, COMMANDS[name])]
    documented = set(re.findall(r"`(--[a-z-]+)", section))
    assert documented == own_options(COMMANDS[name])


def test_documented_commands_exist():
    assert SECTIONS.keys() == {heading(name, command) for name, command in COMMANDS.items()}


def test_connection_settings_are_documented():
    rows = re.findall(r"^\| `--([a-z-]+)` \| `(LVP_\w+)` \| `(\w+)` \|", DOCS, re.MULTILINE)
    assert [(key.replace("_", "-"), name, key) for key, name in ENVIRONMENT.items()] == rows


def test_exit_statuses_are_documented():
    rows = re.findall(r"^\| (\d+) \|", DOCS, re.MULTILINE)
    assert [int(row) for row in rows] == sorted(ExitStatus)
    assert f"| {FLEET_RANGE} |" in DOCS


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_example(name, run):
    ended = run(*name.split()[1:], "--help")
    assert ended.status == 0
    assert f"\n  {name}" in ended.out.split("Example")[1]


def test_root_help_names_every_command(run):
    ended = run("--help")
    for name in cli.list_commands(click.Context(cli)):
        assert re.search(rf"^  {name} ", ended.out, re.MULTILINE), name


def test_slow_modules_are_imported_late():
    """Keeps ``lvp --version`` and completion fast: click alone takes 0.1 s on a slow core."""
    code = "import sys; from provisioner.cli import app, job, pki, token; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"httpx", "trio", "rich", "msgspec", "pluggy", "ssl", "tomllib", "json", "cryptography"} & set(loaded)


def test_completion_of_commands(monkeypatch, capsys):
    monkeypatch.setenv("_LVP_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "lvp job ca")
    monkeypatch.setenv("COMP_CWORD", "2")
    with pytest.raises(SystemExit):
        cli.main([], prog_name="lvp", standalone_mode=False)
    assert "cancel" in capsys.readouterr().out
