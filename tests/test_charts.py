"""The charts in the documentation: drawn from the kept figures, and shown."""

import json
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

ROOT = Path(__file__).parents[1]
KEPT = json.loads((ROOT / "contrib/bench/figures.json").read_text())


@pytest.fixture
def figures(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "contrib/bench")
    import figures

    yield figures
    for name in ("figures", "series"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", KEPT)
def test_chart_is_up_to_date(figures, name):
    """Draw it again with `python contrib/bench/figures.py`."""
    assert (ROOT / f"docs/charts/{name}.svg").read_text() == figures.chart(KEPT[name])
    assert f"](charts/{name}.svg)" in (ROOT / "docs/performance.md").read_text()


def test_chart_shows_every_value_within_its_bounds(figures):
    given = {
        "title": "A < B & C", "unit": "ms", "series": ["old", "new"], "machine": "m", "command": "c",
        "values": {"one": [1000, 0.0], "two <x>": [12.5, 3.25]},
    }  # fmt: skip
    picture = ET.fromstring(figures.chart(given))
    texts = {"".join(text.itertext()) for text in picture.findall(".//{*}text")}
    assert {"A < B & C", "old", "new", "one", "two <x>", "1000 ms", "0 ms", "12 ms", "3.25 ms", "m", "c"} <= texts
    width = float(picture.get("width"))
    for bar in picture.findall(".//{*}rect"):
        assert float(bar.get("x", 0)) + float(bar.get("width")) <= width
