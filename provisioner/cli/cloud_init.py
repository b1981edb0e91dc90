"""The options of ``lvp job submit`` for cloud-init, and the field of the request that they make."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

F = TypeVar("F", bound="Callable[..., object]")

# Also a pipe, such as of a shell's <(...), so that secrets need no file.
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_OPTIONS = {
    "user_data": "cloud-init's user data, for the seed volume NAME-seed.",
    "meta_data": "cloud-init's meta data.  [default: made by the server]",
    "network_config": "cloud-init's network configuration.",
}


def cloud_init_options(command: F) -> F:
    """Add the options to a command, which gets them as ``user_data``, ``meta_data`` and ``network_config``."""
    for name, text in reversed(_OPTIONS.items()):
        command = click.option(f"--{name.replace('_', '-')}", name, type=_FILE, metavar="FILE", help=text)(command)
    return command


def cloud_init_field(options: Mapping[str, Path | None]) -> dict[str, str] | None:
    """Return the field ``cloud_init`` of a request, None if no file is given. Raises click.UsageError."""
    given = {name: file for name, file in options.items() if file is not None}
    if given and "user_data" not in given:
        raise click.UsageError("--meta-data and --network-config need --user-data")
    return {name: _text(file) for name, file in given.items()} or None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{file} is not UTF-8 text; the server takes no compressed or binary data") from error
    except OSError as error:
        raise click.UsageError(f"{file} cannot be read: {error.strerror}") from error
