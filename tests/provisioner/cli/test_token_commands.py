"""Tests of ``lvp token``: limits, key rotation, and other key files."""

from __future__ import annotations

import json
import time

import pytest

from provisioner.auth.token_keys import KeyFile
from provisioner.auth.tokens import TokenFile
from provisioner.config import Limits

LIMITS = ["--volumes", "ci-*", "--volumes", "t-?", "--targets", "fast", "--sources", "https://x/ci/", "--max-jobs", "4"]


@pytest.fixture
def file(home):
    return home / "tokens.json"


def test_token_with_limits(run, file):
    assert run("token", "create", "ci", *LIMITS, "--token-file", file).status == 0
    (record,) = TokenFile(file).list()
    assert record.limits == Limits(volumes=["ci-*", "t-?"], targets=["fast"], sources=["https://x/ci/"], max_jobs=4)
    listed = run("token", "list", "--token-file", file).out
    assert "volumes ci-*,t-?; targets fast; sources https://x/ci/; 4 jobs" in listed


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--sources", "https://u:p@x/"], "is not a URL prefix"),
        (["--max-jobs", "0"], "--max-jobs"),
    ],
)
def test_token_with_invalid_limits(run, file, args, words):
    ended = run("token", "create", "ci", *args, "--token-file", file)
    assert ended.status == 2
    assert words in ended.err
    assert not file.exists()


def test_token_limits_unknown_to_config(run, home):
    config_file = home / "config.toml"
    config_file.write_text(f'state_directory = "{home}"\n[targets.a]\nplugin = "file"\ndirectory = "{home}"\n')
    ended = run("token", "create", "ci", "--targets", "nowhere", "--config", config_file)
    assert ended.status == 1
    assert 'targets: found "nowhere", allowed: a' in ended.err
    assert run("token", "create", "ci", "--targets", "a", "--config", config_file).status == 0


def test_rotate_key_names_unmoved_tokens(run, file):
    token = run("token", "create", "ci", "--token-file", file).out.strip()
    ended = run("token", "rotate-key", "--token-file", file)
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.rstrip().endswith("until their next use: ci")
    assert TokenFile(file).authenticate(token, time.time()).name == "ci"
    assert run("token", "rotate-key", "--forget", "--token-file", file).out == "created a new key; revoked: ci\n"
    assert TokenFile(file).authenticate(token, time.time()) is None
    assert run("token", "rotate-key", "--token-file", file).out == "created a new key\n"


def test_token_with_other_key_file(run, home, file):
    token = run("token", "create", "ci", "--token-file", file, "--key-file", home / "k").out.strip()
    assert TokenFile(file).authenticate(token, time.time()) is None
    assert TokenFile(file, KeyFile(home / "k")).authenticate(token, time.time()).name == "ci"


@pytest.mark.parametrize("name", ["a b", "", "x" * 65, "ä", "a/b", "a\n"])
def test_token_with_invalid_name(run, file, name):
    ended = run("token", "create", "--token-file", file, "--", name)
    assert ended.status == 2
    assert "NAME must have 1 to 64 letters" in ended.err
    assert not file.exists()


def test_token_list_marks_expired(run, file):
    TokenFile(file).create("old", "viewer", time.time() - 1)
    TokenFile(file).create("new", "admin", limits=Limits(max_jobs=2))
    new, old = sorted(run("token", "list", "--token-file", file).out.splitlines()[1:])
    assert "Z (expired)" in old
    assert "expired" not in new
    listed = json.loads(run("token", "list", "--json", "--token-file", file).out)["tokens"]
    assert {one["name"]: one["expired"] for one in listed} == {"old": True, "new": False}
    assert listed[1]["max_jobs"] == 2
    assert "digest" not in listed[0]
