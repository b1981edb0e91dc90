"""Tests that docs/configuration.md lists every setting with its default, and no unknown setting."""

import json
import re
from pathlib import Path

import msgspec
import pytest

from provisioner import registry
from provisioner.config import (
    DEFAULT_CONVERTERS,
    AuditSettings,
    AuthSettings,
    CacheSettings,
    Config,
    JobSettings,
    LogSettings,
    NamedImage,
    ServerSettings,
    SignatureSettings,
)
from provisioner.contracts import ByteSize, Duration

PAGE = (Path(__file__).parents[1] / "docs" / "configuration.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))

CORE = {
    "Top level": Config,
    "[server]": ServerSettings,
    "[auth]": AuthSettings,
    "[audit]": AuditSettings,
    "[jobs]": JobSettings,
    "[cache]": CacheSettings,
    "[images.NAME]": NamedImage,
    "[log]": LogSettings,
    "Signature": SignatureSettings,
}
# Sections of back ends that extend the table of another section.
BUILDS_ON = {
    "Source `s3`": "Source `http`",
    "Source `oci`": "Source `http`",
    "Source `minio`": "Source `s3`",
    "Target `thin-lvm`": "Target `lvm`",
}


def plugin_sections():
    plugins = registry.load()
    for info in plugins.describe():
        settings = plugins._back_ends[info.kind][info.name].settings
        if msgspec.structs.fields(settings) and info.distribution == "libvirt-volume-provisioner":
            yield f"{info.kind.capitalize()} `{info.name}`", settings


STRUCTS = {**CORE, **dict(plugin_sections())}


def rows(heading):
    """Return key -> text of the default column, of a section and those it extends."""
    found = rows(BUILDS_ON[heading]) if heading in BUILDS_ON else {}
    for keys, default in re.findall(r"^\| (`[^|]+`) \|([^|]*)\|", SECTIONS[heading], re.MULTILINE):
        found.update(dict.fromkeys(re.findall(r"`(\w+)`", keys), default))
    return found


@pytest.mark.parametrize("heading", STRUCTS)
def test_page_lists_every_key(heading):
    keys = {info.encode_name for info in msgspec.structs.fields(STRUCTS[heading])}
    assert keys <= rows(heading).keys()


@pytest.mark.parametrize("heading", STRUCTS)
def test_page_lists_no_unknown_key(heading):
    own = {
        key
        for keys in re.findall(r"^\| (`[^|]+`) \|", SECTIONS[heading], re.MULTILINE)
        for key in re.findall(r"`(\w+)`", keys)
    }
    assert own <= {info.encode_name for info in msgspec.structs.fields(STRUCTS[heading])}


def written(value):
    return json.dumps(str(value)) if isinstance(value, str | ByteSize | Duration) else json.dumps(value)


@pytest.mark.parametrize("heading", STRUCTS)
def test_page_defaults(heading):
    for info in msgspec.structs.fields(STRUCTS[heading]):
        default = info.default_factory() if info.default_factory is not msgspec.NODEFAULT else info.default
        if default in (msgspec.NODEFAULT, None, "") or (heading == "Top level" and info.name != "state_directory"):
            continue
        assert f"`{written(default)}`" in rows(heading)[info.encode_name], info.name


def test_page_default_converters():
    for image_format, converter in DEFAULT_CONVERTERS.items():
        assert f'`{image_format} = "{converter}"`' in rows("Top level")["converters"]
