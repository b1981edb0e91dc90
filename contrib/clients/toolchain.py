"""Generates and builds the clients, in folders of the cache that are named after all that goes into them."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.minio.build import cache, go

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE = Path(__file__).resolve().parent
API_YAML = HERE.parents[1] / "api.yaml"
# What the module with the generated types for Go needs.
OLDEST_GO = (1, 26)
Command = list[str]


class MissingToolError(Exception):
    """A program that builds this client is not installed."""


def run(*command: object, cwd: Path, **environment: str) -> None:
    """Run a step of a build; its output is shown only if it fails."""
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env={**os.environ, **environment}, text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed with status {done.returncode}:\n{done.stdout}")


def program(name: str, packages: str) -> str:
    """Return the path of a program. Raises MissingToolError, which names the Debian packages."""
    found = shutil.which(name)
    if found is None:
        raise MissingToolError(f"{name} is missing; install the Debian packages {packages}")
    return found


def built(name: str) -> Command:
    """Return the command that runs the client ``name``; generate and build it if an input has changed."""
    source = HERE / name
    files = sorted(path for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    key = _digest(API_YAML, Path(__file__), *files)
    with _made(name, key) as (folder, new):
        if new:
            shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        return CLIENTS[name](folder, new)


def _digest(*files: Path) -> str:
    found = hashlib.sha256()
    for file in files:
        found.update(f"{file.name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return found.hexdigest()[:16]


@contextmanager
def _made(name: str, key: str) -> Iterator[tuple[Path, bool]]:
    """Yield a folder of the cache, and whether it is new. It is kept if the block succeeds; older ones are removed."""
    above = cache() / "clients" / name
    above.mkdir(parents=True, exist_ok=True)
    folder = above / key
    with (above / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        new = not (folder / "whole").exists()
        if new:
            for old in above.iterdir():
                if old.is_dir():
                    shutil.rmtree(old)
            folder.mkdir()
        yield folder, new
        (folder / "whole").touch()


def _python(folder: Path, new: bool) -> Command:
    requirements = HERE / "python" / "requirements.txt"
    with _made("python-environment", _digest(requirements) + f"-{sys.version_info[0]}.{sys.version_info[1]}") as found:
        python = found[0] / "bin" / "python"
        if found[1]:
            run(sys.executable, "-m", "venv", found[0], cwd=folder)
            pip = ("-m", "pip", "install", "--disable-pip-version-check", "--require-hashes", "-r", requirements)
            run(python, *pip, cwd=folder)
    if new:
        config = folder / "config.yaml"
        generate = ("generate", "--meta", "none", "--path", API_YAML, "--config", config, "--output-path", "lvp_client")
        run(python.with_name("openapi-python-client"), *generate, "--fail-on-warning", cwd=folder)
    return [str(python), str(folder / "client.py")]


def _go_oapi_codegen(folder: Path, new: bool) -> Command:
    if new:
        tool = go(OLDEST_GO)
        (folder / "lvp").mkdir()
        generate = ("-generate", "types,client", "-package", "lvp", "-o", "lvp/lvp.go", API_YAML)
        run(tool, "tool", "oapi-codegen", *generate, cwd=folder)
        run(tool, "build", "-o", "client", ".", cwd=folder)
    return [str(folder / "client")]


CLIENTS: dict[str, Callable[[Path, bool], Command]] = {
    "python": _python,
    "go-oapi-codegen": _go_oapi_codegen,
}
