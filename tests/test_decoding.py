"""Types that threads decode are prepared at import: two threads that are the first to use one crash msgspec 0.22."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(file for folder in ("provisioner", "plugins") for file in (ROOT / folder).rglob("*.py"))

# Fails if the first decode reads the annotations of a type: meanwhile the type is in use, and incomplete.
_FIRST_DECODE = """
import sys
from {module} import {decode} as decode

def check(frame, event, argument):
    if event == "call" and "annotations" in frame.f_code.co_name:
        sys.exit("the type is prepared by the first decode")

sys.setprofile(check)
try:
    decode({argument!r})
except ValueError:
    pass
"""


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_types_are_prepared_at_import(file):
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "decode":
            assert "type" not in {keyword.arg for keyword in node.keywords}, (
                f"line {node.lineno}: use a msgspec.json.Decoder that is created at import"
            )


@pytest.mark.parametrize(
    ("module", "decode", "argument"),
    [("provisioner.jobs.record", "decode", b"{}"), ("provisioner.cache.index", "_decode", "{}")],
)
def test_first_decode_prepares_nothing(module, decode, argument):
    script = _FIRST_DECODE.format(module=module, decode=decode, argument=argument)
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
