"""SIGHUP: the configuration and the certificates read again, while jobs and connections go on.

Owns what can change without a restart (who may do what, the log's level, certificates) and says what cannot. A file
with faults, or a key that does not fit its certificate, is refused as a whole and everything stays as it was.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec
import structlog
import trio

from provisioner import registry, systemd
from provisioner.contracts.errors import ProvisionerError
from provisioner.observe import logs

if TYPE_CHECKING:
    from collections.abc import Callable

    from provisioner.api.auth import Authenticator
    from provisioner.api.listening import Listening
    from provisioner.config import Config

log = structlog.get_logger(__name__)

# Read anew for each connection, so that their files may change and move; whether there is one at all may not.
_TLS_FILES = ("tls_certificate", "tls_key", "client_ca")


class Reloader:
    """Takes in what ``read`` returns, as far as that goes. ``started`` is what the service was started with."""

    def __init__(
        self, started: Config, read: Callable[[], Config], door: Listening, authenticator: Authenticator
    ) -> None:
        self._started = started
        self._read = read
        self._door = door
        self._authenticator = authenticator

    async def reload(self) -> None:
        """Read, check, apply, and say what came of it; never raises for what an operator wrote."""
        systemd.notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            config = await trio.to_thread.run_sync(self._checked)
            self._door.reread(config.server)
        except ProvisionerError as error:
            log.error("the new configuration is refused, the old one stays", reason=str(error))
        else:
            self._authenticator.use(config.auth)
            logs.set_level(config.log.level)
            log.info("reloaded", needs_restart=needs_restart(self._started, config) or None)
        systemd.notify("READY=1")

    def _checked(self) -> Config:
        config = self._read()
        registry.load().build(config)  # the back ends' tables too; nothing of it is kept
        return config


def needs_restart(started: Config, wanted: Config) -> list[str]:
    """The keys of ``wanted`` that the running service does not have yet, nor can take in."""
    return sorted(_differences(_fixed(started), _fixed(wanted)))


def _fixed(config: Config) -> dict[str, object]:
    """What a running service keeps, as plain values by dotted key."""
    plain = msgspec.to_builtins(config, enc_hook=str)
    server, auth = plain.pop("server"), plain.pop("auth")
    server |= {key: server[key] is not None for key in _TLS_FILES}
    plain["log"].pop("level")
    sections = {"server": server, "log": plain.pop("log"), "jobs": plain.pop("jobs"), "cache": plain.pop("cache")}
    flat = {f"{name}.{key}": value for name, section in sections.items() for key, value in section.items()}
    tables = {
        f"{kind}.{name}": table
        for kind in ("sources", "converters", "targets", "guards", "observers")
        for name, table in plain.pop(kind).items()
    }
    return {**plain, **flat, **tables, "auth.token_file": auth["token_file"], "auth.open_metrics": auth["open_metrics"]}


def _differences(one: dict[str, object], other: dict[str, object]) -> set[str]:
    return {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}
