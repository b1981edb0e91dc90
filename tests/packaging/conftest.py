"""Fixtures: the packages, built once for all tests of this folder, and trees with their files."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.packaging.building import CHECKOUT, build, build_plugin, snapshot

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    return snapshot(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="session")
def packages(source, tmp_path_factory):
    return build(source, tmp_path_factory.mktemp("packages"))


@pytest.fixture(scope="session")
def plugin(source, tmp_path_factory):
    return build_plugin(source, tmp_path_factory.mktemp("plugin"))


@pytest.fixture(scope="session")
def deb_tree(packages, tmp_path_factory):
    """Return a tree with the deb's files, extracted by dpkg."""
    tree = tmp_path_factory.mktemp("deb")
    subprocess.run(["dpkg-deb", "--extract", packages.deb, tree], check=True)
    return tree


@pytest.fixture(scope="session")
def rpm_tree(packages, tmp_path_factory):
    """Return a root into which rpm installed the package, without its dependencies."""
    tree = tmp_path_factory.mktemp("rpm")
    rpm(tree, "--install", "--nodeps", "--noscripts", str(packages.rpm))
    return tree


@pytest.fixture(params=["deb", "rpm"])
def tree(request):
    return request.getfixturevalue(f"{request.param}_tree")


def rpm(tree, *words):
    command = ["rpm", "--root", str(tree), "--dbpath", "/var/lib/rpm", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="session", autouse=True)
def tools():
    for program in ("dpkg-deb", "rpm", "lintian", "rpmlint", "man", "bash", "zsh", "fish", "strip", "systemd-analyze"):
        assert shutil.which(program), f"{program} is missing; contrib/dev/setup test installs it"


@pytest.fixture
def conffile():
    return CHECKOUT / "packaging" / "config.toml"
