"""Reloads the configuration on SIGHUP, and TLS files when they change, without stopping jobs or connections.

Owns what can change without a restart (permissions, the log level, certificates) and reports what cannot. A file that
is invalid, not a regular file or not readable in time, or a key that does not match its certificate, is rejected as a
whole, and the old state stays.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec
import structlog
import trio

from provisioner import registry
from provisioner.contracts.errors import ConfigError, ProvisionerError
from provisioner.contracts.small_file import read_small
from provisioner.linux import systemd
from provisioner.observe import logs

if TYPE_CHECKING:
    from collections.abc import Callable

    from provisioner.auth.authenticator import Authenticator
    from provisioner.config import Config, ServerSettings
    from provisioner.server.listener import Listener

T = TypeVar("T")
log = structlog.get_logger(__name__)

# Their files may change and move without a restart; whether each is set may not.
_TLS_FILES = ("tls_certificate", "tls_key", "client_ca", "client_crl")
_TLS_SETTINGS = ("tls_minimum", "client_certificate", "warn_before_expiry")
# Seconds for files to be read; a file system that hangs must not block the next reload.
READ_TIMEOUT = 10.0
# Seconds between checks of the TLS files: stat calls only.
_LOOK = 5.0
# Seconds between two warnings about the same expiry.
_REMIND = 86400.0


class Reloader:
    """Applies the configuration that ``read`` returns. ``started`` is the one the service started with."""

    def __init__(
        self, started: Config, read: Callable[[], Config], listener: Listener, authenticator: Authenticator
    ) -> None:
        self._started = started
        self._read = read
        self._listener = listener
        self._authenticator = authenticator
        self._server = started.server
        self._stamp = _stamp(self._server)
        self._wanted = trio.Event()
        # One thread: if it hangs, no second one is started.
        self._reading = trio.CapacityLimiter(1)

    def request(self) -> None:
        """Make ``run`` reload; if it is reloading already, once more afterwards."""
        self._wanted.set()

    async def run(self) -> None:
        """Reload on each request, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            await self.reload()

    async def reload(self) -> None:
        """Read, check and apply the configuration and log the result; never raise for an invalid one."""
        systemd.notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            config = await self._in_thread(self._checked)
            await self._reread(config.server)
        except ProvisionerError as error:
            log.error("the new configuration is invalid; the old one stays in force", reason=str(error))
        except Exception as error:  # the boundary: a plugin's error must not end the service
            log.error("the new configuration is invalid; the old one stays in force", exc_info=error)
        else:
            self._server = config.server
            self._authenticator.use(config.auth, self._listener.tls.tls_files.lists)
            self._warn()
            logs.set_level(config.log.level)
            log.info("reloaded", needs_restart=needs_restart(self._started, config) or None)
        systemd.notify("READY=1")

    async def watch(self) -> None:
        """Reload TLS files that change, and warn daily about what expires soon, until cancelled."""
        reminded = -math.inf
        while True:
            if trio.current_time() - reminded >= _REMIND:
                reminded = trio.current_time()
                self._warn()
            await trio.sleep(_LOOK)
            await self.look()

    async def look(self) -> None:
        """Reload the TLS files if one has changed since the last time. Never raise for their content."""
        try:
            stamp = await self._in_thread(_stamp, self._server)
        except ConfigError:  # a file system hangs; the next check retries
            return
        if stamp == self._stamp:
            return
        try:
            await self._reread(self._server)
        except ProvisionerError as error:
            # Perhaps only one of two files is replaced yet: the other one changes the stamp again.
            log.warning("the changed TLS files are invalid; the old ones stay in force", reason=str(error))
        else:
            self._authenticator.use_lists(self._listener.tls.tls_files.lists)
            log.info("TLS files changed; new connections use them")
            self._warn()
        self._stamp = stamp

    def warnings(self) -> list[str]:
        """Return a sentence for each file that has expired or expires soon."""
        return self._listener.tls.tls_files.warnings(time.time(), self._server.warn_before_expiry)

    async def _in_thread(self, work: Callable[..., T], *args: object) -> T:
        """Run ``work``, which changes nothing, in a thread. Raises ConfigError if it takes too long."""
        with trio.move_on_after(READ_TIMEOUT):
            return await trio.to_thread.run_sync(work, *args, abandon_on_cancel=True, limiter=self._reading)
        raise ConfigError(f"its files could not be read within {READ_TIMEOUT:g} s")

    async def _reread(self, server: ServerSettings) -> None:
        await self._in_thread(_check_files, server)
        if await trio.to_thread.run_sync(self._listener.tls.reload, server):
            log.info(
                "a client authority was removed, its open connections closed",
                count=self._listener.close_outdated(),
            )

    def _warn(self) -> None:
        for warning in self.warnings():
            log.warning(warning)

    def _checked(self) -> Config:
        config = self._read()
        registry.load().build(config)  # also checks the back ends' tables; the result is discarded
        return config


def _check_files(server: ServerSettings) -> None:
    """Raise ConfigError if a TLS file cannot be read: OpenSSL itself would wait for the writer of a pipe."""
    for file in (getattr(server, key) for key in _TLS_FILES):
        if file is not None:
            try:
                read_small(Path(file))
            except OSError as error:
                raise ConfigError(f"{file} cannot be read: {error.strerror}") from error


def _stamp(server: ServerSettings) -> tuple[tuple[int, int] | None, ...]:
    """Return a value that changes when a TLS file is changed or replaced, or its link points elsewhere."""
    return tuple(_file_stamp(getattr(server, key)) for key in _TLS_FILES)


def _file_stamp(file: str | None) -> tuple[int, int] | None:
    try:
        status = Path(file).stat() if file is not None else None
    except OSError:
        return None
    return None if status is None else (status.st_ino, status.st_mtime_ns)


def needs_restart(started: Config, wanted: Config) -> list[str]:
    """Return the keys of ``wanted`` that only take effect after a restart."""
    return sorted(_differences(_fixed(started), _fixed(wanted)))


def _fixed(config: Config) -> dict[str, object]:
    """Return the settings that need a restart, as plain values by dotted key."""
    plain = msgspec.to_builtins(config, enc_hook=str)
    server, auth, audit = plain.pop("server"), plain.pop("auth"), plain.pop("audit")
    # A revocation list can be added and removed at run time; TLS and client certificates cannot.
    server |= {key: server[key] is not None for key in _TLS_FILES if key != "client_crl"}
    for key in ("client_crl", *_TLS_SETTINGS):
        del server[key]
    plain["log"].pop("level")
    sections = {"server": server, "log": plain.pop("log"), "jobs": plain.pop("jobs"), "cache": plain.pop("cache")}
    flat = {f"{name}.{key}": value for name, section in sections.items() for key, value in section.items()}
    tables = {
        f"{kind}.{name}": table
        for kind in ("sources", "converters", "targets", "guards", "observers")
        for name, table in plain.pop(kind).items()
    }
    kept = {f"auth.{key}": auth[key] for key in ("token_file", "token_key", "open_metrics", "max_failures")}
    return {**plain, **flat, **tables, **kept, "audit.file": audit["file"], "audit.log": audit["log"]}


def _differences(one: dict[str, object], other: dict[str, object]) -> set[str]:
    return {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}
