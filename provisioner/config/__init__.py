"""The configuration: TOML in, frozen and validated settings out."""

from provisioner.config.load import LOOPBACK_PREFIXES, dump, embedded, load, parse
from provisioner.config.schema import (
    DEFAULT_CONVERTERS,
    AuthSettings,
    CacheSettings,
    Config,
    JobSettings,
    LogSettings,
    PrewarmSettings,
    Role,
    ServerSettings,
)
from provisioner.config.strict import Faults, decode_struct

__all__ = [
    "DEFAULT_CONVERTERS",
    "LOOPBACK_PREFIXES",
    "AuthSettings",
    "CacheSettings",
    "Config",
    "Faults",
    "JobSettings",
    "LogSettings",
    "PrewarmSettings",
    "Role",
    "ServerSettings",
    "decode_struct",
    "dump",
    "embedded",
    "load",
    "parse",
]
