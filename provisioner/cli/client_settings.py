"""The client's settings for commands: those of ``provisioner.client``, with errors that have an exit status."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from provisioner.cli import paths
from provisioner.cli.exit_status import CliError, ExitStatus
from provisioner.client import settings
from provisioner.client.errors import SettingsError
from provisioner.client.settings import ENVIRONMENT, ClientSettings, unix_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = ["ENVIRONMENT", "ClientSettings", "merged", "read_document", "resolve", "unix_path", "wrong"]


def resolve(flags: Mapping[str, str | None], environ: Mapping[str, str], file: Path) -> ClientSettings:
    """Return the settings merged from flags, environment and file. Raises CliError."""
    with _cli_errors():
        return settings.resolve(flags, environ, file, paths.client_token())


def merged(layers: list[Mapping[str, str]]) -> ClientSettings:
    """Return the settings merged from layers of keys, the first of which counts most. Raises CliError."""
    with _cli_errors():
        return settings.merged(layers, paths.client_token())


def read_document(file: Path) -> Mapping[str, Any]:
    """Return everything in ``file``; ``host_settings`` checks its tables. Raises CliError."""
    with _cli_errors():
        return settings.read_document(file)


def wrong(message: str) -> CliError:
    """Return the error for wrong settings."""
    return CliError(message, ExitStatus.USAGE)


@contextmanager
def _cli_errors() -> Iterator[None]:
    try:
        yield
    except SettingsError as error:
        raise wrong(error.message) from error
