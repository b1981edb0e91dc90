"""Options that all client commands share: the connection options and ``--json``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import click

from provisioner.cli import paths
from provisioner.cli.client_settings import ENVIRONMENT, ClientSettings, resolve
from provisioner.cli.help_page import SectionedOption

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from provisioner.cli.client import Client

F = TypeVar("F", bound="Callable[..., Any]")

SECTION = "Connection (also from the environment and ~/.config/lvp.toml)"
# Avoids clashes with a command's own parameters, such as the image's url.
_PREFIX = "connection_"
_OPTIONS = {
    "url": ("URL", f"Address of the server: https://HOST:PORT or unix:/PATH.  [default: {paths.DEFAULT_URL}]"),
    "token": ("TOKEN", "API token. Other users of this machine can see it; prefer a file."),
    "token_file": ("FILE", "File that contains the API token."),
    "ca": ("FILE", "CA of the server's certificate.  [default: the system's CAs]"),
    "cert": ("FILE", "Client certificate (PEM)."),
    "key": ("FILE", "Key of the client certificate.  [default: in the certificate's file]"),
}

# The environment of the client commands, for the man page. Libraries read the last four.
VARIABLES = {
    **{ENVIRONMENT[name]: f"The same as --{name.replace('_', '-')}. {text}" for name, (_, text) in _OPTIONS.items()},
    "XDG_CONFIG_HOME": "Folder of lvp.toml, the file of the client's settings.  [default: ~/.config]",
    "XDG_DATA_HOME": "Folder of the data of lvp serve without a configuration.  [default: ~/.local/share]",
    "TERM": "With dumb or unknown, progress is shown as lines.",
    "COLUMNS": "Width of the terminal.",
    "NO_COLOR": "If set, output has no colours.",
    "HTTP_PROXY, HTTPS_PROXY": "Proxy for servers that are not on this machine.",
    "NO_PROXY": "Names of servers to reach without a proxy.",
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
    return click.option("--json", "as_json", is_flag=True, help="Print the API's objects unchanged.")(command)


def connect(connection: dict[str, str | None]) -> Client:
    """Return a client for the connection options, the environment and the settings file. Raises CliError."""
    settings = resolve(settings_of(connection), os.environ, paths.client_file())
    _warn(settings)
    from provisioner.cli.client import Client

    return Client(settings)


def settings_of(parameters: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the connection options among the parameters of a command, by their keys in the settings file."""
    return {name.removeprefix(_PREFIX): value for name, value in parameters.items() if name.startswith(_PREFIX)}


def _warn(settings: ClientSettings) -> None:
    if settings.exposes_token:
        click.echo(f"Warning: the token is sent unencrypted to {settings.url}; use https.", err=True)


def path(*parts: str) -> str:
    """Return a path of the API. Slashes within a part are quoted."""
    return "/api/v1/" + "/".join(quote(part, safe=":") for part in parts)
