"""Tests of the completion of values by the real shells, with a server, without one, and with one that hangs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # real shells

LVP = str(Path(sys.executable).with_name("lvp"))
JOB_ID = "f47ac10b-58cc-4372-a567-0e02b2c3d479"
# Each completes the words in "$@", of which the last is unfinished, and prints one suggestion on each line.
SHELLS = {
    "bash": """
        eval "$(_LVP_COMPLETE=bash_source lvp)"
        COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 )); _lvp_completion lvp; printf '%s\\n' "${COMPREPLY[@]}" """,
    "fish": """_LVP_COMPLETE=fish_source lvp | source; complete --do-complete "$argv" """,
    "zsh": """
        autoload -U compinit; compinit -u -D; eval "$(_LVP_COMPLETE=zsh_source lvp)"
        _describe() { local -a shown; shown=(${(P)3}); print -l -- ${shown%%:*} }
        compadd() { while [[ $1 == -* ]]; do [[ $1 == -U ]] && shift || shift; done; print -l -- "$@" }
        words=("$@"); CURRENT=$#; _lvp_completion """,
}


@pytest.fixture
def complete(home, server):
    def complete(shell, *words, url=server.url):
        environment = {
            **os.environ, "PATH": f"{Path(LVP).parent}:{os.environ['PATH']}", "LVP_URL": url, "LVP_TOKEN": "s3cret"
        }  # fmt: skip
        command = {"bash": ["bash", "--norc", "-c", SHELLS["bash"], "bash", *words],
                   "fish": ["fish", "--no-config", "-c", SHELLS["fish"], " ".join(words)],
                   "zsh": ["zsh", "-f", "-c", SHELLS["zsh"], "zsh", *words]}[shell]  # fmt: skip
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return [line.split("\t")[0] for line in done.stdout.splitlines() if line], done.stderr

    return complete


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("words", "path", "example", "value"),
    [
        (["job", "show", "f4"], "/api/v1/jobs", "JobListPage", JOB_ID),
        (["job", "cancel", "f47ac10b-5"], "/api/v1/jobs", "JobListPage", JOB_ID),
    ],
)
def test_shell_completes(complete, server, shell, words, path, example, value):
    server.on("GET", path, example)
    found, errors = complete(shell, "lvp", *words)
    assert set(found) == {value}
    assert errors == ""


@pytest.mark.parametrize(
    ("words", "path", "example", "key", "field"),
    [
        (["cache", "pin", ""], "/api/v1/cache/images", "CachedImagePage", "images", "checksum"),
        (["cache", "verify", ""], "/api/v1/cache/images", "CachedImagePage", "images", "checksum"),
        (["job", "submit", "--target", ""], "/api/v1/targets", "TargetList", "targets", "name"),
        (["volume", "remove", ""], "/api/v1/targets", "TargetList", "targets", "name"),
        (["volume", "remove", "files", ""], "/api/v1/volumes", "VolumePage", "volumes", "name"),
        (["job", "list", "--volume", ""], "/api/v1/volumes", "VolumePage", "volumes", "name"),
    ],
)
def test_values(complete, server, examples, words, path, example, key, field):
    server.on("GET", path, example)
    found, errors = complete("bash", "lvp", *words)
    wanted = [one[field] for one in examples[example][key] if words[:3] != ["volume", "remove", "files"]
              or one["target"] == "files"]  # fmt: skip
    assert wanted
    assert (found, errors) == (wanted, "")


def test_token_names(complete, run, home):
    file = home / "tokens.json"
    for name in ("terraform", "ci"):
        assert run("token", "create", name, "--token-file", file).status == 0
    assert complete("bash", "lvp", "token", "revoke", "--token-file", str(file), "t") == (["terraform"], "")


@pytest.mark.parametrize("shell", SHELLS)
def test_unreachable_server(complete, shell):
    """No suggestions, and nothing on standard error."""
    assert complete(shell, "lvp", "job", "show", "f4", url="http://127.0.0.1:9") == ([], "")
    assert complete(shell, "lvp", "job", "show", "f4", url="nonsense") == ([], "")


def test_server_that_hangs(complete):
    """A server that accepts the connection and never answers does not hold the prompt."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert complete("bash", "lvp", "job", "show", "f4", url=f"http://127.0.0.1:{silent.getsockname()[1]}") == (
            [],
            "",
        )


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--hosts", "kv"], {"kvm-1", "kvm-2"}),
        (["--hosts", "rack,kvm-1,!k"], {"rack,kvm-1,!kvm-1", "rack,kvm-1,!kvm-2"}),
        (["job", "list", "--hosts", "r"], {"rack"}),
        (["--hosts", "kvm-1", "job", "show", "f4"], {JOB_ID}),
    ],
)
def test_bash_completes_hosts(complete, home, server, words, found):
    """Their names, and the values of the host that is named."""
    server.on("GET", "/api/v1/jobs", "JobListPage")
    (home / "config" / "lvp.toml").write_text(
        f'[hosts.kvm-1]\nurl = "{server.url}"\n[hosts.kvm-2]\n[groups]\nrack = ["kvm-1"]\n'
    )
    suggested, errors = complete("bash", "lvp", *words)
    assert (set(suggested), errors) == (found, "")
