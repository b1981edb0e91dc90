"""The alert rules and the dashboard ask only for metrics and label values that the service exports."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from provisioner.observe.metrics import PREFIX, Metrics

CONTRIB = Path(__file__).parents[1] / "contrib"
RULES = yaml.safe_load((CONTRIB / "prometheus" / "rules.yaml").read_text())
DASHBOARD = json.loads((CONTRIB / "grafana" / "dashboard.json").read_text())
SCRAPE = yaml.safe_load((CONTRIB / "prometheus" / "scrape.yaml").read_text())
ALERTS = {rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"]}
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [
    *(pytest.param(rule["expr"], id=name) for name, rule in ALERTS.items()),
    *(pytest.param(one["expr"], id=f"{panel['title']} {one['refId']}") for panel in PANELS for one in panel["targets"]),
]
# Labels that Prometheus adds, and the ones that only some series have.
SCRAPED = {"job", "instance", "__name__"}


def exported():
    """Return the labels of every series that the service can export, by the series' name."""
    metrics = Metrics()
    found = {"up": set()}
    for family in metrics.registry.collect():
        own = set(getattr(metrics.registry._names_to_collectors.get(family.name), "_labelnames", ()))
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
        for suffix in suffixes:
            found[family.name + suffix] = own | ({"le"} if suffix == "_bucket" else set())
        # Python's and the process's own metrics come with their full names.
        found |= {sample.name: set(sample.labels) | found.get(sample.name, set()) for sample in family.samples}
    return found


EXPORTED = exported()


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_expression_asks_for_exported_series(expression):
    names = set(re.findall(rf"\b(?:{PREFIX}|process|python)_\w+|\bup\b", expression))
    assert names
    assert names <= EXPORTED.keys()
    # Labels in matchers and groupings belong to one of the series.
    labels = set(re.findall(r'(\w+)(?:=~|!~|!=|=)"', expression))
    labels |= {one for group in re.findall(r"\b(?:by|on) \(([\w, ]+)\)", expression) for one in group.split(", ")}
    assert labels <= SCRAPED.union(*(EXPORTED[name] for name in names))


def test_expressions_use_known_statuses():
    everything = "\n".join(one.values[0] for one in EXPRESSIONS)
    found = re.findall(r'jobs_total\{status(?:=~|!=|=)"([\w|]+)"', everything)
    used = {word for words in found for word in words.split("|")}
    text = Metrics().render().decode()
    assert used
    assert used <= set(re.findall(rf'{PREFIX}_jobs_total{{status="(\w+)"}}', text))


def test_every_metric_is_on_the_dashboard():
    """Someone who opens it sees all there is to see."""
    shown = " ".join(one["expr"] for panel in PANELS for one in panel["targets"]) + str(DASHBOARD["templating"])
    own = {name for name in EXPORTED if name.startswith(PREFIX)}
    shown_families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in own if name in shown}
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in own} == shown_families


def test_alerts_are_complete():
    """Each has a severity and says on which host; the test of promtool counts all of them."""
    for name, rule in ALERTS.items():
        assert name.startswith("Lvp")
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert "{{ $labels.instance }}" in rule["annotations"]["summary"]
        assert rule["annotations"]["description"].endswith(".")
    text = (CONTRIB / "prometheus" / "rules_test.yaml").read_text()
    assert f"value: {len(ALERTS)} }}" in text
    series = re.findall(rf"\b((?:{PREFIX}|process)_\w+)\{{", text)
    assert set(series) <= EXPORTED.keys()


def test_rules_and_scrape_config_name_the_same_job():
    (job,) = SCRAPE["scrape_configs"]
    jobs = {one for rule in ALERTS.values() for one in re.findall(r'job="([^"]+)"', rule["expr"])}
    assert jobs == {job["job_name"]}


def test_dashboard_can_be_imported():
    """Ids are unique, panels do not overlap, and no data source of another Grafana is named."""
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    taken = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken
        taken |= cells
    for panel in PANELS:
        assert panel["description"]
        for one in (panel, *panel["targets"]):
            assert one["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
