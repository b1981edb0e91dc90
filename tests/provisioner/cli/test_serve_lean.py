"""What the server does not load when it starts, and that nothing is kept from who loads it later."""

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


def test_the_server_starts_without_rich():
    ran = subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True, text=True)
    assert ran.stdout.splitlines() == ["[]", "Console"]
