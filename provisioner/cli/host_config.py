"""The configuration that a host command uses: a file, or that of ``lvp serve`` without ``--config``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from provisioner.cli import paths

if TYPE_CHECKING:
    from collections.abc import Callable

    from provisioner.config import Config

F = TypeVar("F", bound="Callable[..., Any]")


def config_options(command: F) -> F:
    """Add ``--config`` and ``--data-dir``."""
    command = click.option(
        "--data-dir",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Data directory of a server that runs without a configuration.",
    )(command)
    return click.option(
        "--config", "config_file", type=click.Path(path_type=Path), metavar="FILE", help="Server configuration."
    )(command)


def host_config(config_file: Path | None, data_dir: Path | None) -> Config:
    """Return the selected configuration. Raises UsageError or ConfigError."""
    from provisioner import config

    if config_file is not None and data_dir is not None:
        raise click.UsageError("give --config or --data-dir, not both")
    if config_file is not None:
        return config.load(config_file)
    return config.embedded(data_dir or paths.data_dir(), paths.DEFAULT_BIND, ())
