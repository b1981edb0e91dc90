"""Tests which modules the server does not import at its start, and that they can be imported later."""

import subprocess
import sys

CODE = """
import sys
from provisioner.cli.serve import _start_lean
_start_lean()
import provisioner.daemon
from provisioner import registry
registry.load()
print(sorted(name for name in sys.modules if name.partition(".")[0] in {"rich", "pygments"}))
import pygments, rich.console
print(rich.console.Console.__name__)
"""


def test_serve_does_not_import_rich():
    ran = subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True, text=True)
    assert ran.stdout.splitlines() == ["[]", "Console"]
