"""Every command of docs/recipes is run, in the order of its page, on a machine of the page's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.recipes import machine
from tests.recipes.blocks import blocks

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "recipes").glob("*.md"))
RECIPES = [page for page in PAGES if page.name != "README.md"]
TRYING = (ROOT / "README.md").read_text().partition("## Trying it out")[2].partition("\n## ")[0]
# Why a block is not run here.
NOT_RUN = {
    "firewalld": "firewalld needs the system's D-Bus",
    "guest": "the test's image has no operating system that answers to ACPI; the guest is stopped hard instead",
    "internet": "the publishers of the catalog are on the internet",
    "setup": "this environment is there already; make test-clean runs it in a minimal Debian",
    "guestfs": "virt-customize needs a kernel for its own guest, and the distribution's servers",
    "package": "installs the package under systemd, which tests/guest/outside/systemd does in a container",
    "packer": "not every release has Packer; the template was checked with packer validate",
    "selinux": "this kernel has no SELinux policy",
}
# What a page finds when it begins: functions of services.sh.
BEFORE = {
    "first-guest": "",
    "golden-images": "minio\nservice\ncp /srv/images/web-42.qcow2 web-43.qcow2",
    "reprovision": "service; guest; virsh -q start web-01",
    "backup": "service; guest",
}
# What is done in place of a block that is not run.
INSTEAD = {"guest": "virsh destroy web-01\n"}


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.minio] if "minio" in BEFORE.get(page.stem, "").split() else [])
        for page in RECIPES
    ],
    ids=lambda page: page.stem,
)
def test_recipe(page, tmp_path):
    perform(blocks(page.read_text()), BEFORE.get(page.stem, "service"), tmp_path)


def test_readme_from_a_checkout_to_a_first_volume(tmp_path):
    """The section is for a checkout; here its folder has links to the checkout's parts, which stays as it is."""
    perform(blocks(TRYING), "ln -s $PROJECT/.venv $PROJECT/contrib .", tmp_path)


def perform(found, before, folder):
    """Check the marks of the blocks and run those that can run here."""
    for block in found:
        if block.mark.startswith("not run, "):
            key = block.mark.removeprefix("not run, ")
            assert key in NOT_RUN
            if key in INSTEAD:
                block.mark, block.language, block.text = "", "console", f"# {INSTEAD[key]}"
        else:
            assert block.language == "console" or block.mark.split()[0] in {"file", "append"}, block
    run = [block for block in found if not block.mark.startswith("not run")]
    machine.run(folder, run, before)


def test_every_reason_is_used():
    marks = {block.mark for text in [TRYING, *(page.read_text() for page in RECIPES)] for block in blocks(text)}
    assert {f"not run, {key}" for key in NOT_RUN} == {mark for mark in marks if mark.startswith("not run")}


def test_index_lists_every_recipe():
    index = (ROOT / "docs" / "recipes" / "README.md").read_text()
    assert [page.name for page in RECIPES if f"({page.name})" not in index] == []
