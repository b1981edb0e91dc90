"""Layout of help pages: commands and options under headings, and examples."""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def write_examples(formatter: click.HelpFormatter, examples: Sequence[str]) -> None:
    """Write example command lines, unwrapped."""
    with formatter.section("Examples" if len(examples) > 1 else "Example"):
        for line in examples:
            formatter.write(f"{'':>{formatter.current_indent}}{line}".rstrip() + "\n")


# Names of other tools' commands, and ours: the first that the group has.
_REMOVING = ("remove", "revoke", "cancel")
_SYNONYMS = {
    **dict.fromkeys(("rm", "delete", "del"), _REMOVING),
    "ls": ("list", "show"),
    "get": ("show", "list"),
    "stop": ("cancel",),
    "kill": ("cancel",),
}
# As ``connection.connection_options`` adds them; importing that module here would slow every start.
_CONNECTION_OPTIONS = {"--hosts", "--url", "--token", "--token-file", "--ca", "--cert", "--key"}


class SuggestingGroup(click.Group):
    """A group that answers an unknown command with the one that was probably meant."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if error.option_name not in _CONNECTION_OPTIONS:
                raise
            command = "lvp job list"
            raise click.UsageError(
                f"{error.option_name} comes after the command: {command} {error.option_name} ...", ctx
            ) from error

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if name and not name.startswith("-") and self.get_command(ctx, name) is None:
            known = self.list_commands(ctx)
            same = [command for command in _SYNONYMS.get(name, ()) if command in known]
            meant = same or difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {meant[0]}?" if meant else f"the commands are {', '.join(known)}"
            raise click.UsageError(f"there is no command {name!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)


class SectionedGroup(SuggestingGroup):
    """A root group whose help shows examples and lists the commands under headings.

    A command is the attribute ``NAME`` of the module ``provisioner.cli.NAME``. It is imported only when used:
    the imports would be a quarter of the time of ``lvp --version``.
    """

    def __init__(
        self, *args: Any, sections: Mapping[str, Sequence[str]], examples: Sequence[str], **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._sections = sections
        self._examples = examples

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return [name for names in self._sections.values() for name in names]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command = getattr(import_module(f"provisioner.cli.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_help_text(ctx, formatter)
        write_examples(formatter, self._examples)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, self.list_commands(ctx)))
        for heading, names in self._sections.items():
            commands = {name: self.get_command(ctx, name) for name in names}
            with formatter.section(heading):
                formatter.write_dl(
                    [
                        (f"{name:<{width}}", command.get_short_help_str(80))
                        for name, command in commands.items()
                        if command
                    ]
                )


class SectionedOption(click.Option):
    """An option that the help page lists under its own heading."""

    def __init__(self, *args: Any, section: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


class SectionedCommand(click.Command):
    """A command whose help shows examples, and lists sectioned options after the others."""

    def __init__(self, *args: Any, examples: Sequence[str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._examples = examples

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_help_text(ctx, formatter)
        write_examples(formatter, self._examples)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows: dict[str, list[tuple[str, str]]] = {"Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                section = parameter.section if isinstance(parameter, SectionedOption) else "Options"
                rows.setdefault(section, []).append(record)
        for heading, records in rows.items():
            with formatter.section(heading):
                formatter.write_dl(records)
