"""Commands and options that are nearly right: the message names what was meant."""

import pytest

from provisioner.cli.app import _CONNECTION_FLAGS
from provisioner.cli.connection import _OPTIONS


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["jobs"], "No such command 'jobs'. Did you mean 'job'?"),
        (["volume", "rm"], "No such command 'rm'. Did you mean 'remove'?"),
        (["cache", "ls"], "No such command 'ls'. Did you mean 'list'?"),
        (["job", "crate"], "No such command 'crate'. See '"),
        (["token", "delete"], "No such command 'delete'. See '"),
        (["token", "lits"], "No such command 'lits'. Did you mean 'list'?"),
        (["frobnicate"], "No such command 'frobnicate'. See '"),
        (["--url", "http://x", "job", "list"], "--url belongs after the command, such as 'lvp job list --url ...'"),
        (["job", "submit", "http://x/y", "web", "20G"], "SIZE_GB is a whole number of GiB, such as 20"),
        (["job", "submit", "http://x/y", "web", "0"], "SIZE_GB is a whole number of GiB, such as 20"),
        (["job", "submit", "http://x/y", "web", "1.5"], "SIZE_GB is a whole number of GiB, such as 20"),
    ],
)
def test_near_miss(run, words, message):
    ended = run(*words)
    assert (ended.status, ended.out) == (2, "")
    assert f"Error: {message}" in ended.err


def test_root_knows_all_connection_flags():
    assert {"--" + name.replace("_", "-") for name in _OPTIONS} | {"--json"} == _CONNECTION_FLAGS


def test_volume_remove_without_terminal(run):
    ended = run("volume", "remove", "fast", "web-01")
    assert (ended.status, ended.out) == (2, "")
    assert ended.err == "Error: nothing was removed: without a terminal to ask on, give --yes\n"
