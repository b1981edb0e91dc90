"""Tests that lvp.1 names every exit status, every variable that the program reads, and every file."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from provisioner.cli import paths
from provisioner.cli.client_settings import ENVIRONMENT
from provisioner.cli.exit_status import FLEET_RANGE, ExitStatus

ROOT = Path(__file__).parents[3]


@pytest.fixture
def sections(monkeypatch):
    """Return the sections of the page by their headings, as plain text."""
    monkeypatch.setenv("MAINTAINER", "x <x@example.org>")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    spec = importlib.util.spec_from_file_location("generate", ROOT / "packaging" / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    page = generate.command_page().replace("\\-", "-")
    return dict(re.findall(r"^\.SH (.+?)\n(.*?)(?=^\.SH |\Z)", page, re.MULTILINE | re.DOTALL))


def terms(section):
    return re.findall(r"^\.B (.+)$", section, re.MULTILINE)


def test_exit_statuses(sections):
    assert terms(sections["EXIT STATUS"]) == [*(str(int(status)) for status in ExitStatus), FLEET_RANGE]


def test_environment(sections):
    read = {
        name
        for file in (ROOT / "provisioner" / "cli").glob("*.py")
        for name in re.findall(r"""environ(?:\.get\(|\[)["']([A-Z_]+)""", file.read_text())
    }
    assert read
    assert read | set(ENVIRONMENT.values()) <= set(terms(sections["ENVIRONMENT"]))


def test_files(sections, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    used = {paths.client_file(), paths.SYSTEM_CONFIG}
    for uid in (0, 1000):
        monkeypatch.setattr("os.geteuid", lambda uid=uid: uid)
        used |= {paths.data_dir(), paths.pki_dir()}
    named = [Path(name.replace("~", "/home/me")) for name in terms(sections["FILES"])]
    assert used - {paths.data_dir() / "pki"} == set(named)


def test_daemon_page_names_every_variable():
    page = (ROOT / "packaging" / "man" / "libvirt-volume-provisioner.8").read_text().replace("\\-", "-")
    for heading in ("FILES", "ENVIRONMENT", "EXIT STATUS"):
        assert f"\n.SH {heading}\n" in page
    read = {
        name
        for part in ("linux", "observe", "contracts", "auth")
        for file in (ROOT / "provisioner" / part).rglob("*.py")
        for name in re.findall(r"""environ(?:\.get\(|\[)["']([A-Z_]+)""", file.read_text())
    }
    assert not {name for name in read if name not in page}
