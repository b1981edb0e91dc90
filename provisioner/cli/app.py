"""The root command and the process's end. Owns which commands there are and what becomes of their exceptions."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NoReturn

import click

from provisioner import __version__
from provisioner.cli.exit_status import CliError, ExitStatus
from provisioner.cli.help_page import ReaderGoneError, SectionedGroup

if TYPE_CHECKING:
    from collections.abc import Sequence


@click.group(
    cls=SectionedGroup,
    sections={
        "Commands for clients (talk to a server)": ["job", "cache", "volume", "health"],
        "Commands for the host (where the server runs)": ["serve", "config", "token", "doctor", "recover", "plugins"],
    },
    examples=[
        "lvp serve --allow-source https://images.example.org/    # a server of your own, to try it out",
        "lvp job submit https://images.example.org/debian-12.qcow2 web-01 20 --wait",
        "",
        "export LVP_URL=https://kvm-7.example.org:8080           # a server elsewhere",
        "export LVP_TOKEN_FILE=~/.lvp-token",
        "lvp health",
    ],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, "-V", "--version", message="%(prog)s %(version)s")
def cli() -> None:
    """Put disk images on the volumes of a libvirt/KVM host.

    Each command's own --help has an example.
    """


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and end the process. ``args`` defaults to the process's own."""
    sys.exit(_run(args))


def _run(args: Sequence[str] | None) -> int:
    try:
        status = cli.main(args, standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return error.status if isinstance(error, CliError) else error.exit_code
    except click.Abort:  # Ctrl-C, or end of input at a question
        click.echo("Interrupted.", err=True)
        return ExitStatus.INTERRUPTED
    except (BrokenPipeError, ReaderGoneError):  # `lvp job list | head`: the reader has what it wanted
        # Python flushes stdout once more at exit and would complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitStatus.DONE
    return status if isinstance(status, int) else ExitStatus.DONE
