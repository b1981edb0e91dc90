"""Generates and builds the clients, in folders of the cache that are named after all that goes into them."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
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
GENERATOR = "openapi-generator-cli-7.25.0.jar"
GENERATOR_SHA256 = "41ce4f6b07f196676439d710759fa1ced7a08066d06ff1bf314681470289efae"
MAVEN_COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy"
UNUSED_SECONDS = 24 * 60 * 60
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
    key = digest(API_YAML, Path(__file__), *files)
    with made(name, key) as (folder, new):
        if new:
            shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        return CLIENTS[name](folder, new)


def digest(*files: Path) -> str:
    """Return a short digest of the names and contents of files."""
    found = hashlib.sha256()
    for file in files:
        found.update(f"{file.name}\0{_sha256(file)}\n".encode())
    return found.hexdigest()[:16]


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@contextmanager
def made(name: str, key: str) -> Iterator[tuple[Path, bool]]:
    """Yield a folder of the cache, and whether it is new. If the block succeeds, it is kept until unused for a day."""
    above = cache() / "clients" / name
    above.mkdir(parents=True, exist_ok=True)
    folder = above / key
    with (above / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        new = not (folder / "whole").exists()
        if new:
            _remove_unused(above)
            folder.mkdir()
        yield folder, new
        (folder / "whole").touch()


def _remove_unused(above: Path) -> None:
    """Remove unfinished folders, and those that no other checkout has used for a day."""
    for folder in (path for path in above.iterdir() if path.is_dir()):
        whole = folder / "whole"
        if not whole.exists() or whole.stat().st_mtime < time.time() - UNUSED_SECONDS:
            shutil.rmtree(folder)


def python_environment(name: str, requirements: Path) -> Path:
    """Return the Python of an environment with the pinned requirements; it is built if they have changed."""
    with made(name, digest(requirements) + f"-{sys.version_info[0]}.{sys.version_info[1]}") as (folder, new):
        python = folder / "bin" / "python"
        if new:
            run(sys.executable, "-m", "venv", folder, cwd=folder)
            pip = ("-m", "pip", "install", "--disable-pip-version-check", "--require-hashes", "-r", requirements)
            run(python, *pip, cwd=folder)
    return python


def _python(folder: Path, new: bool) -> Command:
    python = python_environment("python-environment", HERE / "python" / "requirements.txt")
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


def _openapi_generator(folder: Path, language: str, *options: str, **properties: str) -> None:
    """Generate code for ``language`` into ``folder`` with openapi-generator, without documentation and tests."""
    java = program("java", "default-jdk-headless")
    folder.mkdir(exist_ok=True)
    joined = ",".join(f"{name}={value}" for name, value in properties.items())
    parts = ",".join(f"{part}=false" for part in ("apiTests", "modelTests", "apiDocs", "modelDocs"))
    generate = ("generate", "-g", language, "-i", API_YAML, "-o", folder, "--global-property", parts, *options)
    run(java, "-jar", _generator(), *generate, "--additional-properties", joined, cwd=folder)


def _generator() -> Path:
    """Return openapi-generator, which Maven fetches once."""
    with made("openapi-generator", GENERATOR_SHA256[:16]) as (folder, new):
        jar = folder / GENERATOR
        if new:
            artifact = "org.openapitools:" + GENERATOR.removesuffix(".jar").replace("-cli-", "-cli:")
            maven(MAVEN_COPY, f"-Dartifact={artifact}", f"-DoutputDirectory={folder}", cwd=folder)
            if _sha256(jar) != GENERATOR_SHA256:
                raise RuntimeError(f"{GENERATOR} does not have the digest in toolchain.py")
    return jar


def maven(*words: str, cwd: Path) -> None:
    run(program("mvn", "maven"), "--quiet", "--batch-mode", *words, cwd=cwd)


def _go_openapi_generator(folder: Path, new: bool) -> Command:
    if new:
        tool = go(OLDEST_GO)
        # Otherwise a response that has gained a field is an error.
        tolerant = {"disallowAdditionalPropertiesIfNotPresent": "false"}
        _openapi_generator(folder / "lvp", "go", packageName="lvp", withGoMod="false", **tolerant)
        run(tool, "build", "-o", "client", ".", cwd=folder)
    return [str(folder / "client")]


def _java(folder: Path, new: bool) -> Command:
    if new:
        packages = {"invokerPackage": "lvp.client", "apiPackage": "lvp.api", "modelPackage": "lvp.model"}
        _openapi_generator(folder / "code", "java", "--library", "native", openApiNullable="false", **packages)
        shutil.copytree(folder / "code" / "src" / "main" / "java", folder / "src" / "main" / "java", dirs_exist_ok=True)
        maven("compile", cwd=folder)
        digests = "".join(f"{_sha256(jar)}  {jar.name}\n" for jar in sorted((folder / "jars").iterdir()))
        if digests != (folder / "jars.sha256").read_text():
            raise RuntimeError(f"the jars do not have the digests in jars.sha256:\n{digests}")
    classes = f"{folder / 'target' / 'classes'}:{folder / 'jars'}/*"
    return [program("java", "default-jdk-headless"), "-cp", classes, "Main"]


def _typescript(folder: Path, new: bool) -> Command:
    if new:
        npm = program("npm", "nodejs and npm")
        run(npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", cwd=folder)
        run(npm, "exec", "--", "openapi-typescript", API_YAML, "--output", "api.d.ts", cwd=folder)
        run(npm, "exec", "--", "tsc", "--project", ".", cwd=folder)
    return [program("node", "nodejs"), str(folder / "built" / "client.js")]


def _rust(folder: Path, new: bool) -> Command:
    build = cache() / "clients" / "rust-build"  # the libraries are built once for all versions of api.yaml
    if new:
        program("pkg-config", "pkg-config and libssl-dev")
        cargo = program("cargo", "cargo")
        _openapi_generator(folder / "code", "rust", "--library", "reqwest", packageName="lvp")
        run(cargo, "generate-lockfile", cwd=folder)
        _pin_crates(folder)
        run(cargo, "build", "--locked", cwd=folder, CARGO_TARGET_DIR=str(build))
        shutil.copy2(build / "debug" / "client", folder / "client")
    return [str(folder / "client")]


def _pin_crates(folder: Path) -> None:
    """Put the pinned versions and digests into Cargo.lock, with the registry that this machine's cargo wrote there."""
    lock = folder / "Cargo.lock"
    (registry,) = set(re.findall(r"^source = .*\n", lock.read_text(), re.MULTILINE))
    pinned = (folder / "Cargo.lock.in").read_text()
    lock.write_text(pinned.replace("checksum = ", f"{registry}checksum = "))


CLIENTS: dict[str, Callable[[Path, bool], Command]] = {
    "python": _python,
    "go-oapi-codegen": _go_oapi_codegen,
    "go-openapi-generator": _go_openapi_generator,
    "java": _java,
    "typescript": _typescript,
    "rust": _rust,
}
