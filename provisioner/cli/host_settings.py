"""Named hosts and groups of the settings file, and the hosts that ``--hosts`` stands for. Opens no connection.

A host is a server with a name. ``client_settings`` merges its table with flags, environment and file.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from provisioner.cli.client_settings import ENVIRONMENT, ClientSettings, merged, read_document, wrong
from provisioner.cli.host_patterns import MOST, PatternError, expand, split

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

# The port of the service.
_PORT = 8080


@dataclass(frozen=True, slots=True)
class Host:
    """A server under the name that tables and messages show."""

    name: str
    settings: ClientSettings


@dataclass(frozen=True, slots=True)
class Directory:
    """The hosts and groups of the settings file: tables of each host, the nearest first, and members of each group."""

    hosts: Mapping[str, Sequence[Mapping[str, str]]]
    groups: Mapping[str, Sequence[str]]

    def names(self, text: str) -> list[str]:
        """Return the hosts that a list stands for: in its order, each once, without those after ``!``.

        Raises CliError.
        """
        try:
            return self.expanded(text)
        except PatternError as error:
            raise wrong(f"hosts: {error}") from error

    def expanded(self, text: str, inside: tuple[str, ...] = ()) -> list[str]:
        """Return the hosts as ``names`` does, within the groups ``inside``. Raises PatternError."""
        found: dict[str, None] = {}
        left_out: set[str] = set()
        for item in split(text):
            if item.startswith("!"):
                left_out.update(self._members(item[1:], inside))
            else:
                found.update(dict.fromkeys(self._members(item, inside)))
            if len(found) > MOST:
                raise PatternError(f"{text!r} stands for more than {MOST:,} hosts")
        return [name for name in found if name not in left_out]

    def _members(self, item: str, inside: tuple[str, ...]) -> list[str]:
        if is_address(item):
            return expand(item)
        if "*" in item or "?" in item:
            return self._matching(item)
        names: list[str] = []
        for name in expand(item):
            if name in self.groups:
                if name in inside:
                    raise PatternError(f"the group {name!r} contains itself")
                names += self.expanded(",".join(self.groups[name]), (*inside, name))
            elif name in self.hosts or not self.hosts:
                names.append(name)
            else:
                raise PatternError(self._unknown(name))
        return names

    def _matching(self, pattern: str) -> list[str]:
        found = [name for name in self.hosts if fnmatchcase(name, pattern)]
        if not found:
            raise PatternError(f"no host in the settings file matches {pattern!r}")
        return found

    def _unknown(self, name: str) -> str:
        close = difflib.get_close_matches(name, [*self.groups, *self.hosts], n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"add it to lvp.toml, or give its address: https://{name}"
        return f"the settings file has no host or group {name!r}; {hint}"


def resolve_hosts(text: str, flags: Mapping[str, str | None], environ: Mapping[str, str], file: Path) -> list[Host]:
    """Return the hosts that a list stands for, with their credentials. Raises CliError.

    Flags override a host's own table, which overrides the environment and the rest of the file: a token of the
    environment is not sent to a host that has its own.
    """
    document = read_document(file)
    directory = read_directory(document, file)
    shared = [
        {key: environ[name] for key, name in ENVIRONMENT.items() if environ.get(name) and key != "url"},
        {key: value for key, value in document.items() if key in ENVIRONMENT and key != "url"},
    ]
    given = {key: value for key, value in flags.items() if value is not None and key in ENVIRONMENT}
    hosts = []
    for name in directory.names(text):
        own = [_filled(table, name) for table in directory.hosts.get(name, ())]
        hosts.append(Host(name, merged([given, *own, {"url": default_url(name)}, *shared])))
    if not hosts:
        raise wrong(f"{text!r} leaves no host")
    return hosts


def is_address(text: str) -> bool:
    """Return whether the text is the address of a server rather than a name."""
    return "://" in text or text.startswith("unix:")


def default_url(name: str) -> str:
    """Return the address of a host without ``url``: ``https``, and the service's port if the name has none."""
    if is_address(name):
        return name
    return f"https://{name}" if ":" in name else f"https://{name}:{_PORT}"


def read_directory(document: Mapping[str, Any], file: Path) -> Directory:
    """Return the tables ``hosts`` and ``groups`` of the settings file. Raises CliError."""
    exact: dict[str, Mapping[str, str]] = {}
    by_pattern: dict[str, Mapping[str, str]] = {}
    order: dict[str, None] = {}
    for key, entry in _table(document, "hosts", file).items():
        _check_host(key, entry, file)
        names = _expanded(key, file, "hosts")
        order.update(dict.fromkeys(names))
        if names == [key]:
            exact[key] = entry
            continue
        if twice := next((name for name in names if name in by_pattern), None):
            raise wrong(f"{file}: two patterns in [hosts] stand for {twice!r}")
        by_pattern.update(dict.fromkeys(names, entry))
    hosts = {name: [table[name] for table in (exact, by_pattern) if name in table] for name in order}
    groups = {name: _check_group(name, entry, file) for name, entry in _table(document, "groups", file).items()}
    if both := next((name for name in groups if name in hosts), None):
        raise wrong(f"{file}: {both!r} is the name of a host and of a group")
    directory = Directory(hosts, groups)
    for name, members in groups.items():
        try:
            directory.expanded(",".join(members), (name,))
        except PatternError as error:
            raise wrong(f"{file}: groups.{name}: {error}") from error
    return directory


def _expanded(key: str, file: Path, table: str) -> list[str]:
    try:
        return expand(key)
    except PatternError as error:
        raise wrong(f"{file}: {table}: {error}") from error


def _table(document: Mapping[str, Any], name: str, file: Path) -> Mapping[str, Any]:
    table = document.get(name, {})
    if not isinstance(table, dict):
        raise wrong(f"{file}: {name} must be a table")
    return table


def _check_host(key: str, entry: object, file: Path) -> None:
    if not isinstance(entry, dict):
        raise wrong(f'{file}: hosts.{key} must be a table, such as {{ url = "https://{key}:8080" }}')
    _check_name(key, file)
    for name, value in entry.items():
        if name not in ENVIRONMENT:
            raise wrong(f"{file}: hosts.{key}: unknown key {name!r}; allowed: {', '.join(ENVIRONMENT)}")
        if not isinstance(value, str) or not value:
            raise wrong(f"{file}: hosts.{key}.{name} must be a non-empty string")


def _check_group(name: str, entry: object, file: Path) -> list[str]:
    _check_name(name, file)
    members = [entry] if isinstance(entry, str) else entry
    if not isinstance(members, list) or not members or not all(isinstance(one, str) and one for one in members):
        raise wrong(f'{file}: groups.{name} must be a list of hosts, such as ["kvm-[01-20]"]')
    if _expanded(name, file, "groups") != [name]:
        raise wrong(f"{file}: groups.{name}: the name of a group must not be a pattern")
    return members


def _check_name(name: str, file: Path) -> None:
    if not name or is_address(name) or set(name) & set("*?!, \t") or not name.isprintable():
        raise wrong(f"{file}: {name!r} cannot be the name of a host or group")


def _filled(table: Mapping[str, str], name: str) -> dict[str, str]:
    """Return the table of a host with its name in place of ``{host}``."""
    return {key: value.replace("{host}", name) for key, value in table.items()}
