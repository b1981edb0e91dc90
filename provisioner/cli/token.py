"""``lvp token``: who may call the API without a certificate. Works on the token file, not over the API."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from provisioner.cli import places
from provisioner.cli.exit_status import spoken_errors
from provisioner.cli.help_page import SectionedCommand
from provisioner.cli.wording import table

if TYPE_CHECKING:
    from collections.abc import Callable

    from provisioner.config import Role

F = TypeVar("F", bound="Callable[..., Any]")
ROLES = ["viewer", "operator", "admin"]


def place_options(command: F) -> F:
    """Add the options that say which token file is meant."""
    command = click.option(
        "--token-file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="The server's token file.  [default: the one lvp serve uses without a config]",
    )(command)
    return click.option(
        "--config",
        "config_file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Take the token file of this server configuration.",
    )(command)


def token_path(token_file: Path | None, config_file: Path | None) -> Path:
    """The token file that is meant. Raises UsageError or ConfigError."""
    if token_file is not None and config_file is not None:
        raise click.UsageError("give --token-file or --config, not both")
    if token_file is not None:
        return token_file
    from provisioner import config

    if config_file is not None:
        return Path(config.load(config_file).token_file)
    return Path(config.embedded(places.data_dir(), places.DEFAULT_BIND, ()).token_file)


@click.group()
def token() -> None:
    """Make, list and revoke API tokens, on the host of the server."""


@token.command(
    cls=SectionedCommand, examples=["lvp token create terraform --role operator --expires 90d > terraform.token"]
)
@click.argument("name")
@click.option("--role", type=click.Choice(ROLES), default="operator", show_default=True, help="What it allows.")
@click.option("--expires", metavar="SPAN", help="How long it holds, such as 12h or 30d.  [default: until revoked]")
@place_options
def create(name: str, role: Role, expires: str | None, token_file: Path | None, config_file: Path | None) -> None:
    """Make a token for NAME and print it. It is shown this once; only its digest is kept.

    A viewer reads; an operator also makes and cancels jobs; an admin also removes volumes and cached images.
    """
    with spoken_errors():
        from provisioner.api.tokens import TokenFile

        made = TokenFile(token_path(token_file, config_file)).create(name, role, _expiry(expires))
    click.echo(made)


def _expiry(expires: str | None) -> float | None:
    if expires is None:
        return None
    from provisioner.contracts import Duration

    try:
        return time.time() + Duration.parse(expires)
    except ValueError as error:
        raise click.BadParameter(f"{expires!r} is not {error}", param_hint="--expires") from error


@token.command("list", cls=SectionedCommand, examples=["lvp token list"])
@place_options
def list_tokens(token_file: Path | None, config_file: Path | None) -> None:
    """List the tokens: name, role and times, never the token itself."""
    with spoken_errors():
        from provisioner.api.tokens import TokenFile

        records = TokenFile(token_path(token_file, config_file)).list()
    rows = [
        [record.name, record.role, *map(_when, (record.created_at, record.expires_at, record.last_used_at))]
        for record in records
    ]
    click.echo(table(["NAME", "ROLE", "CREATED", "EXPIRES", "LAST USED"], rows))


def _when(seconds: float | None) -> str | None:
    return None if seconds is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


@token.command(cls=SectionedCommand, examples=["lvp token revoke terraform"])
@click.argument("name")
@place_options
def revoke(name: str, token_file: Path | None, config_file: Path | None) -> None:
    """Make the token of NAME worthless."""
    with spoken_errors():
        from provisioner.api.tokens import TokenFile

        TokenFile(token_path(token_file, config_file)).revoke(name)
    click.echo(f"revoked {name}")
