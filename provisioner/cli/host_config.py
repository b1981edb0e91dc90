"""Which server's configuration a command on the host means: that of a file, or the one ``lvp serve`` has without."""

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
    """Add the options that say which configuration is meant."""
    command = click.option(
        "--data-dir",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="The data directory of a server that runs without a configuration.",
    )(command)
    return click.option(
        "--config", "config_file", type=click.Path(path_type=Path), metavar="FILE", help="The server's configuration."
    )(command)


def host_config(config_file: Path | None, data_dir: Path | None) -> Config:
    """The configuration that is meant. Raises UsageError or ConfigError."""
    from provisioner import config

    if config_file is not None and data_dir is not None:
        raise click.UsageError("give --config or --data-dir, not both")
    if config_file is not None:
        return config.load(config_file)
    return config.embedded(data_dir or paths.data_dir(), paths.DEFAULT_BIND, ())
