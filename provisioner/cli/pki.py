"""``lvp pki``: a small CA for mutual TLS, and the configuration lines for its certificates."""

from __future__ import annotations

import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from provisioner.cli import paths
from provisioner.cli.exit_status import cli_errors
from provisioner.cli.formatting import table
from provisioner.cli.help_page import SectionedCommand, SuggestingGroup

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from provisioner.pki import Issued, PkiFolder

F = TypeVar("F", bound="Callable[..., Any]")

ROLES = ["viewer", "operator", "admin"]
# A CA is replaced on all machines at once, so rarely. The others are renewed each year.
CA_DAYS, CERTIFICATE_DAYS = 3650, 397
_DAYS = click.IntRange(1, 36500)
_CONFIG = f"/etc/{paths.NAME}/config.toml"


def dir_option(command: F) -> F:
    """Add ``--dir``."""
    return click.option(
        "--dir",
        "folder",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help=f"Folder of the CA.  [default: /etc/{paths.NAME}/pki for root, else ~/.local/share/{paths.NAME}/pki]",
    )(command)


def issue_options(days: int, what: str) -> Callable[[F], F]:
    """Add ``--days``, ``--force`` and ``--dir``."""

    def add(command: F) -> F:
        command = click.option("--force", is_flag=True, help=f"Replace {what} and its key if they exist.")(command)
        text = "How many days it is valid."
        return dir_option(
            click.option("--days", type=_DAYS, default=days, metavar="N", show_default=True, help=text)(command)
        )

    return add


@click.group(cls=SuggestingGroup)
def pki() -> None:
    """Make and list certificates for mutual TLS, from a small CA of your own.

    Keys are files that only their owner can read, and are never replaced without --force.
    """


@pki.command(cls=SectionedCommand, examples=["lvp pki init"])
@click.option("--name", metavar="NAME", help="Name of the CA.  [default: lvp CA of this host]")
@issue_options(CA_DAYS, "the CA, which makes every certificate of the old one useless,")
def init(name: str | None, days: int, force: bool, folder: Path | None) -> None:
    """Make the CA that signs the certificates of servers and clients.

    Its key signs all that the server accepts: keep it private, and back it up.
    """
    with cli_errors():
        made = _pki(folder).init(name or f"lvp CA of {socket.gethostname()}", days, force=force)
    click.echo(_describe(made))
    click.echo(f"certificate: {made.certificate}\nkey: {made.key}")


@pki.command(cls=SectionedCommand, examples=["lvp pki server kvm-7.example.org 192.0.2.7"])
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@issue_options(CERTIFICATE_DAYS, "the certificate")
def server(names: tuple[str, ...], days: int, force: bool, folder: Path | None) -> None:
    """Make a certificate for a server, and print the lines for its configuration.

    A NAME is a DNS name or an IP address under which clients reach the server. The first one names the files.
    """
    with cli_errors():
        ca = _pki(folder)
        made = ca.server(names, days, force=force)
    click.echo(f"# {_describe(made)}")
    click.echo(f"# On the server, in {_CONFIG}:\n[server]")
    click.echo('bind = ["0.0.0.0:8080"]')
    files = {"tls_certificate": made.certificate, "tls_key": made.key, "client_ca": ca.ca_certificate}
    click.echo(_toml(files), nl=False)


@pki.command(cls=SectionedCommand, examples=["lvp pki client terraform --role operator"])
@click.argument("name")
@click.option("--role", type=click.Choice(ROLES), help="Also print the lines that give the client this role.")
@issue_options(CERTIFICATE_DAYS, "the certificate")
def client(name: str, role: str | None, days: int, force: bool, folder: Path | None) -> None:
    """Make a certificate for the client NAME, and print the lines for its settings.

    A viewer reads; an operator also creates and cancels jobs; an admin also removes volumes and cached images. Without
    a role of its own, the server gives the certificate default_certificate_role.
    """
    with cli_errors():
        ca = _pki(folder)
        made = ca.client(name, days, force=force)
        url = _server_url(ca)
    click.echo(f"# {_describe(made)}")
    if role is not None:
        click.echo(f"# On the server, in {_CONFIG}:")
        click.echo(_toml({"auth": {"certificates": {name: {"role": role}}}}))
    click.echo("# On the client, in ~/.config/lvp.toml, after copying these files there:")
    files = {"url": url, "ca": ca.ca_certificate, "cert": made.certificate, "key": made.key}
    click.echo(_toml(files), nl=False)


@pki.command(cls=SectionedCommand, examples=["lvp pki show"])
@dir_option
def show(folder: Path | None) -> None:
    """List the CA and its certificates: use, names, expiry, serial number and file.

    To revoke one, put "serial:" and its serial number into revoked_certificates in [auth].
    """
    with cli_errors():
        found = _pki(folder).list()
    rows = [
        [one.use, ", ".join(one.names), _day(one), _state(one), f"{one.serial:x}", str(one.certificate)]
        for one in found
    ]
    click.echo(table(["USE", "NAMES", "EXPIRES", "STATE", "SERIAL", "FILE"], rows))


def _pki(folder: Path | None) -> PkiFolder:
    from provisioner.pki import PkiFolder

    return PkiFolder((folder or paths.pki_dir()).absolute())


def _describe(made: Issued) -> str:
    """Return one line about a certificate that was made or found."""
    names = ", ".join(made.names)
    what = {"CA": f"CA {names}", "server": f"server certificate for {names}", "client": f"client certificate {names}"}
    return f"{'new' if made.new else 'existing'} {what[made.use]}, valid until {_day(made)}"


def _day(one: Issued) -> str:
    return one.not_after.strftime("%Y-%m-%d")


def _state(one: Issued) -> str:
    if one.expired:
        return "expired"
    if not one.trusted:
        return "of another CA"
    days = (one.not_after - datetime.now(UTC)).days
    return f"{days} day{'' if days == 1 else 's'} left"


def _server_url(ca: PkiFolder) -> str:
    """Return the address of the server if the CA has made just one server's certificate, else an example."""
    servers = [one for one in ca.list() if one.use == "server" and one.trusted and not one.expired]
    names = [name for name in servers[0].names if "*" not in name] if len(servers) == 1 else []
    host = names[0] if names else "HOST"
    return f"https://{f'[{host}]' if ':' in host else host}:8080"


def _toml(lines: Mapping[str, Any]) -> str:
    import tomli_w

    return tomli_w.dumps({key: str(value) if isinstance(value, Path) else value for key, value in lines.items()})
