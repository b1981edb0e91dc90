"""Keeps the figures of benchmarks in one JSON file, and draws them as bar charts for docs/performance.md.

    python contrib/bench/figures.py          draws the charts again from contrib/bench/figures.json

Benchmarks with ``--keep`` replace their own figures in that file and draw their chart.
"""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

from series import machine

KEPT = Path(__file__).with_name("figures.json")
CHARTS = Path(__file__).parents[2] / "docs" / "charts"
# Pixels.
WIDTH, LABELS, VALUES, BAR, GAP, TOP = 760, 250, 76, 14, 12, 58
# Told apart in both themes, and by people who see few colours: each differs in lightness.
COLOURS = ("#1f6feb", "#bf8700", "#8b949e", "#a371f7", "#3fb950")
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328 } .title { font-weight: 600; font-size: 15px }
.value, .note { font-size: 12px } .note { fill: #59636e } .ground { fill: #ffffff } .axis { stroke: #59636e }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc } .note { fill: #9198a1 } .ground { fill: #0d1117 } .axis { stroke: #9198a1 }
}
"""


def record(name: str, title: str, unit: str, series: list[str], values: dict[str, list[float]], command: str) -> None:
    """Keep the figures of one chart and draw it. ``values`` has a value of each series by the label of their group.

    ``command`` is what anyone can run to measure them again.
    """
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    kept[name] = {
        "title": title,
        "unit": unit,
        "series": series,
        "values": {label: [round(value, 3) for value in row] for label, row in values.items()},
        "machine": machine(),
        "command": command,
    }
    KEPT.write_text(json.dumps(kept, indent=2) + "\n")
    draw(name, kept[name])


def draw(name: str, figures: dict) -> None:
    CHARTS.mkdir(exist_ok=True)
    (CHARTS / f"{name}.svg").write_text(chart(figures))


def chart(figures: dict) -> str:
    """Return a chart as SVG: a group of horizontal bars for each label, one for each series."""
    series, values, unit = figures["series"], figures["values"], figures["unit"]
    longest = max(value for row in values.values() for value in row)
    scale = (WIDTH - LABELS - VALUES) / longest
    group = len(series) * BAR + GAP
    bottom = TOP + len(values) * group
    parts = [f'<text class="title" x="12" y="22">{escape(figures["title"])}</text>', *legend(series)]
    for place, (label, row) in enumerate(values.items()):
        top = TOP + place * group
        middle = top + len(series) * BAR / 2 + 4
        parts.append(f'<text x="{LABELS - 8}" y="{middle:g}" text-anchor="end">{escape(label)}</text>')
        for number, value in enumerate(row):
            y = top + number * BAR
            width = max(1.0, value * scale)
            parts.append(
                f'<rect x="{LABELS}" y="{y}" width="{width:.1f}" height="{BAR - 2}" fill="{COLOURS[number]}"/>'
                f'<text class="value" x="{LABELS + width + 5:.1f}" y="{y + BAR - 4}">{shown(value, unit)}</text>'
            )
    parts.append(f'<line class="axis" x1="{LABELS}" y1="{TOP - 4}" x2="{LABELS}" y2="{bottom - GAP + 4}"/>')
    parts.append(
        f'<text class="note" x="12" y="{bottom + 12}">{escape(figures["machine"])}</text>'
        f'<text class="note" x="12" y="{bottom + 30}">{escape(figures["command"])}</text>'
    )
    height = bottom + 42
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="{escape(figures["title"])}"><style>{STYLE}</style>'
        f'<rect class="ground" width="{WIDTH}" height="{height}"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def legend(series: list[str]) -> list[str]:
    parts, x = [], LABELS
    for number, name in enumerate(series):
        parts.append(
            f'<rect x="{x}" y="34" width="11" height="11" fill="{COLOURS[number]}"/>'
            f'<text class="value" x="{x + 16}" y="44">{escape(name)}</text>'
        )
        x += 34 + 7 * len(name)
    return parts


def shown(value: float, unit: str) -> str:
    number = f"{value:.0f}" if value >= 10 else f"{value:.2f}".rstrip("0").rstrip(".")
    return f"{number} {unit}".rstrip()


if __name__ == "__main__":
    for name, figures in json.loads(KEPT.read_text()).items():
        draw(name, figures)
