"""Runs the blocks of a recipe on a machine of its own: see enter.sh, and services.sh for what runs there."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import trustme

from tests.minio.build import MINIO, built

if TYPE_CHECKING:
    from tests.recipes.blocks import Block, Command

ROOT = Path(__file__).parents[2]
ENTER = Path(__file__).with_name("enter.sh")
NAMES = ("images.example.org", "minio.example.org", "kvm-7.example.org", "kvm-7", "localhost")
# Seconds for a recipe; generous, because the limit only ends tests that hang.
TIMEOUT = 500
PORT = 443

_NGINX = f"""
daemon on; error_log /var/log/nginx.log; pid /run/nginx.pid;
events {{}}
http {{ server {{ listen {PORT} ssl; root /srv/images; access_log off;
  ssl_certificate /recipe/server.pem; ssl_certificate_key /recipe/server.key; }} }}
"""


class RecipeError(AssertionError):
    """A command of a recipe did not do what its page says."""


def run(folder: Path, page: list[Block], before: str) -> None:
    """Run the blocks in their order after ``before``, a script with functions of services.sh. Raises RecipeError."""
    out = folder / "out"
    out.mkdir()
    (folder.parent / "libvirt-cache").mkdir(exist_ok=True)
    _certificates(out)
    (out / "nginx.conf").write_text(_NGINX)
    text = "\n".join(block.text for block in page)
    script, commands = _script(page)
    services = ["images", *(["libvirt"] if "virsh" in text else [])]
    start = ["set -e", ". $PROJECT/tests/recipes/services.sh", "cd", *services, before, "set +e"]
    (out / "script").write_text("\n".join([*start, script]))
    with (folder / "disk.img").open("wb") as disk:
        disk.truncate(8 * 2**30)
    subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", folder / "disk.img"], check=True)
    minio = str(built(*MINIO)) if "minio" in before.split() else ""
    apart = [
        "unshare",
        "--mount",
        "--net",
        "--pid",
        "--uts",
        "--fork",
        "--kill-child",
        "bash",
        ENTER,
        folder,
        ROOT,
        minio,
    ]
    with (folder / "log").open("wb") as log:
        ended = subprocess.run(apart, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=TIMEOUT, check=False)
    _check(out, commands, ended.returncode, folder / "log")


def _certificates(out: Path) -> None:
    ca = trustme.CA()
    server = ca.issue_cert(*NAMES)
    ca.cert_pem.write_to_path(out / "ca.pem")
    server.private_key_pem.write_to_path(out / "server.key")
    for part in server.cert_chain_pems:
        part.write_to_path(out / "server.pem", append=True)


def _script(page: list[Block]) -> tuple[str, list[Command]]:
    """Return the commands, and a script that writes the files and runs the commands, each with its output in a file."""
    parts: list[str] = []
    commands: list[Command] = []
    for block in page:
        word, _, path = block.mark.partition(" ")
        if word in {"file", "append"}:
            arrow, name = (">" if word == "file" else ">>"), shlex.quote(path)
            text = block.text.replace('<domain type="kvm">', '<domain type="qemu">')  # with an emulated processor
            parts.append(f"mkdir -p $(dirname {name})\ncat {arrow}{name} <<'END OF FILE'\n{text}END OF FILE")
            continue
        for command in block.commands():
            here = f"/recipe/{len(commands)}"
            if command.goes_on:
                last = command.output[-1].partition("...")[0]
                parts.append(
                    f"{command.text} >{here}.output 2>&1 &\nuntil grep -q {shlex.quote(last)} {here}.output; do\n"
                    f"kill -0 $! || exit 1\nsleep 0.1\ndone\necho 0 >{here}.status"
                )
                commands.append(command)
                continue
            parts.append(
                f"exec >{here}.output 2>&1\n{command.text}\nstatus=$?\necho $status >{here}.status\n"
                f"[ $status = {command.status} ] || exit 1"
            )
            commands.append(command)
    return "\n".join(parts), commands


def _check(out: Path, commands: list[Command], status: int, log: Path) -> None:
    for number, command in enumerate(commands):
        ended, output = out / f"{number}.status", out / f"{number}.output"
        said = output.read_text() if output.exists() else ""
        if not ended.exists():
            raise RecipeError(f"not reached, or did not end: {command.text}\n{said}{log.read_text()[-3000:]}")
        if int(ended.read_text()) != command.status:
            raise RecipeError(f"status {ended.read_text().strip()}, not {command.status}: {command.text}\n{said}")
        if not command.matches(said):
            raise RecipeError(f"another output: {command.text}\n{said}")
    assert status == 0, log.read_text()[-3000:]
