"""Shell completion of values: ids, checksums and names that the server or this host knows.

Quick and quiet: without an answer in time, and after any error, there are no suggestions and no output.
"""

from __future__ import annotations

import threading
from contextlib import redirect_stderr, redirect_stdout, suppress
from io import StringIO
from typing import TYPE_CHECKING, Any

from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import click

    Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]
    Ask = Callable[[str, Mapping[str, str | int]], Mapping[str, Any]]
    Suggest = Callable[[click.Context, Ask, str], Iterable[CompletionItem]]

# Seconds until the prompt must be usable again.
LIMIT = 2.0
# Seconds to read the configuration and the token file, most of which is for loading the program's own parts.
_LOCAL_LIMIT = 10.0
_NEWEST = 100


def _from_server(suggest: Suggest) -> Complete:
    """Return a completion that asks the server which the command's options, the environment or the file name."""

    def complete(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        import provisioner.cli.client  # noqa: F401 - now, so that the time is the server's

        return _in_time(lambda: _matching(suggest(ctx, _asking(ctx), incomplete), incomplete), LIMIT)

    return complete


def _matching(items: Iterable[CompletionItem], incomplete: str) -> list[CompletionItem]:
    return [item for item in items if item.value.startswith(incomplete)]


def _in_time(work: Callable[[], list[CompletionItem]], limit: float) -> list[CompletionItem]:
    """Return the result of ``work``, or nothing if it fails or takes too long: a name server may hang."""
    found: list[CompletionItem] = []

    def run() -> None:
        with suppress(Exception, SystemExit):  # whatever it is, the user is only typing
            found.extend(work())

    thread = threading.Thread(target=run, daemon=True)
    with redirect_stderr(StringIO()), redirect_stdout(StringIO()):
        thread.start()
        thread.join(limit)
    return list(found)


def _asking(ctx: click.Context) -> Ask:
    """Return a function that asks the server for a list."""
    from provisioner.cli.client import Client
    from provisioner.cli.connection import one_server, path, settings_of

    with ctx.scope(cleanup=False):  # the thread has no current context, and --hosts may stand before the command
        client = Client(one_server(settings_of(ctx.params)))
    return lambda what, params: client.get(path(*what.split("/")), params).data


def _jobs(*statuses: str) -> Complete:
    def suggest(_ctx: click.Context, ask: Ask, incomplete: str) -> Iterable[CompletionItem]:
        # Older ones are found once there is enough of the id.
        prefix = {"id_prefix": incomplete} if len(incomplete) >= 8 else {}
        for status in statuses:
            query = {"status": status} if status else {}
            for job in ask("jobs", {"limit": _NEWEST, **query, **prefix})["jobs"]:
                volume = job.get("volume_name") or (job.get("volume") or {}).get("name") or "no volume"
                yield _item(job["job_id"], f"{job['status']}, {volume}")

    return _from_server(suggest)


def _images(_ctx: click.Context, ask: Ask, _incomplete: str) -> Iterable[CompletionItem]:
    for image in ask("cache/images", {"limit": 1000})["images"]:
        yield _item(image["checksum"], image.get("url") or image["path"])


def _targets(_ctx: click.Context, ask: Ask, _incomplete: str) -> Iterable[CompletionItem]:
    for target in ask("targets", {})["targets"]:
        yield _item(target["name"], target["plugin"])


def _volumes(ctx: click.Context, ask: Ask, _incomplete: str) -> Iterable[CompletionItem]:
    target = ctx.params.get("target")
    for volume in ask("volumes", {"limit": 1000})["volumes"]:
        if target in {None, volume["target"]}:
            yield _item(volume["name"], volume["target"])


def _item(value: object, help_text: object) -> CompletionItem:
    """Return a suggestion; its text comes from the server, and shells read lines."""
    from provisioner.cli.formatting import printable

    return CompletionItem(printable(value), help=printable(help_text))


def complete_hosts(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the last name of a list of hosts: the hosts and groups of the settings file."""

    def names() -> list[CompletionItem]:
        from provisioner.cli import paths
        from provisioner.cli.client_settings import read_document
        from provisioner.cli.host_settings import read_directory

        file = paths.client_file()
        directory = read_directory(read_document(file), file)
        before, comma, last = incomplete.rpartition(",")
        mark = "!" if last.startswith("!") else ""
        known = [*directory.groups, *directory.hosts]
        return [_item(f"{before}{comma}{mark}{name}", "") for name in known if name.startswith(last[len(mark) :])]

    return _in_time(names, _LOCAL_LIMIT)


def complete_token(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a token in the token file of this host."""

    def names() -> list[CompletionItem]:
        from pathlib import Path

        from provisioner.cli.token import token_place

        files = [Path(value) if (value := ctx.params.get(name)) else None for name in _TOKEN_FILES]
        return _matching([_item(one.name, one.role) for one in token_place(*files).store.list()], incomplete)

    return _in_time(names, _LOCAL_LIMIT)


# The parameters of the commands on tokens, in the order of ``token_place``.
_TOKEN_FILES = ("token_file", "config_file", "key_file")

complete_job = _jobs("")
complete_active_job = _jobs("running", "pending")
complete_ended_job = _jobs("failed", "cancelled", "completed")
complete_checksum = _from_server(_images)
complete_target = _from_server(_targets)
complete_volume = _from_server(_volumes)
