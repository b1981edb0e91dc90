"""Tests of the packaged configuration: it contains every key, with its real default."""

from __future__ import annotations

import re
import tomllib

import msgspec
import pytest

from provisioner import registry
from provisioner.config import DEFAULT_CONVERTERS, Config, parse

TABLES = {"source": "sources", "target": "targets", "guard": "guards", "observer": "observers"}
SETTING = re.compile(r"#(?=[a-z0-9_]+ = |\[)")


def uncommented(text):
    return "\n".join(SETTING.sub("", line, count=1) for line in text.splitlines())


@pytest.fixture
def document(conffile):
    """Return the file with every key uncommented."""
    return tomllib.loads(uncommented(conffile.read_text()))


def test_config_lacks_only_a_target(conffile):
    with pytest.raises(Exception, match=r"^config: targets: is missing[^\n]*$"):
        parse(tomllib.loads(conffile.read_text()), "config")


@pytest.mark.parametrize("name", ["targets.thin", "targets.plain", "targets.files", "targets.ceph"])
def test_config_one_target_uncommented(conffile, name):
    lines, inside = [], False
    for line in conffile.read_text().splitlines():
        if line.startswith("#["):
            inside = line == f"#[{name}]"
        lines.append(SETTING.sub("", line, count=1) if inside else line)
    registry.load().build(parse(tomllib.loads("\n".join(lines)), "config"))


def test_config_everything_uncommented(document):
    registry.load().build(parse(document, "config"))


def test_config_has_every_core_key(document):
    """A section has exactly the keys of its schema, and the file shows every default."""
    defaults = msgspec.to_builtins(Config(), enc_hook=str)
    shown = msgspec.to_builtins(parse(document, "config"), enc_hook=str)
    for section in ("server", "auth", "audit", "jobs", "cache", "log"):
        assert set(document[section]) == set(defaults[section]), section
        for key, value in defaults[section].items():
            if value not in (None, {}, []):
                assert shown[section][key] == value, f"{section}.{key}"
    assert document["state_directory"] == defaults["state_directory"]
    assert {form: document["converters"][form] for form in DEFAULT_CONVERTERS} == DEFAULT_CONVERTERS


def test_config_has_every_back_end_key(document):
    """Each key is in a table of that plugin, or of one that shares its settings."""
    plugins = registry.load()._back_ends
    for kind, tables in TABLES.items():
        written = {key for table in document[tables].values() for key in table}
        for name, back_end in plugins[kind].items():
            assert set(back_end.settings.__struct_fields__) <= written, f"{kind} {name}"
            assert any(table["plugin"] == name for table in document[tables].values()), f"{kind} {name}"


def test_config_shows_back_end_defaults(document):
    plugins = registry.load()._back_ends
    for kind, tables in TABLES.items():
        for name, table in document[tables].items():
            settings = plugins[kind][table["plugin"]].settings
            for field in msgspec.structs.fields(settings):
                default = field.default
                if field.encode_name in table and isinstance(default, bool | int | float | str) and default != "":
                    given = table[field.encode_name]
                    value = type(default).parse(given) if hasattr(default, "parse") else given
                    allowed = {default, "environment", "chain"} if field.encode_name == "credentials" else {default}
                    assert value in allowed, f"{tables}.{name}.{field.encode_name}"
