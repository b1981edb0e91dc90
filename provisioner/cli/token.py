"""``lvp token``: manage API tokens in the token file, without the API."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from provisioner.cli.completion import complete_token
from provisioner.cli.exit_status import CliError, cli_errors
from provisioner.cli.formatting import table
from provisioner.cli.help_page import SectionedCommand, SuggestingGroup
from provisioner.cli.host_config import CONFIG_HELP, chosen_file, load

if TYPE_CHECKING:
    from collections.abc import Callable

    from provisioner.auth.tokens import TokenFile, TokenRecord
    from provisioner.config import Config, Limits, Role

F = TypeVar("F", bound="Callable[..., Any]")
ROLES = ["viewer", "operator", "admin"]


def place_options(command: F) -> F:
    """Add the options that select the token file and its key."""
    command = click.option(
        "--key-file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="File with the key, if the service gets it as a credential.",
    )(command)
    command = click.option(
        "--token-file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="The server's token file.  [default: the one that its configuration names]",
    )(command)
    return click.option(
        "--config",
        "config_file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help=CONFIG_HELP,
    )(command)


@dataclass(frozen=True, slots=True)
class Place:
    """The token file to work on. ``config``: that of the server, None if the token file was named directly."""

    store: TokenFile
    config: Config | None


def token_place(
    token_file: Path | None, config_file: Path | None, key_file: Path | None, *, create: bool = False
) -> Place:
    """Return the selected token file. Makes no folder; ``create`` says that a token is to be added.

    Raises UsageError or ConfigError.
    """
    from provisioner.auth.token_keys import KeyFile, token_keys
    from provisioner.auth.tokens import TokenFile
    from provisioner.contracts.errors import ConfigError

    if token_file is not None and config_file is not None:
        raise click.UsageError("give --token-file or --config, not both")
    keys = KeyFile(key_file) if key_file is not None else None
    if token_file is not None:
        return Place(TokenFile(token_file, keys), None)
    file = chosen_file(config_file)
    config = load(file)
    path = Path(config.token_file)
    if create and file is None and not path.parent.exists():
        raise ConfigError(f"no server has run with {path.parent} yet; start lvp serve first, or give --config")
    return Place(TokenFile(path, keys or token_keys(config)), config)


@click.group(cls=SuggestingGroup)
def token() -> None:
    """Make, list and revoke API tokens, and change their key, on the host of the server."""


@token.command(
    cls=SectionedCommand,
    examples=[
        "lvp token create terraform --role operator --expires 90d > terraform.token",
        "lvp token create ci --volumes 'ci-*' --targets fast --max-jobs 4 > ci.token",
    ],
)
@click.argument("name")
@click.option("--role", type=click.Choice(ROLES), default="operator", show_default=True, help="What it allows.")
@click.option("--expires", metavar="SPAN", help="How long it holds, such as 12h or 30d.  [default: until revoked]")
@click.option("--volumes", multiple=True, metavar="PATTERN", help="Only volumes named so (* and ?); may be repeated.")
@click.option("--targets", multiple=True, metavar="TARGET", help="Only volumes on this target; may be repeated.")
@click.option(
    "--sources", multiple=True, metavar="SOURCE", help="Only images of this source, or url prefix; may be repeated."
)
@click.option("--max-jobs", type=click.IntRange(min=1), metavar="N", help="Most jobs it may have pending or running.")
@place_options
def create(
    name: str,
    role: Role,
    expires: str | None,
    volumes: tuple[str, ...],
    targets: tuple[str, ...],
    sources: tuple[str, ...],
    max_jobs: int | None,
    token_file: Path | None,
    config_file: Path | None,
    key_file: Path | None,
) -> None:
    """Create a token for NAME and print it. It is shown only once: the server stores a digest.

    A viewer reads; an operator also creates and cancels jobs; an admin also removes volumes and cached images. The
    token can be limited to some volumes, targets and sources.
    """
    with cli_errors():
        from provisioner.auth.tokens import is_name
        from provisioner.config import check_limits

        if not is_name(name):
            raise click.UsageError("NAME must have 1 to 64 letters, digits, '.', '_' or '-'")
        expires_at, limits = _expiry(expires), _limits(volumes, targets, sources, max_jobs)
        place = token_place(token_file, config_file, key_file, create=True)
        if place.config is not None:
            check_limits("limits", limits, place.config)
        made = place.store.create(name, role, expires_at, limits)
        _print_or_revoke(place.store, name, made)


def _print_or_revoke(store: TokenFile, name: str, made: str) -> None:
    """Print a new token; revoke it if that fails, because its owner never saw it and its name would stay taken."""
    try:
        click.echo(made)
    except OSError as error:
        store.revoke(name)
        raise CliError(f"standard output cannot be written: {error.strerror}") from error


def _limits(
    volumes: tuple[str, ...],
    targets: tuple[str, ...],
    sources: tuple[str, ...],
    max_jobs: int | None,
) -> Limits:
    """Return the limits. Raises UsageError."""
    from provisioner.config import Limits

    try:
        return Limits(
            volumes=list(volumes) or None,
            targets=list(targets) or None,
            sources=list(sources) or None,
            max_jobs=max_jobs,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _expiry(expires: str | None) -> float | None:
    if expires is None:
        return None
    from provisioner.contracts import Duration

    try:
        return time.time() + Duration.parse(expires)
    except ValueError as error:
        raise click.BadParameter(f"{expires!r} is not {error}", param_hint="--expires") from error


@token.command("list", cls=SectionedCommand, examples=["lvp token list"])
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@place_options
def list_tokens(as_json: bool, token_file: Path | None, config_file: Path | None, key_file: Path | None) -> None:
    """List the tokens: name, role, times and limits, never the token itself.

    The time of last use is accurate to about ten minutes. Expired tokens are marked.
    """
    with cli_errors():
        records = token_place(token_file, config_file, key_file).store.list()
    now = time.time()
    if as_json:
        import json

        click.echo(json.dumps({"tokens": [_object(record, now) for record in records]}))
        return
    rows = [
        [
            record.name,
            record.role,
            _when(record.created_at),
            f"{_when(record.expires_at)} (expired)" if _has_expired(record, now) else _when(record.expires_at),
            _when(record.last_used_at),
            _format_limits(record.limits),
        ]
        for record in records
    ]
    click.echo(table(["NAME", "ROLE", "CREATED", "EXPIRES", "LAST USED", "LIMITS"], rows))


def _has_expired(record: TokenRecord, now: float) -> bool:
    return record.expires_at is not None and record.expires_at <= now


def _object(record: TokenRecord, now: float) -> dict[str, object]:
    """Return a token as JSON, without its digest and the fields that do not apply."""
    limits = record.limits
    optional = {
        "expires_at": _when(record.expires_at),
        "last_used_at": _when(record.last_used_at),
        "volumes": limits.volumes,
        "targets": limits.targets,
        "sources": limits.sources,
        "max_jobs": limits.max_jobs,
    }
    return {
        "name": record.name,
        "role": record.role,
        "created_at": _when(record.created_at),
        "expired": _has_expired(record, now),
        **{key: value for key, value in optional.items() if value is not None},
    }


def _format_limits(limits: Limits) -> str | None:
    lists = {"volumes": limits.volumes, "targets": limits.targets, "sources": limits.sources}
    words = [f"{kind} {','.join(names)}" for kind, names in lists.items() if names]
    words += [f"{limits.max_jobs} jobs"] if limits.max_jobs else []
    return "; ".join(words) or None


def _when(seconds: float | None) -> str | None:
    return None if seconds is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


@token.command(cls=SectionedCommand, examples=["lvp token revoke terraform"])
@click.argument("name", shell_complete=complete_token)
@place_options
def revoke(name: str, token_file: Path | None, config_file: Path | None, key_file: Path | None) -> None:
    """Revoke the token NAME."""
    with cli_errors():
        token_place(token_file, config_file, key_file).store.revoke(name)
    click.echo(f"revoked {name}")


@token.command("rotate-key", cls=SectionedCommand, examples=["lvp token rotate-key", "lvp token rotate-key --forget"])
@click.option("--forget", is_flag=True, help="Delete the old keys at once, which revokes all existing tokens.")
@place_options
def rotate_key(forget: bool, token_file: Path | None, config_file: Path | None, key_file: Path | None) -> None:
    """Create a new key for the digests of the tokens.

    Tokens stay valid: each moves to the new key when it is next used, and an old key is deleted when no token needs
    it any more. Prints the tokens that still have to move.
    """
    with cli_errors():
        left = token_place(token_file, config_file, key_file).store.rotate_key(forget=forget)
    if not left:
        click.echo("created a new key")
    elif forget:
        click.echo(f"created a new key; revoked: {', '.join(left)}")
    else:
        click.echo(f"created a new key; still on an older one until their next use: {', '.join(left)}")
