"""Tests of the web page's API reference in a real Chromium: all of api.yaml is there, and everyone can use it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.end_to_end.daemon import until
from tests.end_to_end.test_page import (  # noqa: F401 - two are fixtures
    _CONTRAST,
    browser,
    check_view,
    open_view,
    page,
    reach,
    serious_findings,
    show,
    sign_in,
)

pytestmark = pytest.mark.slow

DOCUMENT = yaml.load((Path(__file__).parents[2] / "api.yaml").read_text(), yaml.CSafeLoader)
OPERATIONS = [
    (method, path, operation)
    for path, item in DOCUMENT["paths"].items()
    for method, operation in item.items()
    if method != "parameters"
]
OPEN_ALL = "document.querySelectorAll('main details').forEach((one) => { one.open = true; })"


@pytest.fixture
def reference(page, daemon):  # noqa: F811 - a fixture
    sign_in(page, daemon)
    open_view(page, "API")
    page.wait("document.querySelectorAll('details.entry').length > 0")
    return page


def plain(text):
    return " ".join(text.replace("**", "").replace("`", "").split())


def test_document_is_read_as_another_reader_reads_it(reference):
    """Every value of api.yaml, examples and block scalars too."""
    read = reference.js(
        "Promise.all([import('./page/yaml.js'), fetch('page/api.yaml').then((answer) => answer.text())])"
        ".then(([{ parse }, text]) => JSON.stringify(parse(text)))"
    )
    assert json.loads(read) == DOCUMENT


def test_every_operation_and_object_is_shown(reference):
    reference.js(OPEN_ALL)
    until(lambda: "additional" not in reference.text() and reference.js("document.querySelectorAll('pre').length") > 40)
    shown = plain(reference.js("document.querySelector('main').textContent"))
    for method, path, operation in OPERATIONS:
        entry = plain(reference.js(f"document.getElementById('entry-{operation['operationId']}').textContent"))
        assert entry.startswith(f"{method.upper()} {path}"), entry[:80]
        assert plain(operation["summary"]) in entry
        assert all(status in entry for status in operation["responses"]), path
    for name, schema in DOCUMENT["components"]["schemas"].items():
        assert plain(schema.get("description", name)) in shown, name
        entry = reference.js(f"document.getElementById('entry-{name}').textContent")
        assert all(one in entry for one in schema.get("properties", {})), name
    assert "undefined" not in shown
    assert "[object Object]" not in shown


def test_objects_are_reached_by_links(reference):
    """A link opens the object and moves the focus there; so does the address."""
    reference.js("document.getElementById('entry-submitJob').querySelector('summary').click()")
    reference.click("JobRequest", "link")
    reference.wait("document.getElementById('entry-JobRequest')?.open")
    reference.wait("document.activeElement?.textContent === 'JobRequest'")
    assert reference.js("location.hash") == "#api/JobRequest"
    reference.js("location.hash = '#api/no-such-object'")
    reference.wait(
        "document.querySelector('details.entry') !== null && document.querySelector('details[open]') === null"
    )


def test_find(reference):
    reference.fill("Find", "resize", "searchbox")
    reference.wait("[...document.querySelectorAll('details.entry')].filter((one) => !one.hidden).length < 6")
    visible = reference.js(
        "[...document.querySelectorAll('details.entry')].filter((e) => e.checkVisibility()).map((e) => e.id)"
    )
    assert "entry-resizeVolume" in visible
    assert "entry-submitJob" not in visible
    assert reference.js("document.querySelector('.form [role=status]').textContent").startswith(f"{len(visible)} of ")
    reference.fill("Find", "nothing has these words", "searchbox")
    reference.see("0 of ")


def test_keyboard(reference):
    """An entry is reached and opened with keys alone."""
    reach(reference, "searchbox Find")
    reference.type("whoami")
    reference.wait("[...document.querySelectorAll('details.entry')].filter((one) => !one.hidden).length === 1")
    for _ in range(4):
        reference.press("Tab")
        if reference.js("document.activeElement.closest('details.entry') !== null"):
            break
    reference.press("Enter")
    reference.wait("document.getElementById('entry-whoami').open")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_open_entries_on_a_phone_and_in_both_schemes(reference, scheme):
    reference.prefer(color_scheme=scheme)
    reference.js(OPEN_ALL)
    reference.wait("document.querySelectorAll('pre').length > 40")
    assert reference.js(_CONTRAST) == []
    show(reference, f"{scheme}-api-open")
    reference.resize(360, 740)
    check_view(reference, "API-open")
    assert serious_findings(reference) == []
