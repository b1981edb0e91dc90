"""The client needs httpx and nothing else of what the service needs."""

from __future__ import annotations

import subprocess
import sys

import pytest

BLOCKED = """
import sys
ALLOWED = {"httpx", "httpcore", "h11", "h2", "hpack", "hyperframe", "certifi", "idna", "anyio", "sniffio", "socksio",
           "typing_extensions", "exceptiongroup", "provisioner", "click", "rich", "pygments", "markdown_it", "mdurl",
           "zstandard", "brotli", "brotlicffi"} - {"click", "rich", "zstandard"}

class Blocker:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if name.startswith("provisioner.") and not name.startswith("provisioner.client"):
            raise ImportError(f"{name} is a part of the service")
        if top not in ALLOWED and top not in sys.stdlib_module_names and not top.startswith("_"):
            raise ImportError(f"{name} is not for the client")

sys.meta_path.insert(0, Blocker())
"""


def run(code):
    return subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ["Client", "AsyncClient"])
def test_import_without_the_service(name):
    code = f"from provisioner.client import {name}, UnreachableError; client = {name}('http://127.0.0.1:1', token='t')"
    done = run(BLOCKED + code)
    assert done.returncode == 0, done.stderr


def test_the_blocker_blocks():
    for name in ("trio", "click", "provisioner.contracts"):
        assert "ImportError" in run(BLOCKED + f"import {name}").stderr


def test_httpx_is_loaded_at_the_first_use():
    code = "import sys, provisioner.client as c; print('httpx' in sys.modules); c.Client; print('httpx' in sys.modules)"
    assert run(code).stdout.split() == ["False", "True"]


def test_command_line_does_not_load_httpx():
    code = "import sys, provisioner.cli.client, provisioner.cli.job; print('httpx' in sys.modules)"
    assert run(code).stdout.strip() == "False"


def test_unknown_name():
    assert "has no attribute 'Klient'" in run("from provisioner import client; client.Klient").stderr
