"""What a user of the collection gets: its documentation, its requirements, and a unix socket."""

from __future__ import annotations

import json
import subprocess
import tomllib
from pathlib import Path

import yaml

from tests.end_to_end.ansible.playing import COLLECTION, program

MODULES = sorted(path.stem for path in (COLLECTION / "plugins" / "modules").glob("*.py"))


def test_documentation_of_each_module(ansible):
    """ansible-doc renders it, and names the options that the module has."""
    names = [f"lvp.provisioner.{name}" for name in MODULES]
    command = [program("ansible-doc"), "--json", *names]
    done = subprocess.run(command, capture_output=True, text=True, env=ansible.environment, check=True)
    assert "WARNING" not in done.stderr
    found = json.loads(done.stdout)
    assert sorted(found) == names
    for page in found.values():
        assert page["doc"]["short_description"]
        assert {"url", "token", "token_file", "ca", "cert", "key"} <= page["doc"]["options"].keys()
        assert yaml.safe_load(page["examples"])
        assert page["return"]
    text = subprocess.run(
        [program("ansible-doc"), *names], capture_output=True, text=True, env=ansible.environment, check=True
    ).stdout
    assert "Whether a volume in use may grow" in text


def test_options_are_documented(ansible, daemon, server):
    """A module rejects an unknown option with the list of those it has; compare them with the documentation."""
    command = [program("ansible-doc"), "--json", *(f"lvp.provisioner.{name}" for name in MODULES)]
    done = subprocess.run(command, capture_output=True, text=True, env=ansible.environment, check=True)
    documented = {name.rpartition(".")[2]: page["doc"]["options"] for name, page in json.loads(done.stdout).items()}
    needed = {"name": "web-01", "image_url": "https://images.example.org/a.qcow2"}
    tasks = [{f"lvp.provisioner.{name}": {**needed, "nonsense": 1}, "ignore_errors": True} for name in MODULES]
    for name, failed in zip(MODULES, ansible.play(tasks).results, strict=True):
        assert "Unsupported parameters" in failed["msg"]
        listed = failed["msg"].partition("Supported parameters include: ")[2].rstrip(".")
        assert {word.split(" ")[0] for word in listed.split(", ")} == documented[name].keys()


def test_action_group_and_version():
    groups = yaml.safe_load((COLLECTION / "meta" / "runtime.yml").read_text())["action_groups"]
    assert groups["all"] == MODULES
    galaxy = yaml.safe_load((COLLECTION / "galaxy.yml").read_text())
    version = (COLLECTION.parents[1] / "provisioner" / "__init__.py").read_text()
    assert f'__version__ = "{galaxy["version"]}"' in version
    assert galaxy["license"] == ["MIT"]


def test_archive_has_no_more_than_is_needed(installed):
    (archive,) = installed.glob("*.tar.gz")
    listed = subprocess.run(["tar", "tzf", archive], capture_output=True, text=True, check=True).stdout.split()
    assert not [name for name in listed if name.endswith(("requirements.txt", "ruff.toml", ".pyc"))]
    assert "README.md" in listed


def test_unix_socket(ansible, make_daemon, server):
    daemon = make_daemon("u")
    socket = daemon.folder / "lvp.sock"
    daemon.config["server"]["bind"] = [f"unix:{socket}", "127.0.0.1:0"]
    daemon.start()
    ansible.options = {"url": f"unix:{socket}", "token": daemon.token}
    made = ansible.module("volume", name="web-01", image_url=server.of("zlib.qcow2"))
    assert made["changed"] is True
    assert Path(made["volume"]["path"]).exists()
    found = ansible.each("volume_info", [{}, {"name": "web-01"}, {"name": "web-02"}, {"target": "other"}])
    assert [len(one["volumes"]) for one in found] == [1, 1, 0, 0]


CONFIGS = [
    {},
    {"server": {"bind": ["0.0.0.0:8080"], "page": False}, "jobs": {"max_concurrent": 4}},
    {"auth": {"certificates": {"ci.example.org": {"role": "operator", "volumes": ["ci-*"]}}}},
    {"cache": {"prewarm": [{"url": "https://a/b", "every": "1d"}]}, "x": {'odd key "ä': 'a"b\\c\n\x7f☃'}},
    {"f": {"n": -1, "r": 1.5, "e": [], "t": {}, "nested": [[1, 2], ["a"]]}},
]


def test_toml_of_the_role(ansible):
    """The filter writes what any reader of TOML reads back."""
    debug = {"ansible.builtin.debug": {"msg": "{{ configs | map('lvp.provisioner.to_toml') }}"}}
    written = ansible.play([{**debug, "vars": {"configs": CONFIGS}}]).only["msg"]
    assert [tomllib.loads(text) for text in written] == CONFIGS
