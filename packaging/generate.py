# ruff: noqa: INP001 - a script; a package here would be importable from the checkout as `packaging`
"""Writes the packages' man pages, shell completions, changelog and copyright file.

``build`` passes the folders of packaging, of the project and of the stage; the staged environment is on the path. The
output is reproducible.
"""

from __future__ import annotations

import os
import re
import sys
import time
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import BashComplete, FishComplete, ZshComplete

from provisioner import __version__
from provisioner.cli import cli
from provisioner.cli.connection import VARIABLES
from provisioner.cli.exit_status import FLEET_MEANING, FLEET_RANGE, MEANINGS
from provisioner.cli.paths import FILES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PROJECT = "libvirt-volume-provisioner"
NAMES = ("lvp", PROJECT)
MAINTAINER = os.environ["MAINTAINER"]
EPOCH = int(os.environ["SOURCE_DATE_EPOCH"])


def main(packaging: Path, source: Path, stage: Path) -> None:
    """Write everything below ``stage``."""
    for folder in ("man/man1", "man/man5", "man/man8", "doc", "completions"):
        (stage / folder).mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        for shell in (BashComplete, ZshComplete, FishComplete):
            variable = f"_{name.replace('-', '_').upper()}_COMPLETE"
            script = shell(cli, {}, name, variable).source()
            (stage / "completions" / f"{name}.{shell.name}").write_text(script)
    (stage / "man/man1/lvp.1").write_text(command_page())
    (stage / f"man/man5/{PROJECT}.toml.5").write_text(configuration_page((packaging / "config.toml").read_text()))
    daemon = (packaging / "man" / f"{PROJECT}.8").read_text()
    (stage / f"man/man8/{PROJECT}.8").write_text(title(PROJECT, 8) + daemon)
    (stage / "doc" / "changelog").write_text((source / "CHANGELOG.md").read_text())
    (stage / "doc" / "changelog.Debian").write_text(debian_changelog())
    (stage / "doc" / "copyright").write_text(copyright_file(source))


# ---- Man pages


def title(name: str, section: int) -> str:
    """Return the head of a man page."""
    day = time.strftime("%Y-%m-%d", time.gmtime(EPOCH))
    return f'.TH {name.upper()} {section} "{day}" "{PROJECT} {__version__}"\n'


def roff(text: str) -> str:
    """Escape plain text for roff: backslashes, hyphens, and a dot or quote at the beginning of a line."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join(f"\\&{line}" if line.startswith((".", "'")) else line for line in text.split("\n"))


def command_page() -> str:
    """Return the man page of ``lvp``, made from the help of its commands."""
    context = click.Context(cli, info_name="lvp")
    lines = [title("lvp", 1), ".SH NAME", f"lvp \\- {roff('put disk images on the volumes of a libvirt/KVM host')}"]
    lines += [".SH SYNOPSIS", ".B lvp", ".I COMMAND", "[ARGUMENTS]..."]
    lines += [".SH DESCRIPTION", paragraphs(cli.help or ""), ".SH COMMANDS"]
    for names, command in walk(cli, context):
        usage = " ".join(["lvp", *names, *command.collect_usage_pieces(click.Context(command))])
        lines += [".SS", f".B {roff(usage)}", ".PP", paragraphs(command.help or "")]
        for parameter in command.params:
            record = parameter.get_help_record(click.Context(command)) if isinstance(parameter, click.Option) else None
            if record:
                lines += [".TP", f".B {roff(record[0])}", roff(record[1])]
        for example in getattr(command, "_examples", ()):
            lines += [".PP", ".EX", roff(f"    {example}"), ".EE"]
    statuses = {str(int(status)): text for status, text in MEANINGS.items()}
    lines += definitions("EXIT STATUS", {**statuses, FLEET_RANGE: FLEET_MEANING})
    lines += definitions("ENVIRONMENT", VARIABLES)
    lines += definitions("FILES", FILES)
    lines += [".SH SEE ALSO", f".BR {roff(PROJECT)} (8),", f".BR {roff(PROJECT)}.toml (5)"]
    return "\n".join(lines) + "\n"


def definitions(heading: str, entries: Mapping[str, str]) -> list[str]:
    """Return a section of terms and their explanations."""
    lines = [f".SH {heading}"]
    for term, text in entries.items():
        lines += [".TP", f".B {roff(term)}", roff(text)]
    return lines


def walk(group: click.Group, context: click.Context) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield every command below ``group`` with its names."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            for names, inner in walk(command, click.Context(command)):
                yield (name, *names), inner
        elif command is not None:
            yield (name,), command


def paragraphs(text: str) -> str:
    """Return a docstring as filled roff paragraphs."""
    parts = re.split(r"\n\s*\n", text.strip())
    return "\n.PP\n".join(roff(" ".join(part.split())) for part in parts)


def configuration_page(text: str) -> str:
    """Return the packaged configuration file as a man page: comments as text, settings as examples."""
    lines = [title(f"{PROJECT}.toml", 5), ".SH NAME"]
    lines += [f"{roff(PROJECT)}.toml \\- configuration of the volume provisioner", ".SH DESCRIPTION"]
    lines += ["The file is", f".IR /etc/{PROJECT}/config.toml ,", "in TOML. It comes with every key and its default:"]
    for block in re.split(r"\n\n+", text.strip()):
        lines += [".PP", *block_lines(block.split("\n"))]
    lines += [".SH SEE ALSO", ".BR lvp (1),", f".BR {roff(PROJECT)} (8)"]
    return "\n".join(lines) + "\n"


def block_lines(block: list[str]) -> Iterator[str]:
    """Yield one block of the file as roff: comment lines are filled, settings keep their lines."""
    example = False
    for line in block:
        heading = re.fullmatch(r"#? ?-* ?([A-Z].*?) -+", line)
        is_text = line.startswith(("# ", "#\n")) or line == "#"
        if example and (is_text or heading):
            yield ".EE"
        if not example and not is_text and not heading:
            yield ".EX"
        example = not is_text and not heading
        if heading:
            yield f".SH {roff(heading[1].upper())}"
        elif is_text and line.startswith("#     "):
            yield f".br\n{roff(line[2:])}\n.br"
        else:
            yield roff(line[2:]) if is_text else roff(line.removeprefix("#"))
    if example:
        yield ".EE"


# ---- Files that Debian requires


def debian_changelog() -> str:
    """Return Debian's changelog, which refers to the project's own."""
    version = re.sub(r"\.?(a|b|rc|dev)(\d+)", r"~\1\2", __version__)
    day = time.strftime("%a, %d %b %Y %H:%M:%S +0000", time.gmtime(EPOCH))
    return f"{PROJECT} ({version}-1) stable; urgency=medium\n\n  * See changelog.gz.\n\n -- {MAINTAINER}  {day}\n"


def copyright_file(source: Path) -> str:
    """Return the licences of the project and of every bundled dependency."""
    licence = "\n".join(f" {line}" if line.strip() else " ." for line in (source / "LICENSE").read_text().splitlines())
    text = [
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/",
        f"Upstream-Name: {PROJECT}",
        f"\nFiles: *\nCopyright: {MAINTAINER.split(' <')[0]}\nLicense: Expat",
    ]
    for found in sorted(distributions(), key=lambda item: item.name.lower()):
        if found.name.lower() == PROJECT or "site" not in str(found.locate_file("")):
            continue
        metadata = found.metadata
        words = metadata.get("License-Expression") or (metadata.get("License") or "").split("\n")[0] or "see-its-files"
        owner = (metadata.get("Author") or metadata.get("Author-email") or f"the authors of {found.name}").split("\n")[
            0
        ]
        text.append(
            f"\nFiles: usr/lib/{PROJECT}/site/{found.name}*\nCopyright: {owner}\nLicense: {words}\n"
            f"Comment: version {found.version}; the full text is in its .dist-info folder"
        )
    return "\n".join(text) + f"\n\nLicense: Expat\n{licence}\n"


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
