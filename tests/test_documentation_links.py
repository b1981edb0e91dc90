"""Tests that relative links in Markdown pages work, and that every file named in the developers' pages exists."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<!\!)\[[^\]]*\]\(([^)\s]+)\)")
NAMED = re.compile(r"`([\w./-]+/(?:[\w.-]+\.(?:py|md|toml|yaml))?)`")
# Absolute paths and urls are not files of the project.
ELSEWHERE = ("/", "~", "http:", "https:", "mailto:")


def pages():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode == 0:
        return [Path(name) for name in listed.stdout.splitlines() if (ROOT / name).is_file()]
    return [path.relative_to(ROOT) for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]]


DEVELOPER_PAGES = [
    page
    for page in pages()
    if page.name in {"CONTRIBUTING.md", "architecture.md", "glossary.md", "lvm.md", "hostile-images.md"}
    or "decisions" in page.parts
]


def headings(text):
    """Return the anchors of a page, as GitHub generates them."""
    found = set()
    for line in re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL).splitlines():
        if match := re.match(r"#+ (.*)", line):
            plain = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", match[1]).lower())
            found.add(plain.strip().replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", pages(), ids=str)
def test_links_exist(page):
    broken = []
    for target in LINK.findall((ROOT / page).read_text()):
        path, _, anchor = target.partition("#")
        if target.startswith(ELSEWHERE):
            continue
        there = (ROOT / page).parent / path if path else ROOT / page
        if not there.exists() or (anchor and there.suffix == ".md" and anchor not in headings(there.read_text())):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", DEVELOPER_PAGES, ids=str)
def test_named_files_exist(page):
    """A page may omit ``provisioner/``, as the architecture page does."""
    missing = [
        name
        for name in NAMED.findall((ROOT / page).read_text())
        if not name.startswith(ELSEWHERE)
        and not any((ROOT / root / name).exists() for root in ("", "provisioner", "plugins", "tests"))
    ]
    assert missing == []


def test_module_map_is_complete():
    text = (ROOT / "docs" / "architecture.md").read_text()
    rooms = {f"{path.parent.name}/" for path in (ROOT / "provisioner").glob("*/__init__.py")}
    rooms |= {path.name for path in (ROOT / "provisioner").glob("*.py") if path.name != "__init__.py"}
    rooms |= {f"plugins/{path.name}/" for path in (ROOT / "plugins").glob("lvp_*")}
    assert {room for room in rooms if f"`{room}`" not in text} == set()


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md")), ids=lambda page: page.stem)
def test_decision_has_all_parts(page):
    text = page.read_text()
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["Context", "Decision", "Consequences", "Measured"]
    assert re.search(r"\d", text.partition("## Measured")[2]), "a decision says what was measured"
    assert page.name in (ROOT / "docs" / "decisions" / "README.md").read_text()
