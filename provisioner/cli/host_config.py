"""The configuration that a host command uses: a file, or the embedded default that needs none."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from provisioner.cli import paths

if TYPE_CHECKING:
    from collections.abc import Callable

    from provisioner.config import Config

F = TypeVar("F", bound="Callable[..., Any]")
CONFIG_HELP = f"Server configuration.  [default: {paths.SYSTEM_CONFIG} if it exists]"


def config_options(command: F) -> F:
    """Add ``--config`` and ``--data-dir``."""
    command = click.option(
        "--data-dir",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Data directory of a server that runs without a configuration.",
    )(command)
    return click.option("--config", "config_file", type=click.Path(path_type=Path), metavar="FILE", help=CONFIG_HELP)(
        command
    )


def system_config() -> Path | None:
    """Return the packaged configuration file; None if it does not exist."""
    return paths.SYSTEM_CONFIG if paths.SYSTEM_CONFIG.exists() else None


def chosen_file(config_file: Path | None, data_dir: Path | None = None) -> Path | None:
    """Return the configuration file to use, None for the embedded default. Print its path if the user named none.

    Raises UsageError.
    """
    if config_file is not None and data_dir is not None:
        raise click.UsageError("give --config or --data-dir, not both")
    if config_file is not None or data_dir is not None:
        return config_file
    file = system_config()
    if file is None:
        click.echo(f"no {paths.SYSTEM_CONFIG}: using the data directory {paths.data_dir()}", err=True)
    else:
        click.echo(f"using {file}", err=True)
    return file


def load(file: Path | None, data_dir: Path | None = None) -> Config:
    """Return the configuration in ``file``, without one the embedded default. Raises ConfigError."""
    from provisioner import config
    from provisioner.contracts.errors import ConfigError

    if file is None:
        return config.embedded(data_dir or paths.data_dir(), paths.DEFAULT_BIND, ())
    try:
        return config.load(file)
    except ConfigError as error:
        if file == paths.SYSTEM_CONFIG and not os.access(file, os.R_OK):
            raise ConfigError(f"{error.message}; run the command as root, or choose another with --config") from error
        raise


def host_config(config_file: Path | None, data_dir: Path | None) -> Config:
    """Return the selected configuration. Raises UsageError or ConfigError."""
    return load(chosen_file(config_file, data_dir), data_dir)
