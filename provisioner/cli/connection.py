"""Options that all client commands share: the connection options and ``--json``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, TypeVar

import click

from provisioner.cli import paths
from provisioner.cli.client_settings import ENVIRONMENT, ClientSettings, resolve
from provisioner.cli.completion import complete_hosts
from provisioner.cli.help_page import SectionedOption
from provisioner.client.requests import api_path

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from provisioner.cli.client import Client

F = TypeVar("F", bound="Callable[..., Any]")

SECTION = "Connection (also from the environment and ~/.config/lvp.toml)"
FLEET_SECTION = "Many hosts (see docs/fleet.md)"
# Calls at a time. A call is mostly waiting, and a TLS handshake takes some milliseconds of processor time.
DEFAULT_PARALLEL = 32
# Seconds for each request to one of many hosts, with its repeats.
DEFAULT_HOST_TIMEOUT = 30.0
_HOSTS_HELP = "Hosts or groups of lvp.toml, patterns such as kvm-[01-20], or addresses, separated by commas."
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
    return hosts_option(command)


def hosts_option(command: F) -> F:
    """Add ``--hosts`` alone, for the root command and as part of the connection options."""
    return click.option(
        "--hosts",
        _PREFIX + "hosts",
        cls=SectionedOption,
        section=FLEET_SECTION,
        metavar="HOSTS",
        help=_HOSTS_HELP,
        shell_complete=complete_hosts,
    )(command)


def fleet_options(command: F) -> F:
    """Add the options of commands that work on many hosts at once; ``fleet_of`` reads them."""
    parallel = click.option(
        "--parallel",
        _PREFIX + "parallel",
        cls=SectionedOption,
        section=FLEET_SECTION,
        type=click.IntRange(1, 1000),
        default=DEFAULT_PARALLEL,
        metavar="N",
        help=f"Ask at most N hosts at a time.  [default: {DEFAULT_PARALLEL}]",
    )
    timeout = click.option(
        "--host-timeout",
        _PREFIX + "host_timeout",
        cls=SectionedOption,
        section=FLEET_SECTION,
        type=click.FloatRange(0.1, 3600),
        default=DEFAULT_HOST_TIMEOUT,
        metavar="SECONDS",
        help=f"How long a host may take to answer a request.  [default: {DEFAULT_HOST_TIMEOUT:g}]",
    )
    return parallel(timeout(command))


def hosts_text(connection: Mapping[str, Any]) -> str | None:
    """Return the value of ``--hosts``, given to the command or before it. Raises click.UsageError with ``--url``."""
    context = click.get_current_context(silent=True)
    outer = context.find_root().params.get(_PREFIX + "hosts") if context else None
    text: str | None = connection.get("hosts") or outer
    if text is not None and connection.get("url") is not None:
        raise click.UsageError("--hosts and --url exclude each other")
    return text


def names_hosts(parameters: Mapping[str, Any]) -> bool:
    """Return whether ``--hosts`` is given, so that a command works on many hosts."""
    return hosts_text(settings_of(parameters)) is not None


def json_option(command: F) -> F:
    """Add ``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print the API's objects unchanged.")(command)


def connect(connection: Mapping[str, Any]) -> Client:
    """Return a client of one server for the options, the environment and the settings file. Raises CliError."""
    settings = one_server(settings_of(connection))
    warn(settings)
    from provisioner.cli.client import Client

    return Client(settings)


def one_server(flags: Mapping[str, Any]) -> ClientSettings:
    """Return the settings of one server, that of ``--hosts`` if it is given. Raises CliError."""
    text = hosts_text(flags)
    if text is None:
        return resolve(flags, os.environ, paths.client_file())
    from provisioner.cli.host_settings import resolve_hosts

    hosts = resolve_hosts(text, flags, os.environ, paths.client_file())
    if len(hosts) > 1:
        raise click.UsageError(f"this command works on one host; {text!r} stands for {len(hosts)}")
    return hosts[0].settings


def settings_of(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the connection options among the parameters of a command, by their keys in the settings file."""
    return {name.removeprefix(_PREFIX): value for name, value in parameters.items() if name.startswith(_PREFIX)}


def warn(settings: ClientSettings) -> None:
    """Warn of a token that would be sent unencrypted."""
    if settings.exposes_token:
        click.echo(f"Warning: the token is sent unencrypted to {settings.url}; use https.", err=True)


def path(*parts: str) -> str:
    """Return a path of the API. Slashes within a part are quoted."""
    return api_path(*parts)
