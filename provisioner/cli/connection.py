"""What all client commands share: connection options, ``--json``, and a client made from them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import click

from provisioner.cli import paths
from provisioner.cli.client_settings import ENVIRONMENT, ClientSettings, resolve
from provisioner.cli.help_page import SectionedOption

if TYPE_CHECKING:
    from collections.abc import Callable

    from provisioner.cli.client import Client

F = TypeVar("F", bound="Callable[..., Any]")

SECTION = "Connection (each also in the environment and in ~/.config/lvp.toml)"
# Keeps them apart from a command's own parameters, such as the image's url.
_PREFIX = "connection_"
_OPTIONS = {
    "url": ("URL", f"Address of the server.  [default: {paths.DEFAULT_URL}]"),
    "token": ("TOKEN", "API token. Other users of this machine can see it here; rather use a file."),
    "token_file": ("FILE", "File that holds the API token."),
    "ca": ("FILE", "CA the server's certificate is signed by.  [default: the system's CAs]"),
    "cert": ("FILE", "Client certificate (PEM)."),
    "key": ("FILE", "Its key.  [default: in the certificate's file]"),
}


def connection_options(command: F) -> F:
    """Add the connection options; the command gets them as keyword arguments for ``connect``."""
    for name, (metavar, words) in reversed(_OPTIONS.items()):
        names = ("--" + name.replace("_", "-"), _PREFIX + name)
        text = f"{words}  [{ENVIRONMENT[name]}]"
        command = click.option(*names, cls=SectionedOption, section=SECTION, metavar=metavar, help=text)(command)
    return command


def json_option(command: F) -> F:
    """Add ``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print the API's own objects, unchanged.")(command)


def connect(connection: dict[str, str | None]) -> Client:
    """A client for what the connection options, the environment and the file say. Raises CliError."""
    flags = {name.removeprefix(_PREFIX): value for name, value in connection.items()}
    settings = resolve(flags, os.environ, paths.client_file())
    _warn(settings)
    from provisioner.cli.client import Client

    return Client(settings)


def _warn(settings: ClientSettings) -> None:
    if settings.exposes_token:
        click.echo(f"Warning: the token travels unencrypted to {settings.url}; use https.", err=True)


def path(*parts: str) -> str:
    """A path of the API; what a part holds never becomes a further part."""
    return "/api/v1/" + "/".join(quote(part, safe=":") for part in parts)
