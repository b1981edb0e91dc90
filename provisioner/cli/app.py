"""The root command: lists the commands, and turns their exceptions into messages and exit statuses."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

import click

from provisioner import __version__
from provisioner.cli.completion import complete_hosts
from provisioner.cli.exit_status import CliError, ExitStatus, system_errors
from provisioner.cli.help_page import SectionedGroup
from provisioner.cli.output import silence_broken, watched_output

if TYPE_CHECKING:
    from collections.abc import Sequence


class _Root(SectionedGroup):
    """A root group that reports system errors itself; click would end silently on a broken pipe."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with system_errors():  # --help and --version are printed here
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with system_errors():
            return super().invoke(ctx)


HOST_COMMANDS = ["serve", "config", "token", "pki", "doctor", "recover", "plugins"]


@click.group(
    cls=_Root,
    sections={
        "Commands for clients (talk to a server)": [
            "job",
            "image",
            "cache",
            "volume",
            "target",
            "source",
            "whoami",
            "health",
            "top",
        ],
        "Commands for the host (where the server runs)": HOST_COMMANDS,
    },
    examples=[
        "lvp serve --allow-source https://images.example.org/    # a local server, to try it out",
        "lvp job submit https://images.example.org/debian-12.qcow2 web-01 20 --wait",
        "",
        "export LVP_URL=https://kvm-7.example.org:8080           # a remote server",
        "export LVP_TOKEN_FILE=~/.lvp-token",
        "lvp health",
        "lvp --hosts 'kvm-[01-20]' health                        # many: see docs/fleet.md",
    ],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, "-V", "--version", message="%(prog)s %(version)s")
@click.option(
    "--hosts",
    "connection_hosts",
    metavar="HOSTS",
    shell_complete=complete_hosts,
    help="Work on these hosts; the same as --hosts after a command for clients.",
)
@click.pass_context
def cli(ctx: click.Context, connection_hosts: str | None) -> None:
    """Put disk images onto volumes of a libvirt/KVM host.

    Each command's own --help has an example.
    """
    if connection_hosts is not None and ctx.invoked_subcommand in HOST_COMMANDS:
        raise click.UsageError(f"lvp {ctx.invoked_subcommand} works on this host; it takes no --hosts")


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit. ``args`` defaults to the process's arguments."""
    sys.exit(_run(args))


def _run(args: Sequence[str] | None) -> int:
    try:
        with system_errors(), watched_output():
            status = cli.main(args, standalone_mode=False)
    except click.ClickException as error:
        _show(error)
        return error.status if isinstance(error, CliError) else error.exit_code
    except click.Abort:  # Ctrl-C, or end of input at a prompt
        with suppress(OSError):
            click.echo("Interrupted.", err=True)
        return ExitStatus.INTERRUPTED
    return status if isinstance(status, int) else ExitStatus.DONE


def _show(error: click.ClickException) -> None:
    with suppress(OSError):  # the exit status reports the error anyway
        error.show()
    silence_broken(sys.stderr)
